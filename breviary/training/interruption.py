"""Signals that end a training after it has saved, and the command that continues it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from breviary.runtime.spelling import override

# Ctrl-C, the end of a job, and the signal that scripts/launch/slurm.sbatch requests before a job's time ends.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class TrainingInterrupted(SystemExit):
    """A signal ended the training, which is saved. The exit code is 130 after Ctrl-C, otherwise 0."""

    def __init__(self, number: int):
        super().__init__(130 if number == signal.SIGINT else 0)


class Interruption:
    """Context manager that records the first of SIGNALS instead of ending the process. A second Ctrl-C ends it at once.

    received  number of the signal; 0 = none
    Outside the main thread, where Python sets no handlers, nothing is recorded.
    """

    def __init__(self) -> None:
        self.received = 0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            # A shell starts background jobs with SIGINT ignored: Ctrl-C is meant for another program.
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            numbers = [number for number in SIGNALS if number != signal.SIGINT or not ignored]
            self._previous = {number: signal.signal(number, self._record) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        self._previous = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process of the data loader, which inherits the handler
            return
        is_again = " Ctrl-C again ends at once." if number == signal.SIGINT else ""
        if not self.received:
            self.received = number
            text = f"{signal.Signals(number).name}: the training saves at the end of this step and ends.{is_again}\n"
            if os.environ.get("LOCAL_RANK", "0") == "0":  # the ranks of a machine share its terminal
                os.write(2, text.encode())  # not print: the signal may arrive within another print
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # not a Python handler, which a blocked collective would delay


def resume_command(folder: str | Path) -> str | None:
    """The shell command that continues run `folder`: the one that started this process, with resume=FOLDER.

    Of a sweep, the command of the whole sweep, which continues its unfinished runs.
    None where this process is not `train.py` (a test, a study, a notebook).
    """
    script, words = Path(sys.argv[0]), sys.argv[1:]
    if script.name != "train.py":
        return None
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if not is_sweep:
        words = [word for word in words if not word.lstrip("+").startswith("resume=")]
    words = [shlex.quote(word) for word in words] + ([] if is_sweep else [override("resume", str(folder))])
    return " ".join([_launcher(), str(script), *words])


def _launcher() -> str:
    """What stands before `train.py` on the command line of this process's launcher."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    if "BREVIARY_LAUNCHER" in os.environ:  # set by the script
        return os.environ["BREVIARY_LAUNCHER"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        several = (
            f" --nnodes {nodes} --node_rank {os.environ.get('GROUP_RANK', '0')} --master_addr "
            f"{os.environ.get('MASTER_ADDR')} --master_port {os.environ.get('MASTER_PORT')}"
        )
        return f"torchrun{several if nodes != '1' else ''} --nproc_per_node {local}"
    if "LOCAL_SIZE" in os.environ and "WORLD_SIZE" in os.environ:  # set by the deepspeed launcher
        return f"deepspeed --num_gpus {os.environ['LOCAL_SIZE']}"
    return _python()


def _python() -> str:
    """This interpreter as it is typed: `python` where the shell finds it by that name, else its path."""
    if (found := shutil.which("python")) and os.path.samefile(os.path.dirname(found), os.path.dirname(sys.executable)):
        return "python"
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
