"""One process at a time evaluates into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from breviary.evaluation.identity import evaluation_folder
from breviary.evaluation.results import RESULTS
from breviary.runtime.locks import LOCK, take_lock

FINISHED_WAIT = 30  # seconds: results that are there are only looked at


def lock_evaluation(home: Path, cfg: DictConfig, identity: Mapping[str, Any]) -> Path:
    """Keeps other processes from evaluating into one row's folder; returns the lock, for `release_lock`.

    Raises: LockedError naming the process that has the lock.
    """
    folder = evaluation_folder(home, cfg, identity)
    home.mkdir(parents=True, exist_ok=True)
    file = home / f"{LOCK}-{folder.parent.name}-{folder.name}"
    wait = FINISHED_WAIT if (folder / RESULTS).is_file() else None
    take_lock(file, f"evaluation {folder}", "wait until it ends: the same command then shows its results", wait)
    return file
