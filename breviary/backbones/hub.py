"""Whether the hub can be reached: one short try a process, so that a machine without a network waits for seconds."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Future
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session

TIMEOUT_S = 4


@functools.cache
def hub_problem() -> str | None:
    """Why the hub cannot be reached, on one line; None where it answers within TIMEOUT_S. Tried once a process."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
            answer.set_result(None)
        except Exception as error:  # reported by the waiting thread
            answer.set_exception(error)

    # A daemon thread: without a network the lookup of the name may outlast every timeout of the connection.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer.result(timeout=TIMEOUT_S)
    except Exception as error:  # of the network, whatever the client's library calls it
        reason = (str(error).strip().splitlines() or [f"no answer within {TIMEOUT_S} s"])[0]
        return f"the hub cannot be reached: {reason}"
    return None


def hub_options() -> dict[str, Any]:
    """Keyword arguments for `from_pretrained` and `snapshot_download`: the cache alone where the hub is not reached."""
    return {"local_files_only": True} if hub_problem() else {}
