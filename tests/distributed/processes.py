"""Ranks for the tests: processes forked from a server with all imports done, which saves seconds per rank."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 240  # seconds; deadlocked ranks would otherwise wait for gloo's 30 minutes
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
}


def server() -> Any:
    """A multiprocessing context whose processes start with all imports of preload.py done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    with mock.patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    return context


def launch(context: Any, logs: Path, world: int | None, function: Callable[..., None], *args: Any) -> str:
    """Calls `function(*args)` on `world` ranks (None: one process without rank variables); returns rank 0's output.

    Raises: AssertionError with the output of failed ranks; the other ranks are killed.
    """
    ranks, files = start(context, logs, world, function, *args)
    end = time.monotonic() + TIME_LIMIT
    while any(p.is_alive() for p in ranks) and not any(p.exitcode for p in ranks) and time.monotonic() < end:
        time.sleep(0.02)
    failed = [rank for rank, process in enumerate(ranks) if process.exitcode != 0]
    _kill(ranks)
    assert not failed, f"ranks {failed} of {function.__name__}{args} failed:\n" + "\n".join(
        f"--- rank {rank}\n{files[rank].read_text()[-4000:]}" for rank in failed
    )
    return files[0].read_text()


def launch_failing(
    context: Any, logs: Path, world: int, victim: int | None, function: Callable[..., None], *args: Any
) -> dict[int, str]:
    """Calls `function(*args)` on `world` ranks; waits until all but the victim have exited by themselves with an error.

    victim  a rank that may end in any way, or not at all; None = there is none
    Returns {rank: output} of the ranks that exited. No rank is killed before the others have exited.
    Raises: AssertionError with all outputs where a rank other than the victim continues or exits without an error.
    """
    ranks, files = start(context, logs, world, function, *args)
    end = time.monotonic() + TIME_LIMIT
    others = [process for rank, process in enumerate(ranks) if rank != victim]
    while any(process.is_alive() for process in others) and time.monotonic() < end:
        time.sleep(0.02)
    codes = [process.exitcode for process in ranks]
    _kill(ranks)
    output = {rank: files[rank].read_text() for rank in range(world) if codes[rank] is not None}
    assert all(code == 1 for rank, code in enumerate(codes) if rank != victim), (
        codes,
        [f.read_text()[-3000:] for f in files],
    )
    return output


def start(
    context: Any, logs: Path, world: int | None, function: Callable[..., None], *args: Any
) -> tuple[list[Any], list[Path]]:
    """The started processes and their output files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{port}.{rank}.log" for rank in range(world or 1)]
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, files[rank], function, args))
        for rank in range(world or 1)
    ]
    for process in ranks:
        process.start()
    return ranks, files


@contextlib.contextmanager
def relayed(context: Any, folder: Path, script: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the script to give to a launcher in place of `script`, and the environment that it needs.

    Each process of the launcher runs `script` in a process of the fork server, with its own arguments and environment.
    """
    address = str(folder / "relay")
    with Listener(address) as listener:

        def serve() -> None:
            while True:
                connection = listener.accept()
                request = connection.recv()
                if request is None:
                    return
                threading.Thread(target=_run_relayed, args=(context, connection, script, *request)).start()

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield str(Path(__file__).with_name("relay.py")), {"RELAY": address}
        finally:
            with Client(address) as connection:
                connection.send(None)
            server.join()


def _run_relayed(
    context: Any, connection: Connection, script: str, arguments: list[str], environment: dict[str, str]
) -> None:
    """Runs the script in a process of the fork server and sends its exit code, and its output if it failed."""
    log = Path(f"{environment['RELAY']}.{environment['RANK']}.log")
    process = context.Process(target=_relayed_rank, args=(log, script, arguments, environment))
    process.start()
    process.join(TIME_LIMIT)
    process.kill()
    process.join()
    connection.send(log.read_text()[-4000:] if process.exitcode else 0)  # sys.exit prints a text


def _relayed_rank(log: Path, script: str, arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    _rank(0, None, 0, log, run_script, (script, arguments))


def _kill(ranks: list[Any]) -> None:
    for process in ranks:
        process.kill()
        process.join()


def run_script(script: str, arguments: list[str], launcher: str = "") -> None:
    """Runs `python SCRIPT ARGUMENTS` in the checkout; with `launcher` = deepspeed, the rank is an argument too."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    rank = [f"--local_rank={os.environ['LOCAL_RANK']}"] if launcher == "deepspeed" else []
    sys.argv = [script, *rank, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def _rank(rank: int, world: int | None, port: int, log: Path, function: Callable[..., None], args: tuple) -> None:
    with open(log, "w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    import torch

    torch.set_num_threads(1)
    if world:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # Exits without cleanup: the threads of gloo and DeepSpeed take seconds to end.
    sys.stdout.flush()
    os._exit(0)
