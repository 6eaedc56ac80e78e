"""Watchdog over processes that wait for each other: when one dies, hangs or fails, all end with an error naming it.

Several times a second, each process writes a heartbeat with its state to a shared store and reads those of the others.
The first failure is stored once, and every process ends with its message. The watchdog uses its own threads and
connection and a few hundred bytes; the computation of the model is not affected.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from breviary.runtime.files import storage_message
from breviary.runtime.memory_errors import OutOfMemory

HEARTBEAT_S = 0.25  # seconds between two heartbeats
GRACE_S = 12 * HEARTBEAT_S  # after a failure, a process without a heartbeat for this long is considered dead
FORCED_EXIT_S = 10.0  # a failed process is ended after this time, even if it still waits for another one
FAILURE_KEY = "failure"
RANK_0 = "rank 0"  # owner of the store, unless the launcher owns it


class ProcessFailure(RuntimeError):
    """The failure that ended the run; the message names the rank and its state."""


class NotFiniteFailure(ProcessFailure):
    """Values that are NaN or infinite, found in the middle of a batch."""


@dataclass
class Heartbeat:
    """The newest heartbeat of another rank."""

    raw: bytes  # a counter and the state, as stored
    state: str | None  # None = the process has finished
    time: float  # when this process first read it, time.monotonic()


class Watchdog:
    """Watchdog of one process over itself and `world` - 1 others.

    timeout      seconds: a process without a heartbeat, or in one computation, for longer than this hangs
    store        holds the heartbeats and the failure; not shared with other code, as it serves one call at a time
    store_owner  process that runs the store, as named in messages

    As a context manager: an exception in the block ends all processes with a message that names the first one to fail.
    """

    def __init__(self, rank: int, world: int, timeout: float, store: Any, store_owner: str = RANK_0):
        self.rank, self.world, self.timeout, self.store, self.store_owner = rank, world, timeout, store, store_owner
        self._state: tuple[str, bool, float] = ("before the first text", False, time.monotonic())
        self._heartbeats: dict[int, Heartbeat] = {}  # by rank
        self._sent, self._last_response = 0, time.monotonic()
        self._is_over, self._is_failing = threading.Event(), threading.Event()  # failing: the main thread reports it
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._monitor_processes, self._monitor_store)
        ]

    def set_state(self, state: str, is_computing: bool = False) -> None:
        """Sets the state of this process. `is_computing`: it waits for no other process, so the timeout applies."""
        self._state = state, is_computing, time.monotonic()

    def __enter__(self) -> Watchdog:
        self._send_heartbeat(self._state[0])
        self._last_response = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            self._is_failing.set()
            exit_after(FORCED_EXIT_S)
            message = self._report_failure(self._find_cause(error))
        self._is_over.set()
        for thread in self._threads:
            thread.join(GRACE_S)
        if error is None:
            with contextlib.suppress(dist.DistError):
                self._send_heartbeat(None)  # the other processes stop watching this one
        elif isinstance(error, Exception):
            self._announce_exit()
            if not is_user_error(error):  # which keeps its message
                raise ProcessFailure(message) from error

    # -------------------------------------------------------------- threads

    def _monitor_processes(self) -> None:
        """Thread: exchanges heartbeats until a failure ends this process."""
        while not self._is_over.wait(HEARTBEAT_S):
            try:
                message = self._reported_failure() or self._detect_failure()
            except dist.DistError:
                message = self._store_failure("is gone")
            self._last_response = time.monotonic()
            if message and not self._is_failing.is_set() and not self._is_over.is_set():
                self._announce_exit()
                _exit_with_error(message)

    def _monitor_store(self) -> None:
        """Thread: ends this process when the store does not respond, in which case the other thread is blocked."""
        while not self._is_over.wait(HEARTBEAT_S):
            if time.monotonic() - self._last_response > self.timeout and not self._is_failing.is_set():
                _exit_with_error(self._store_failure(f"did not respond for {self.timeout:g} s (engine.timeout)"))

    def _detect_failure(self) -> str | None:
        """Exchanges heartbeats; the message of a failure that this process detects, or None."""
        self._send_heartbeat(self._state[0])
        self._read_heartbeats()
        state, is_computing, since = self._state
        if is_computing and time.monotonic() - since > self.timeout:
            return self._report_failure(
                f"rank {self.rank} hangs: more than {self.timeout:g} s (engine.timeout) {state}"
            )
        silent = self._find_silent_rank(self.timeout)
        if silent is None:
            return None
        return self._report_failure(
            f"rank {silent} hangs or is gone: no heartbeat for {self.timeout:g} s (engine.timeout), last seen "
            f"{self._heartbeats[silent].state}"
        )

    def _send_heartbeat(self, state: str | None) -> None:
        self._sent += 1
        self.store.set(str(self.rank), json.dumps([self._sent, state]))

    def _read_heartbeats(self) -> None:
        """Updates the heartbeats of the other ranks; a rank without any has not started yet."""
        others = [
            rank
            for rank in range(self.world)
            if rank != self.rank and (rank in self._heartbeats or self.store.check([str(rank)]))
        ]
        for rank, raw in zip(others, self.store.multi_get([str(rank) for rank in others]) if others else ()):
            if rank not in self._heartbeats or self._heartbeats[rank].raw != raw:
                self._heartbeats[rank] = Heartbeat(raw, json.loads(raw)[1], time.monotonic())

    def _find_silent_rank(self, seconds: float) -> int | None:
        """A rank that has started, has not finished, and sent no heartbeat for `seconds`."""
        now = time.monotonic()
        return next(
            (rank for rank, last in self._heartbeats.items() if last.state is not None and now - last.time > seconds),
            None,
        )

    # -------------------------------------------------------------- failures

    def _reported_failure(self) -> str | None:
        """The message of the failure that a process has reported, if any."""
        return self.store.get(FAILURE_KEY).decode() if self.store.check([FAILURE_KEY]) else None

    def _report_failure(self, message: str) -> str:
        """Stores the message of a failure unless there is one; returns the one that was reported first."""
        try:
            return self.store.compare_set(FAILURE_KEY, "", message).decode()
        except dist.DistError:
            return message

    def _find_cause(self, error: Exception) -> str:
        """Message for an error of this process, which may be a consequence of another process's failure.

        Waits for a reported failure or a silent rank; without either, this process is the cause.
        """
        state, end = self._state[0], time.monotonic() + GRACE_S + 2 * HEARTBEAT_S
        while not (isinstance(error, ProcessFailure) or is_user_error(error)) and time.monotonic() < end:
            try:
                reported = self._reported_failure()
            except dist.DistError:
                return self._store_failure("is gone")
            if reported:
                return reported
            silent = self._find_silent_rank(GRACE_S)
            if silent is not None:
                last_seen = self._heartbeats[silent].state
                return f"rank {silent} is gone, last seen {last_seen}; rank {self.rank} failed {state}: {error}"
            time.sleep(HEARTBEAT_S / 5)
        return str(error) if isinstance(error, ProcessFailure) else f"rank {self.rank} failed {state}: {error}"

    def _announce_exit(self) -> None:
        """Stores that this process ends. The owner of the store waits until the others have read the failure."""
        with contextlib.suppress(dist.DistError):
            self.store.set(f"{self.rank} ends", "")
            end = time.monotonic() + GRACE_S
            while self.rank == 0 and self.store_owner == RANK_0 and time.monotonic() < end:
                if all(
                    self.store.check([f"{rank} ends"])
                    for rank, last in self._heartbeats.items()
                    if last.state is not None and time.monotonic() - last.time < GRACE_S
                ):
                    break
                time.sleep(HEARTBEAT_S / 5)

    def _store_failure(self, problem: str) -> str:
        last = self._heartbeats.get(0)
        return f"the store of {self.store_owner} {problem}" + (f"; rank 0 was last seen {last.state}" if last else "")


def start_watchdog(rank: int, world: int, timeout: float) -> Watchdog:
    """A watchdog on the store at MASTER_ADDR:MASTER_PORT, which exists since the process group was created."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=max(timeout, GRACE_S)),
    )
    launcher_owns_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    store_owner = "the launcher" if launcher_owns_store else RANK_0
    return Watchdog(rank, world, timeout, dist.PrefixStore("breviary/watchdog", store), store_owner)


def is_user_error(error: Exception) -> bool:
    """Whether an error is this process's own, and its message is one for the user."""
    return isinstance(error, ValueError | OutOfMemory) or storage_message(error) is not None


def exit_after(seconds: float) -> None:
    """Ends this process after `seconds`, in case its own exit waits for a process that is gone."""
    timer = threading.Timer(seconds, lambda: os._exit(1))
    timer.daemon = True
    timer.start()


def _exit_with_error(message: str) -> None:
    """Prints the message and exits without cleanup: the main thread may wait for a process that is gone."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
