"""Runs one call with random input, and what came of it."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from breviary.config.errors import run_cli

LIMIT = 30  # CPU seconds of a call
OKAY = ("ran", "refused", "failed")


@dataclass(frozen=True)
class Outcome:
    """ran | refused (an error message, exit code 2) | failed (a message about the run, exit code 1) | fault.

    text  the message, or what is wrong
    """

    kind: str
    text: str = ""


@contextlib.contextmanager
def time_limit(seconds: int = LIMIT) -> Iterator[None]:
    """Raises TimeoutError in the main thread after so many seconds of CPU time."""

    def end(*args: Any) -> None:
        raise TimeoutError(f"no end within {seconds} CPU seconds")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_command(entry: Any, words: Sequence[str], home: Path) -> Outcome:
    """Calls `main` of train.py or eval.py with these overrides, in this process, below `home`."""
    paths = [f"paths.outputs={home}/outputs", f"paths.cache={home}/cache"]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [entry.__file__, *words, *paths]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        time_limit(),
    ):
        try:
            run_cli(entry.main, entry.CONFIG)
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        except Exception:
            return Outcome("fault", traceback.format_exc(limit=-3))
    message = err.getvalue()
    if code == 0:
        return Outcome("ran", out.getvalue()[-200:])
    if not message.startswith("error: ") or "Traceback" in message:
        return Outcome("fault", f"exit code {code} with {message!r}")
    return Outcome({1: "failed", 2: "refused"}.get(code, "fault"), message)


def call(function: Callable[[], Any]) -> Outcome:
    """Calls a function of the library: a ValueError is a refusal, any other exception a fault."""
    try:
        with time_limit(), contextlib.redirect_stdout(io.StringIO()):
            return Outcome("ran", str(function()))
    except ValueError as error:
        return Outcome("refused", str(error))
    except Exception:
        return Outcome("fault", traceback.format_exc(limit=-3))


class Report:
    """Counts of the outcomes of one kind of input, and the inputs that gave faults."""

    def __init__(self, name: str, seed: int):
        self.name, self.seed, self.counts, self.faults = name, seed, Counter[str](), list[str]()

    def add(self, number: int, described: str, outcome: Outcome) -> None:
        """Adds case `number`; a fault is printed with the command that repeats it."""
        self.counts[outcome.kind] += 1
        if outcome.kind not in OKAY:
            again = f"python -m tests.fuzz --{self.name} 1 --first {number} --seed {self.seed}"
            self.faults.append(f"{described}\n{outcome.text.strip()}\n  again: {again}")
            print(f"FAULT {self.faults[-1]}\n", flush=True)
