"""A watch over processes that wait for each other: one that dies, hangs or goes wrong ends all of them, with its name.

Each process tells where it stands, several times a second, on the store that the launcher or rank 0 keeps, and looks where the
others stand. What fails is told once, as a sentence, and every process ends with it. Nothing of this touches the model's
computing: threads of its own, a connection of its own, a few hundred bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

BEAT = 0.25  # seconds between two signs of life

GRACE = 12 * BEAT  # a process that gave none for so long, when something has failed, is gone

LAST_RESORT = 10.0  # seconds after which a process that has failed is ended, whatever it still waits for

FAILURE = "failure"

KEEPER = "rank 0"  # keeps the store, unless the launcher does


class ProcessFailure(RuntimeError):
    """What ended the run, as a sentence that names the rank and where it stood."""


class Watchdog:
    """Of one process over itself and `world` - 1 others.

    timeout  seconds: a process that gives no sign of life for so long, or computes one cell for so long, hangs
    store    where processes tell; one of its own, as a store serves one call at a time
    keeper   who keeps the store, for people

    As a context manager: what is raised within it ends all processes, and names who failed first.
    """

    def __init__(self, rank: int, world: int, timeout: float, store: Any, keeper: str = KEEPER):
        self.rank, self.world, self.timeout, self.store, self.keeper = rank, world, timeout, store, keeper
        self._where: tuple[str, bool, float] = ("before the first text", False, time.monotonic())
        self._seen: dict[
            int, tuple[bytes, str | None, float]
        ] = {}  # by rank: its last sign, where it stood, when it came
        self._beats, self._answered = 0, time.monotonic()
        self._ended, self._fails = (
            threading.Event(),
            threading.Event(),
        )  # the latter: the main thread tells of it itself
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True) for run in (self._looks, self._waits)
        ]

    def set_state(self, where: str, is_computing: bool = False) -> None:
        """This process begins something; with `computes` it is not to take longer than the timeout, as it waits for nobody."""
        self._where = where, is_computing, time.monotonic()

    def __enter__(self) -> Watchdog:
        self._exit_with(self._where[0])
        self._answered = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            self._fails.set()
            exit_after(LAST_RESORT)
            sentence = self._agreed(self._reason(error))
        self._ended.set()
        for thread in self._threads:
            thread.join(GRACE)
        if error is None:
            with contextlib.suppress(dist.DistError):
                self._exit_with(None)  # the others need not look for it any more
        elif isinstance(error, Exception):
            self._leave()
            if not isinstance(error, ValueError):  # that one is told to people as it is
                raise ProcessFailure(sentence) from error

    # -------------------------------------------------------------- the threads

    def _looks(self) -> None:
        """Tells and looks, until there is a failure to end with."""
        while not self._ended.wait(BEAT):
            try:
                sentence = self._told() or self._found()
            except dist.DistError:
                sentence = self._lost("is gone")
            self._answered = time.monotonic()
            if sentence and not self._fails.is_set() and not self._ended.is_set():
                self._leave()
                _end(sentence)

    def _waits(self) -> None:
        """Ends the process where the other thread gets no answer: a store whose process hangs keeps it waiting."""
        while not self._ended.wait(BEAT):
            if time.monotonic() - self._answered > self.timeout and not self._fails.is_set():
                _end(self._lost(f"gave no answer for {self.timeout:g} s (engine.timeout)"))

    def _found(self) -> str | None:
        """What fails as seen from here."""
        self._exit_with(self._where[0])
        self._look()
        where, computes, since = self._where
        if computes and time.monotonic() - since > self.timeout:
            return self._agreed(f"rank {self.rank} hangs: for {self.timeout:g} s (engine.timeout) {where}")
        silent = self._silent(self.timeout)
        if silent is None:
            return None
        return self._agreed(
            f"rank {silent} hangs or is gone: no sign of life for {self.timeout:g} s (engine.timeout), last seen "
            f"{self._seen[silent][1]}"
        )

    def _exit_with(self, where: str | None) -> None:
        self._beats += 1
        self.store.set(str(self.rank), json.dumps([self._beats, where]))

    def _look(self) -> None:
        """Where the others stand; one that has never told is not there yet."""
        others = [
            rank
            for rank in range(self.world)
            if rank != self.rank and (rank in self._seen or self.store.check([str(rank)]))
        ]
        for rank, sign in zip(others, self.store.multi_get([str(rank) for rank in others]) if others else ()):
            if rank not in self._seen or self._seen[rank][0] != sign:
                self._seen[rank] = sign, json.loads(sign)[1], time.monotonic()

    def _silent(self, seconds: float) -> int | None:
        """A rank that was there, has not left, and has not told anything for so long."""
        now = time.monotonic()
        return next(
            (rank for rank, (_, where, at) in self._seen.items() if where is not None and now - at > seconds), None
        )

    # -------------------------------------------------------------- failures

    def _told(self) -> str | None:
        return self.store.get(FAILURE).decode() if self.store.check([FAILURE]) else None

    def _agreed(self, sentence: str) -> str:
        """The sentence that was told first; this one, if it is the first."""
        try:
            return self.store.compare_set(FAILURE, "", sentence).decode()
        except dist.DistError:
            return sentence

    def _reason(self, error: Exception) -> str:
        """Who failed, where this process only found an error: one that told so or has been silent, else this one."""
        where, end = self._where[0], time.monotonic() + GRACE + 2 * BEAT
        while not isinstance(error, ProcessFailure | ValueError) and time.monotonic() < end:
            try:
                told = self._told()
            except dist.DistError:
                return self._lost("is gone")
            if told:
                return told
            silent = self._silent(GRACE)
            if silent is not None:
                return (
                    f"rank {silent} is gone, last seen {self._seen[silent][1]}; rank {self.rank} found {where}: {error}"
                )
            time.sleep(BEAT / 5)
        return str(error) if isinstance(error, ProcessFailure) else f"rank {self.rank} failed {where}: {error}"

    def _leave(self) -> None:
        """Says that this process ends. Whoever keeps the store waits for the others to know why."""
        with contextlib.suppress(dist.DistError):
            self.store.set(f"{self.rank} ends", "")
            end = time.monotonic() + GRACE
            while self.rank == 0 and self.keeper == KEEPER and time.monotonic() < end:
                if all(
                    self.store.check([f"{rank} ends"])
                    for rank, (_, where, at) in self._seen.items()
                    if where is not None and time.monotonic() - at < GRACE
                ):
                    break
                time.sleep(BEAT / 5)

    def _lost(self, what: str) -> str:
        seen = self._seen.get(0)
        return f"the store of {self.keeper} {what}" + (f"; rank 0 was last seen {seen[1]}" if seen else "")


def start_watchdog(rank: int, world: int, timeout: float) -> Watchdog:
    """A watch on the store at MASTER_ADDR:MASTER_PORT, which has been there since the process group was made."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=max(timeout, GRACE)),
    )
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    return Watchdog(
        rank, world, timeout, dist.PrefixStore("breviary/watch", store), "the launcher" if of_launcher else KEEPER
    )


def exit_after(seconds: float) -> None:
    """Ends this process after so many seconds, in case that ending by itself waits for a process that is gone."""
    timer = threading.Timer(seconds, lambda: os._exit(1))
    timer.daemon = True
    timer.start()


def _end(sentence: str) -> None:
    """At once: the main thread may wait for a process that is gone."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)
