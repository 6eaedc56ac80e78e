"""Commands of this checkout in processes of their own, and what they leave: for the benchmarks of reliability."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from breviary.runtime.checkout import ROOT


def launcher(processes: int) -> list[str]:
    """The words before the name of a script: this interpreter, or torchrun of this machine."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


@contextlib.contextmanager
def started_process(command: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A process group of its own, whose output goes to `log`; killed at the end."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts background jobs; children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=_environment()
        )
    try:
        yield process, log
    finally:
        kill_all(process)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all that it started: torchrun gives each rank a session of its own."""
    found, parents = [process.pid], [process.pid]
    while parents:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", ",".join(map(str, parents))], capture_output=True, text=True, check=False
        )
        parents = [int(pid) for pid in listed.stdout.split()]
        found += parents
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def run_to_end(command: Sequence[str], home: Path) -> Path:
    """Runs a command to its end; returns the newest folder in `home`. Raises RuntimeError where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return folders_in(home)[-1]


# ---- what they leave ----


def folders_in(home: Path) -> list[Path]:
    """Run or evaluation folders in `home`, oldest first."""
    return sorted((path for path in home.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)


def read_losses(folder: Path) -> dict[int, float]:
    """{step: loss} of a run folder."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of the predictions in `folder`."""
    files = sorted(folder.rglob("predictions.jsonl"), key=lambda path: path.stat().st_mtime)
    text = files[-1].read_text(encoding="utf-8") if files else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
