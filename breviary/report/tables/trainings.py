"""Trainings of a table's cells, and the processes and logs of its steps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breviary.report.tables.cells import ENTRY_POINTS, command_words
from breviary.runtime.checkout import ROOT
from breviary.runtime.spelling import setting

LOGS = "logs"  # of a table's folder

Evaluate = Callable[[list[str], list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Tools:
    """What a table is computed with; tests replace it.

    launch    (command, further words, log) -> exit code: a process that writes its output to the log
    finished  (words of train.py) -> the newest finished run of that configuration, or None
    evaluate  (words of eval.py, variants) -> results of its own reader, then of each variant, each with its `folder`
    further   (results, metric) -> {"value", "low", "high"} of a metric that results do not hold
    say       prints a line
    """

    launch: Callable[[str, list[str], Path], int]
    finished: Callable[[list[str]], Path | None]
    evaluate: Evaluate
    further: Callable[[Mapping[str, Any], str], dict[str, float]]
    say: Callable[[str], None] = print


class CellFailed(Exception):
    """A step of a cell failed: the reason in one line, and the log with all of it."""

    is_training = False  # all rows of that training fail with it

    def __init__(self, reason: str, log: Path | None = None):
        super().__init__(reason)
        self.reason, self.log = reason, log


class Trainings:
    """The trainings of one call: each is started at most once, stage after stage.

    folder  of the table, for logs; outputs  paths.outputs of the runs
    """

    def __init__(self, folder: Path, outputs: str, tools: Tools):
        self.folder, self.outputs, self.tools = folder, outputs, tools
        self._done: dict[tuple[str, ...], Path | CellFailed] = {}

    def run_of(self, commands: Sequence[str]) -> Path | None:
        """The run of the last command, each of which begins from the run of the one before; None for no commands.

        Raises: CellFailed, again for every caller of the same commands.
        """
        start: Path | None = None
        for i in range(len(commands)):
            key = tuple(commands[: i + 1])
            if key not in self._done:
                try:
                    self._done[key] = self._train(commands[i], start)
                except CellFailed as failed:
                    failed.is_training = True
                    self._done[key] = failed
            found = self._done[key]
            if isinstance(found, CellFailed):
                raise found
            start = found
        return start

    def _train(self, command: str, start: Path | None) -> Path:
        """The finished run of a training command; trains where there is none, and goes on with an unfinished one."""
        words = command_words(command) + ([setting("init_from", str(start))] if start else [])
        words.append(setting("paths.outputs", self.outputs))
        try:
            run = self.tools.finished(words)
        except ValueError as error:
            raise CellFailed(first_line(error)) from error
        if run is not None:
            self.tools.say(f"  trained: {run}")
            return run
        name = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), "training")
        log = log_file(self.folder, "train", f"{name}_{len(self._done) + 1}")
        self.tools.say(f"  trains: {command}; log: {log}")
        launch(self.tools, command, [*words, "resume=auto"], log)
        run = self.tools.finished(words)
        if run is None:
            raise CellFailed("the training ended without a finished run of its configuration", log)
        return run


# ------------------------------------------------------------------ processes


def launch(tools: Tools, command: str, words: list[str], log: Path) -> None:
    """Runs a command to its end. Raises: CellFailed where its exit code is not 0."""
    code = tools.launch(command, words, log)
    if code:
        what = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise CellFailed(f"{last_error(log)} ({what})", log)


def start_process(command: str, words: Sequence[str], log: Path) -> int:
    """Runs a command line of a table in a process of its own; its output is added to the log. Returns the exit code.

    words  settings of train.py in place of those in the command; [] = those of the command
    The process ends with this one: a training saves a checkpoint first, from which the next call goes on.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {command}\n")
        file.flush()
        process = subprocess.Popen(
            process_words(command, words), stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent
        )
        try:
            return process.wait()
        except BaseException:  # an interruption of the table
            process.terminate()
            process.wait()
            raise


def process_words(command: str, words: Sequence[str]) -> list[str]:
    """The words of a process: this Python in place of `python` and torchrun, scripts of this checkout.

    Raises: ValueError for a command that is neither.
    """
    given = shlex.split(command)
    at = next((i for i, word in enumerate(given) if word.endswith(".py")), None)
    if at is None or given[0] not in ("python", "torchrun"):
        raise ValueError(f"{command!r}: must begin with python or torchrun and name a script")
    start = ["-m", "torch.distributed.run", *given[1:at]] if given[0] == "torchrun" else given[1:at]
    rest = list(words) if given[at] in ENTRY_POINTS and words else given[at + 1 :]
    return [sys.executable, *start, str(ROOT / given[at]), *rest]


def _end_with_parent() -> None:
    """In the child, before its program: a killed table leaves no training behind, which the next call would resume."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            os._exit(1)


# ------------------------------------------------------------------ logs


def log_file(folder: Path, kind: str, name: str) -> Path:
    """The log of one step; its folder exists afterwards."""
    path = folder / LOGS / f"{kind}_{name.replace('/', '_')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def logged(log: Path) -> Iterator[None]:
    """Around work in this process: its output goes to the log; an error becomes CellFailed, its traceback logged."""
    with log.open("a", encoding="utf-8") as file:
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        except (Exception, SystemExit) as error:  # whatever it is: the other cells go on, and the log has all of it
            traceback.print_exc(file=file)
            raise CellFailed(first_line(error), log) from error


def last_error(log: Path) -> str:
    """The last line of a log that states an error, else its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return (errors or lines or ["ended without output"])[-1].removeprefix("error: ")[:300]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, else its class."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
