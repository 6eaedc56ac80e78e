"""Resolves the configurations of an evaluation: the run, other runs, variants and baselines, one per table row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from breviary.config.cli.run_names import find_run
from breviary.config.cli.words import check_settings
from breviary.config.compose import chosen_compressor, compose_config, load_choice, resolve_choices
from breviary.config.defaults import release_defaults
from breviary.config.errors import ConfigError, collect_errors, raise_problems
from breviary.config.keys import CONFIGS, allow_run_keys, drop_unused_keys, flat_keys, suggest
from breviary.evaluation.selection import SELECTION
from breviary.runs.checkpoints import best_checkpoint, last_checkpoint
from breviary.runs.folders import load_config, normalise_run_path

CHECKPOINTS = {"best": best_checkpoint, "last": last_checkpoint}
# Keys that change no answer: an evaluation with other values is the same evaluation.
NOT_HASHED = ("resume", "sweep", "paths", "hydra", "variants", "compare", "baselines", "fresh", "train", "init_from")
# Keys of eval.yaml that a run's configuration does not have.
EVAL_KEYS = ("run", "checkpoint", "split", *SELECTION, "variants", "compare", "baselines", "fresh")
# Sections that a variant may change; weights and data are those of the reader.
VARIANT_SECTIONS = ("compressor", "generation")


def compose_evaluation(overrides: Sequence[str]) -> DictConfig:
    """configs/eval.yaml with overrides such as run=FOLDER, resolved with the configuration of that run."""
    words, problems = check_settings(overrides, is_multirun=False)
    raise_problems(problems)
    cfg = compose_config("eval", allow_run_keys(words))
    if cfg.run is None:
        drop_unused_keys(cfg, words)  # an experiment's, for another compressor than the chosen one
        cfg.reader = cfg.reader or chosen_compressor(words)
    return resolve_run_config(cfg, words)


def resolve_command_line(cfg: DictConfig, own_keys: tuple[str, ...] = ()) -> DictConfig:
    """What @hydra.main composed for eval.py or a command based on it, resolved with the configuration of its run.

    own_keys  keys of the command itself, removed from the result
    """
    with open_dict(cfg):
        for key in own_keys:
            del cfg[key]
    overrides = [word for word in resolve_choices(cfg) if word.lstrip("+~").split("=", 1)[0] not in own_keys]
    return resolve_run_config(cfg, overrides)


def resolve_run_config(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The run's configuration with the overrides applied and the keys of eval.yaml added; `cfg` itself without a run.

    With another compressor, `reader` (the row name) is that compressor's YAML. A setting that followed from another one
    in the run follows the overrides: prompt, answer limit, stop rule and truncation of the data set, the space before a
    chat's answer.
    Raises: ConfigError for overrides of keys that the run does not have.
    """
    if cfg.run is None:
        return cfg
    run = str(find_run(cfg.run, cfg.paths.outputs, "run="))  # of a sweep's values; else check_settings named it
    resolved = load_config(run)
    keys = [override.lstrip("+~").split("=", 1)[0] for override in overrides]
    with open_dict(resolved):
        unknown = []
        release_defaults(resolved, keys)
        for key in keys:
            if key.split(".")[0] in resolved:
                OmegaConf.update(resolved, key, OmegaConf.select(cfg, key), merge=False)
            elif key not in EVAL_KEYS:
                unknown.append(f"{key}: no key of a run's configuration{suggest(key, flat_keys(resolved))}")
        raise_problems(unknown)
        if "reader" not in keys:
            resolved.reader = chosen_compressor(overrides) or resolved.reader
        for key in EVAL_KEYS:
            resolved[key] = cfg[key]
        resolved.run = normalise_run_path(run)
        resolved.paths = cfg.paths
    return resolved


def require_single_reader(cfg: DictConfig, instead: str) -> DictConfig:
    """Returns `cfg`. Raises ConfigError where it sets further readers; `instead` names the alternative."""
    raise_problems(f"{key}={list(cfg[key])}: {instead}" for key in ("variants", "compare") if cfg[key])
    return cfg


