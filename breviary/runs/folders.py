"""Run folders: outputs/<name>/<utc>_<id>/, named by rank 0, never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import YAMLError

from breviary.config.cli.run_names import CONFIG, FINISHED
from breviary.config.keys import flat_keys
from breviary.runs.checkpoints import checkpoint_to_resume, checkpoints
from breviary.runs.environment import git_state, read_commit, write_environment
from breviary.runs.schema import FORMER_TARGETS, SCHEMA, rename_targets, upgrade_config, without_added
from breviary.runtime.checkout import ROOT
from breviary.runtime.distributed import call_on_rank_zero, print_rank0
from breviary.runtime.files import read_object, write_json, write_text
from breviary.runtime.locks import LOCK, locked, release_lock, take_lock
from breviary.runtime.spelling import hydra_value, override

# Keys that may change when a run is resumed.
NOT_COMPARED = ("resume", "sweep", "paths", "hydra")

INPUTS = "inputs.json"

START_WAIT = 60  # seconds for which a start waits for others that look for the same unfinished run

# What a run is trained from, as stored in INPUTS, and in the words of a message. `tokens` stays last.
INPUT_NAMES = {
    "train": "other training data",
    "validation": "other validation data",
    "backbone": "another backbone",
    "encoder": "another backbone of the encoder",
    "init_from": "other initial weights",
    "tokens": "another tokenizer",
}


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


def open_run(cfg: DictConfig, inputs: Mapping[str, str | None] | None = None) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to resume from, or None; equal on all ranks.

    cfg.resume  never: a new folder | auto: the newest unfinished run of an equal configuration and equal inputs, else a
                new folder | a run folder
    inputs      hashes of what the run is trained from, keys of INPUT_NAMES; stored in a new folder. None = not known
    The folder is locked until `unlock_run` or the end of the process.
    Raises: ValueError when the run folder has no checkpoint, or was trained on other data; LockedError where another
    process trains it, with resume=auto also one that has no checkpoint yet.
    """
    return call_on_rank_zero(lambda: _open_run(cfg, inputs))


def finished_run(cfg: DictConfig, inputs: Mapping[str, str | None]) -> Path | None:
    """The newest finished run of an equal configuration and equal inputs, None where there is none; equal on all ranks.

    Prints the folder, and its commit where that is not the present one.
    """
    return call_on_rank_zero(lambda: _finished_run(cfg, inputs))


def _finished_run(cfg: DictConfig, inputs: Mapping[str, str | None]) -> Path | None:
    for folder in sorted((Path(cfg.paths.outputs) / cfg.name).glob("*_*"), reverse=True):
        if not (folder / CONFIG).is_file() or not (folder / FINISHED).exists() or not checkpoints(folder):
            continue
        if read_inputs(folder) == dict(inputs) and _settings_hash(load_config(folder)) == _settings_hash(cfg):
            stored, present = read_commit(folder), git_state(ROOT)[0]
            other = f" (at commit {str(stored)[:12]}, now {str(present)[:12]})" if stored != present else ""
            print_rank0(
                f"skipped: {folder} is finished{other}, with this configuration and data; resume=never trains it anew"
            )
            return folder
    return None


def _open_run(cfg: DictConfig, inputs: Mapping[str, str | None] | None) -> tuple[Path, Path | None]:
    home = Path(cfg.paths.outputs) / cfg.name
    if cfg.resume == "never":
        return _begin_run(home, cfg, inputs), None
    if cfg.resume == "auto":
        home.mkdir(parents=True, exist_ok=True)
        # Of several processes that start at once, one begins the run and the others find its lock.
        with locked(home / LOCK, str(home), "give the command again", wait=START_WAIT):
            folder = _newest_unfinished(home, cfg, inputs)
            if folder is None:
                return _begin_run(home, cfg, inputs), None
        return folder, checkpoint_to_resume(folder, print_rank0)
    folder = Path(cfg.resume)
    if folder.is_dir():  # else there is no checkpoint either, which the next line reports
        lock_run(folder)
    checkpoint = checkpoint_to_resume(folder, print_rank0)
    stored = read_inputs(folder)
    if stored and inputs and stored["train"] != inputs["train"]:
        raise ValueError(
            f"resume={folder}: that run has other training data (sha256 {stored['train']}, here "
            f"{inputs['train']}); resume with its data, or start a new run from its weights: init_from={folder}"
        )
    other = changed_settings(load_config(folder), cfg)
    if other:
        print_rank0(
            f"warning: {folder} goes on with other settings than it began with, and its {CONFIG} keeps stating the "
            f"first: {', '.join(other)}"
        )
    return folder, checkpoint


def _begin_run(home: Path, cfg: DictConfig, inputs: Mapping[str, str | None] | None) -> Path:
    """A new folder in `home`, locked, with configuration, environment and inputs."""
    folder = _new_folder(home)
    lock_run(folder)
    write_run_metadata(folder, cfg)
    if inputs:
        write_json(folder / INPUTS, inputs)
    return folder


