"""Run folders: outputs/<name>/<utc>_<id>/, named by rank 0, never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from datetime import datetime, timezone
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from breviary.runs.checkpoints import checkpoints, last_checkpoint
from breviary.runs.environment import write_environment
from breviary.runs.schema import FORMER_TARGETS, SCHEMA, rename_targets, upgrade_config
from breviary.runtime.distributed import broadcast_from_rank_zero, rank
from breviary.runtime.files import write_text

# What may change between a run and its resumption without making it another run.
FREE_KEYS = ("resume", "paths", "hydra")

FINISHED = "finished"

CONFIG = "config.yaml"


def config_hash(cfg: DictConfig, without: tuple[str, ...] = FREE_KEYS, extra: str = "") -> str:
    """First 12 hex digits of the sha256 of the resolved configuration without the keys `without`, and of `extra`."""
    # Classes are hashed by the names of schema 2, so that evaluations of earlier versions are found again.
    plain = rename_targets(OmegaConf.to_container(cfg, resolve=True), FORMER_TARGETS)
    text = json.dumps({key: value for key, value in plain.items() if key not in without}, sort_keys=True) + extra
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def normalise_run_path(run: str) -> str:
    """One name for a run folder however it was written, as an evaluation's hash holds it: relative where it lies below
    the working folder, without a last slash."""
    path = Path(os.path.abspath(run))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def open_run(cfg: DictConfig) -> tuple[Path, Path | None]:
    """The folder of this run and the checkpoint to go on from, or None; equal on all ranks.

    resume: never -> a new folder; auto -> the newest unfinished run of this very configuration, if any; else a run
    folder.
    Raises: ValueError when a run folder named by `resume` has no checkpoint.
    """
    chosen = None
    if rank() == 0:
        if cfg.resume == "never":
            chosen = (None, None)
        elif cfg.resume == "auto":
            chosen = _newest_unfinished(Path(cfg.paths.outputs) / cfg.name, config_hash(cfg))
        else:
            chosen = (Path(cfg.resume), last_checkpoint(cfg.resume))
        if chosen[0] is None:
            chosen = (_new_folder(Path(cfg.paths.outputs) / cfg.name), None)
            write_run_metadata(chosen[0], cfg)
    return broadcast_from_rank_zero(chosen)


def write_run_metadata(folder: Path, cfg: DictConfig) -> None:
    """Writes what says of what a run is: its resolved configuration, and where it is made."""
    write_config(folder, cfg)
    write_environment(folder)


def finish_run(folder: Path) -> None:
    """Marks a run as complete: resume=auto passes it over."""
    write_text(folder / FINISHED, "")


def write_config(folder: Path, cfg: DictConfig, resolve: bool = True) -> None:
    """Writes `cfg` as the configuration of a run folder, with the schema of this version."""
    text = OmegaConf.to_yaml(cfg, resolve=resolve)
    write_text(folder / CONFIG, f"schema: {SCHEMA}  # of run folders, see breviary/runs/schema.py\n{text}")


def load_config(folder: str | Path) -> DictConfig:
    """The configuration of a run or of an exported folder, in this version's terms.

    A backbone.path that begins with ./ is in that folder.
    Raises: ValueError when the folder has none, or one that cannot be read.
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
        raise ValueError(f"{file}: no run's configuration, it lacks {', '.join(missing)}")
    cfg = upgrade_config(cfg, str(file))
    if str(cfg.backbone.get("path", "")).startswith("./"):
        cfg.backbone.path = str(Path(folder).absolute() / cfg.backbone.path)
    return cfg


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    folder = parent / f"{stamp}_{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    return folder


def _newest_unfinished(parent: Path, wanted: str) -> tuple[Path | None, Path | None]:
    for folder in sorted(parent.glob("*_*"), reverse=True):
        unfinished = (folder / CONFIG).is_file() and not (folder / FINISHED).exists()
        if unfinished and checkpoints(folder) and config_hash(load_config(folder)) == wanted:
            return folder, checkpoints(folder)[-1]
    return None, None
