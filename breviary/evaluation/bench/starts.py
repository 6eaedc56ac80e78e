"""Starts one command several times at once, and sends signals: who writes, who is refused, with which exit code."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from breviary.evaluation.bench.crash import COMI, MODES, TRAINING, Kills
from breviary.evaluation.bench.processes import folders_in, launcher, run_to_end, started_process
from breviary.runs.checkpoints import checkpoints

STARTS = 8
REFUSED = re.compile(r"^error: .*: process (\d+) on \S+ \(since [^)]*\) is writing it; .+$", re.MULTILINE)
LONG = ("train.steps=100000", "train.save_every=100000", "train.eval_every=100000")
PATIENCE = 900  # seconds for which starts on few cores are waited for


def starts_at_once(home: Path) -> Kills:
    """STARTS trainings of one configuration with resume=auto, of one run, and evaluations into one folder, at once.

    One of each must go on, and the others end with exit code 2 and one sentence that names it. Then a signal ends it.
    """
    found = Kills()
    training = [*launcher(1), "train.py", *TRAINING, *COMI, f"paths.outputs={home}"]
    started = [*training, *LONG, "name=started", "resume=auto"]
    _one_of(started, home / "new", signal.SIGTERM, 0, "a new run", found)
    [run] = folders_in(home / "started")
    if [path.name for path in run.parent.iterdir() if path.name == ".lock"] or (run / ".lock").exists():
        found.problems.append("a lock is left after SIGTERM")
    _one_of([*training, *LONG, "name=started", f"resume={run}"], home / "resume", signal.SIGINT, 130, "resume", found)
    if not checkpoints(run):
        found.problems.append("no checkpoint after SIGTERM and Ctrl-C")
    evaluated = run_to_end([*training, "train.steps=4", "name=evaluated"], home / "evaluated")
    words = ["dataset.test_size=20000", "eval_batch_size=1", "baselines=[]"]
    command = [*launcher(1), "eval.py", f"run={evaluated}", *words]
    _one_of(command, home / "eval", signal.SIGINT, 130, "evaluation", found)
    return found


def signals_to_ranks(home: Path) -> Kills:
    """SIGTERM and Ctrl-C to one rank of each training of two processes: all ranks save and end, and report it once."""
    found = Kills()
    for mode, (processes, overrides) in MODES.items():
        for number in (signal.SIGTERM, signal.SIGINT) if processes > 1 else ():
            name = f"{mode}_{number.name}"
            words = [*TRAINING, *overrides, *LONG, f"paths.outputs={home}", f"name={name}"]
            with started_process([*launcher(processes), "train.py", *words], home / f"{name}.log") as (process, log):
                if not _wait_for(process, log, b"\nstep "):
                    found.problems.append(f"{name}: {log.read_text(errors='replace')[-500:]}")
                    continue
                ranks = _children(process.pid)
                subprocess.run(["kill", f"-{number.value}", str(ranks[-1])], check=True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
            text = log.read_text(errors="replace")
            [run] = folders_in(home / name)
            found.kills += 1
            found.finished += 1
            if text.count(f"{number.name}: saved checkpoint-") != 1 or not checkpoints(run):
                found.problems.append(f"{name}: not saved once: {text[-500:]}")
            expected = {130} if number == signal.SIGINT else {0}
            codes = {int(code) for code in re.findall(r"exitcode\s*:\s*(-?\d+)", text)} or {process.returncode}
            if codes != expected:
                found.problems.append(f"{name}: exit codes {sorted(codes)}, not {sorted(expected)}")
    return found


def _one_of(command: Sequence[str], home: Path, number: signal.Signals, code: int, what: str, found: Kills) -> None:
    """Starts the command STARTS times; checks that all but one are refused; ends that one by a signal."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(started_process(command, home / f"{i}.log")) for i in range(STARTS)]
        end = time.monotonic() + PATIENCE
        while sum(process.poll() is None for process, _ in started) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        going = [(process, log) for process, log in started if process.poll() is None]
        if len(going) != 1:
            ends = [f"{process.poll()}: {log.read_text(errors='replace')[-200:]}" for process, log in started]
            found.problems.append(f"{what}: {len(going)} of {STARTS} go on: {ends}")
            return
        [(winner, log)] = going
        _wait_for(winner, log, b"answered" if what == "evaluation" else b"\nstep ", patience=90)
        winner.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            winner.wait(60)
    found.finished += 1
    found.kills += 1
    if winner.returncode != code:
        found.problems.append(f"{what}: {number.name} ended it with {winner.returncode}, not {code}")
    for process, log in started:
        text = log.read_text(errors="replace")
        if process is not winner and (process.returncode != 2 or REFUSED.findall(text) != [str(winner.pid)]):
            found.problems.append(f"{what}: refused with {process.returncode}: {text[-300:]}")


def _wait_for(process: subprocess.Popen, log: Path, text: bytes, patience: float = PATIENCE) -> bool:
    """Whether the process has printed `text`, before it or `patience` ended."""
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        if text in log.read_bytes():
            return True
        time.sleep(0.05)
    return False


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]