def lock_run(folder: Path) -> bool:
    """Keeps other processes from training in a run folder, until `unlock_run` or the end of this process.

    Returns False where this process has the lock already. Raises: LockedError naming the process that has it.
    """
    advice = "wait until it ends, or start another run: resume=never"
    return take_lock(folder / LOCK, f"run {folder}", advice)


def unlock_run(folder: Path) -> None:
    """Releases the lock of this process."""
    release_lock(folder / LOCK)


def changed_settings(began: DictConfig, cfg: DictConfig) -> list[str]:
    """ "KEY=VALUE (was VALUE)" of each key that both configurations have, with other values; paths do not count."""
    texts, known = [], set(flat_keys(began))
    for key in flat_keys(cfg):
        old, new = OmegaConf.select(began, key, default=None), OmegaConf.select(cfg, key)
        if key.split(".")[0] in NOT_COMPARED or OmegaConf.is_dict(new) or key not in known or old == new:
            continue
        texts.append(f"{override(key, _plain(new))} (was {hydra_value(_plain(old))})")
    return texts


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def write_run_metadata(folder: Path, cfg: DictConfig) -> None:
    """Writes the resolved configuration, and the environment: commit, versions, hardware."""
    write_config(folder, cfg)
    write_environment(folder)


def finish_run(folder: Path) -> None:
    """Marks a run as complete, so that resume=auto ignores it."""
    write_text(folder / FINISHED, "")


_BACKBONE_MARK = "BREVIARYBACKBONE"  # in place of ${backbone} while all other references are resolved


def write_config(folder: Path, cfg: DictConfig, resolve: bool = True) -> None:
    """Writes `cfg` as a run folder's config.yaml, with the schema of this version.

    A key of the data set that is the backbone (dataset.counter) stays a reference, which follows an export's backbone.
    """
    dataset = cfg.get("dataset") or {}
    shared = [key for key, value in dataset.items() if OmegaConf.is_dict(value) and value == cfg.get("backbone")]
    if resolve and shared:
        cfg = cfg.copy()
        for key in shared:
            OmegaConf.update(cfg, f"dataset.{key}", _BACKBONE_MARK, merge=False, force_add=True)
    text = OmegaConf.to_yaml(cfg, resolve=resolve).replace(_BACKBONE_MARK, "${backbone}")
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


def read_inputs(folder: str | Path) -> dict[str, str | None] | None:
    """Hashes of what a run was trained from; None where it stores none (runs of earlier versions)."""
    file = Path(folder) / INPUTS
    return read_object(file) if file.is_file() else None


def _newest_unfinished(parent: Path, cfg: DictConfig, inputs: Mapping[str, str | None] | None) -> Path | None:
    """The newest unfinished run to continue, locked. Prints why a similar run is not continued.

    Raises: LockedError where another process trains it at present, with or without a checkpoint.
    """
    for folder in sorted(parent.glob("*_*"), reverse=True):
        if not (folder / CONFIG).is_file() or (folder / FINISHED).exists():
            continue
        if not checkpoints(folder) and not (folder / LOCK).exists():
            continue
        config, stored = load_config(folder), read_inputs(folder)
        if stored is None or inputs is None:
            if config_hash(config) == config_hash(cfg) and _lock_unfinished(folder):
                if inputs is not None:
                    print_rank0(f"resume=auto: {folder} is of an earlier version, which stored no hash of its data")
                return folder
        elif _settings_hash(config) == _settings_hash(cfg):
            changed = [words for key, words in INPUT_NAMES.items() if stored.get(key) != inputs.get(key)]
            if not changed:
                if _lock_unfinished(folder):
                    return folder
                continue
            # Other data have other tokens: the tokenizer is blamed only where the data are equal.
            reasons = changed[:-1] if len(changed) > 1 and changed[-1] == INPUT_NAMES["tokens"] else changed
            print_rank0(f"resume=auto: {folder} is not continued, it has {', '.join(reasons)}; this is another run")
    return None


def _lock_unfinished(folder: Path) -> bool:
    """Locks a run; whether it can be continued, which its former owner may have decided meanwhile."""
    is_new = lock_run(folder)
    if checkpoints(folder) and not (folder / FINISHED).exists():
        return True
    if is_new:
        unlock_run(folder)
    return False


def _settings_hash(cfg: DictConfig) -> str:
    """`config_hash` without the paths of the inputs, whose contents `read_inputs` compares."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for section, key in (("backbone", "path"), ("compressor", "encoder")):
            if cfg[section].get(key):
                cfg[section][key] = "elsewhere"
    return config_hash(cfg, without=(*NOT_COMPARED, "dataset", "init_from"))
