"""Sweeps (train.py -m): the folder outputs/sweeps/NAME lists the runs of a sweep, and stands for them in report.py.

Each run is listed in a file of its own, so that jobs of one sweep may run at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from breviary.config.cli.run_names import FINISHED, LISTED
from breviary.runtime.distributed import print_rank0, rank
from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line


def current_sweep() -> Path | None:
    """The folder of the sweep of which this process runs a job; None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def resume_sweep(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Sets resume=auto in a job of a sweep whose command line does not set `resume`, in place.

    The same command thus goes on with a sweep that was interrupted: TrainingSession.open skips its finished runs.
    """
    if current_sweep() is not None and not any(word.lstrip("+").startswith("resume=") for word in overrides):
        cfg.resume = "auto"


def list_run(sweep: Path, run: Path) -> None:
    """Lists a run in the sweep's folder; on rank 0 only."""
    if rank() == 0:
        settings = list(HydraConfig.get().overrides.task)
        write_json(sweep / f"{run.name}{LISTED}", {"run": os.path.relpath(run, sweep), "settings": settings})


def announce_job(sweep: Path) -> None:
    """Prints which settings this job of a sweep has: its lines follow one another in one terminal."""
    hydra = HydraConfig.get()
    settings = [word for word in hydra.overrides.task if not word.startswith("sweep=")]
    print_rank0(f"sweep {sweep.name}, job {hydra.job.num + 1}: {' '.join(settings)}")


def sweep_labels(sweep: Path) -> dict[Path, str]:
    """{run: its settings that not all runs of the sweep have} of a sweep's folder, in the order of their start."""
    listed = [json.loads(file.read_bytes()) for file in sorted(sweep.glob(f"*{LISTED}"))]
    shared = set.intersection(*(set(one["settings"]) for one in listed)) if listed else set()
    labels = {}
    for one in listed:
        run = Path(os.path.normpath(sweep / one["run"]))
        if run.is_dir():
            labels[run] = " ".join(word for word in one["settings"] if word not in shared) or run.name
    return labels


def with_listed_runs(folder: Path) -> list[Path]:
    """The folder, and the runs that the sweeps in it list."""
    files = sorted(folder.rglob(f"*{LISTED}")) if folder.is_dir() else []
    runs = [file.parent / json.loads(file.read_bytes())["run"] for file in files]
    return [folder, *(Path(os.path.normpath(run)) for run in runs if run.is_dir())]


class SweepStart(Callback):
    """Remembers the folder of the sweep that this process starts, for `announced_sweep`. Hydra makes and calls it."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """As Hydra's Callback."""
        SweepStart.folder = Path(config.hydra.sweep.dir)


@contextlib.contextmanager
def announced_sweep() -> Iterator[None]:
    """Around a command: its last line, also after an error, names the sweep's folder and what to do with it."""
    SweepStart.folder = None
    try:
        yield
    finally:
        folder = SweepStart.folder
        runs: list[Path] = with_listed_runs(folder)[1:] if folder is not None else []
        if runs:
            done = sum((run / FINISHED).is_file() for run in runs)
            rest = "" if done == len(runs) else "; the same command goes on with the others"
            print_rank0(f"sweep {folder}: {done} of {len(runs)} runs finished{rest}")
            print_rank0(next_line(command("scripts/report.py", folder)))
