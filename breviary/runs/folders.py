"""Run folders: outputs/<name>/<utc>_<id>/, named by rank 0, never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from breviary.runs.checkpoints import checkpoints, last_checkpoint
from breviary.runs.environment import write_environment
from breviary.runs.schema import FORMER_TARGETS, SCHEMA, rename_targets, upgrade_config, without_added
from breviary.runtime.distributed import broadcast_from_rank_zero, rank
from breviary.runtime.files import write_text

# Keys that may change when a run is resumed.
NOT_COMPARED = ("resume", "paths", "hydra")

FINISHED = "finished"

CONFIG = "config.yaml"


def config_hash(cfg: DictConfig, without: tuple[str, ...] = NOT_COMPARED, extra: str = "") -> str:
    """First 12 hex digits of the sha256 of the resolved configuration without the keys `without`, and of `extra`."""
    # Classes are hashed by the names of schema 2, so that evaluations of earlier versions are found again.
    plain = without_added(rename_targets(OmegaConf.to_container(cfg, resolve=True), FORMER_TARGETS))
    text = json.dumps({key: value for key, value in plain.items() if key not in without}, sort_keys=True) + extra
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def normalise_run_path(run: str) -> str:
    """A run folder's path in one spelling, for hashes: relative to the working folder where it is below it, without a
    trailing slash."""
    path = Path(os.path.abspath(run))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def open_run(cfg: DictConfig) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to resume from, or None; equal on all ranks.

    cfg.resume  never: a new folder | auto: the newest unfinished run of an equal configuration, else a new folder |
                a run folder
    Raises: ValueError when the run folder has no checkpoint.
    """
    if rank() != 0:
        return broadcast_from_rank_zero(None)
    home = Path(cfg.paths.outputs) / cfg.name
    folder, checkpoint = None, None
    if cfg.resume == "auto":
        folder, checkpoint = _newest_unfinished(home, config_hash(cfg))
    elif cfg.resume != "never":
        folder, checkpoint = Path(cfg.resume), last_checkpoint(cfg.resume)
    if folder is None:
        folder = _new_folder(home)
        write_run_metadata(folder, cfg)
    return broadcast_from_rank_zero((folder, checkpoint))


def write_run_metadata(folder: Path, cfg: DictConfig) -> None:
    """Writes the resolved configuration, and the environment: commit, versions, hardware."""
    write_config(folder, cfg)
    write_environment(folder)


def finish_run(folder: Path) -> None:
    """Marks a run as complete, so that resume=auto ignores it."""
    write_text(folder / FINISHED, "")


def write_config(folder: Path, cfg: DictConfig, resolve: bool = True) -> None:
    """Writes `cfg` as a run folder's config.yaml, with the schema of this version."""
    text = OmegaConf.to_yaml(cfg, resolve=resolve)
    write_text(folder / CONFIG, f"schema: {SCHEMA}  # of run folders, see breviary/runs/schema.py\n{text}")


def load_config(folder: str | Path) -> DictConfig:
    """The configuration of a run or exported folder, upgraded to the schema of this version.

    A backbone.path that begins with ./ is relative to the folder.
    Raises: ValueError when there is no configuration, or it cannot be read.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise ValueError(f"run={folder}: no run folder (no {CONFIG} in it); give one that train.py printed")
    try:
        cfg = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: damaged, no YAML ({' '.join(str(error).split())})") from error
    missing = [name for name in ("backbone", "compressor", "engine") if not OmegaConf.is_dict(cfg) or name not in cfg]
    if missing:
        raise ValueError(f"{file}: not a run's configuration, missing: {', '.join(missing)}")
    cfg = upgrade_config(cfg, str(file))
    if str(cfg.backbone.get("path", "")).startswith("./"):
        cfg.backbone.path = str(Path(folder).absolute() / cfg.backbone.path)
    return cfg


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    folder = parent / f"{stamp}_{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    return folder


def _newest_unfinished(parent: Path, wanted: str) -> tuple[Path | None, Path | None]:
    for folder in sorted(parent.glob("*_*"), reverse=True):
        unfinished = (folder / CONFIG).is_file() and not (folder / FINISHED).exists()
        if unfinished and checkpoints(folder) and config_hash(load_config(folder)) == wanted:
            return folder, checkpoints(folder)[-1]
    return None, None