def baseline_config(cfg: DictConfig, name: str) -> DictConfig:
    """The untouched backbone with compressor NAME on the same data."""
    other = cfg.copy()
    with open_dict(other):
        other.compressor = load_choice(CONFIGS / "compressor" / f"{name}.yaml")
        other.decoder.train, other.reader, other.run = "frozen", name, None
    return other


def variant_config(cfg: DictConfig, changes: DictConfig) -> DictConfig:
    """The same weights under other settings, which the row's name lists. `compressor` takes another YAML.

    Raises: ValueError for keys that a variant cannot set.
    """
    if not OmegaConf.is_dict(changes) or not changes:
        raise ValueError(f"variants: {changes} names no change; each is like {{compressor.ratio: 8}}")
    other, problems = cfg.copy(), []
    changes = changes.copy()
    if "compressor" in changes:
        with open_dict(other), open_dict(changes):
            other.reader = str(changes.pop("compressor"))
            other.compressor = compressor_choice(other.reader, "variants")
    for key, value in changes.items():
        if str(key).split(".")[0] not in VARIANT_SECTIONS or "." not in str(key):
            problems.append(
                f"variants: {key}: a variant changes keys of {' and '.join(VARIANT_SECTIONS)}, "
                "e.g. {compressor.ratio: 8}, {compressor: snapkv}"
            )
        elif key not in flat_keys(other):
            problems.append(f"variants: {key}: unknown key{suggest(str(key), flat_keys(other))}")
        else:
            OmegaConf.update(other, str(key), value, merge=False)
    if problems:
        raise ConfigError(problems)
    settings = (f"{str(key).partition('.')[2]}={value}" for key, value in changes.items())
    other.reader = ", ".join([other.reader, *settings])
    return other


def compressor_choice(name: str, key: str) -> DictConfig:
    """The content of configs/compressor/NAME.yaml. Raises: ValueError where there is none; `key` named it."""
    known = sorted(file.stem for file in (CONFIGS / "compressor").glob("*.yaml"))
    if name not in known:
        raise ValueError(f"{key}: no compressor {name}{suggest(name, known)}; there are: {', '.join(known)}")
    return load_choice(CONFIGS / "compressor" / f"{name}.yaml")


def other_run_config(cfg: DictConfig, run: str) -> DictConfig:
    """Another run's reader on the data and generation settings of this evaluation.

    Its prompt is its own where it was set by hand, else that of the data set.
    """
    run = str(find_run(run, cfg.paths.outputs, "compare="))
    other = load_config(run)
    with open_dict(other):
        release_defaults(other, ["dataset"])
        for key in ("dataset", "generation", "eval_batch_size", "paths", *EVAL_KEYS):
            other[key] = cfg[key]
        other.run = normalise_run_path(run)
    return other


def table_rows(cfg: DictConfig, problems: list[str]) -> list[DictConfig]:
    """One configuration per row: the reader, its variants, the runs to compare, the untouched baselines.

    Appends messages to `problems` for rows that cannot be made.
    """
    others = [collect_errors(problems, other_run_config, cfg, run) for run in cfg.compare]
    variants = [collect_errors(problems, variant_config, cfg, changes) for changes in cfg.variants]
    readers = [cfg, *(other for other in [*variants, *others] if other is not None)]
    trained = {reader.reader for reader in readers if reader.run}
    for name in cfg.baselines:
        if collect_errors(problems, compressor_choice, name, "baselines") is None:
            continue
        other = baseline_config(cfg, name)
        if name in trained:
            other.reader = f"{name} (untrained)"
        if cfg.run or cfg.reader != name:
            readers.append(other)
    return readers


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint that `cfg.checkpoint` selects from the reader's run; None without a run."""
    return CHECKPOINTS[cfg.checkpoint](cfg.run) if cfg.run else None


def evaluation_home(cfg: DictConfig, reader: DictConfig) -> Path:
    """The folder of all evaluations of one row: <run>/eval, or outputs/eval without a run.

    cfg     the evaluation's own reader: rows without a run (baselines) are stored with it
    reader  the row
    """
    run = reader.run or cfg.run
    return Path(run) / "eval" if run else Path(cfg.paths.outputs) / "eval"
