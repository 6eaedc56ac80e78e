"""The frame of every study: check the configuration, measure, write tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pandas import DataFrame

from breviary.config.errors import raise_problems
from breviary.evaluation.session import EvaluationSession
from breviary.runs.environment import environment
from breviary.runtime.distributed import print_rank0
from breviary.runtime.files import write_json
from breviary.studies.autoencoders import AutoencoderRunner
from breviary.studies.small_models import SmallModel
from breviary.studies.tables import read_table, write_table

Tables = dict[str, DataFrame]  # {file name: table}


@dataclass(frozen=True)
class Study:
    """One study. `run_study` calls `problems`, `measure`, `tables` and `figures` in this order.

    name      NAME.json holds the resolved configuration and the environment
    inputs    files of `measure` that `tables` and `figures` are made from
    problems  error messages about the configuration; reads no text and no weights
    measure   trains and evaluates: the measured tables
    tables    the derived tables
    figures   writes the figures, each with the CSV of its numbers, from (folder, measured tables, derived tables)
    counts    numbers for NAME.json, from the measured tables
    """

    name: str
    inputs: tuple[str, ...]
    problems: Callable[[DictConfig], list[str]]
    measure: Callable[[DictConfig, AutoencoderRunner], Tables]
    tables: Callable[[DictConfig, Tables], Tables]
    figures: Callable[[Path, Tables, Tables], None]
    counts: Callable[[Tables], dict[str, int]]


def run_study(study: Study, cfg: DictConfig, train: Callable[[DictConfig], Path], session: EvaluationSession) -> None:
    """Runs a study into the folder cfg.output; with cfg.tables only derived tables and figures, from the files there.

    train    trains one run of a composed configuration and returns its folder (train.train)
    session  evaluation session of the study's readers
    Raises: ConfigError for a wrong configuration, or where cfg.tables is set and a measured table is missing.
    """
    folder = Path(cfg.output)
    if cfg.tables:
        raise_problems(
            f"tables=true: {folder / name} does not exist; run the study once without tables=true"
            for name in study.inputs
            if not (folder / name).is_file()
        )
    else:
        raise_problems(study.problems(cfg))
        started = environment()
        measured = study.measure(cfg, AutoencoderRunner(cfg, train, session))
        for name, table in measured.items():
            write_table(folder / name, table)
        write_provenance(folder / f"{study.name}.json", cfg, started, study.counts(measured))
    inputs = {name: read_table(folder / name) for name in study.inputs}
    tables = study.tables(cfg, inputs)
    for name, table in tables.items():
        write_table(folder / name, table)
    study.figures(folder, inputs, tables)
    print_rank0(f"{folder}: {', '.join([*inputs, *tables])}, figures")


def write_provenance(file: Path, cfg: DictConfig, started: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Writes the resolved configuration without its paths, the environment at the start, and counts."""
    config = OmegaConf.to_container(cfg, resolve=True)
    del config["paths"]
    write_json(file, {"config": _with_path_keys(config, cfg.paths), "environment": started, **counts})


def _with_path_keys(value: Any, paths: DictConfig) -> Any:
    """The value with this machine's folders replaced by the keys that they come from."""
    if isinstance(value, dict):
        return {key: _with_path_keys(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_path_keys(item, paths) for item in value]
    if isinstance(value, str):
        for key in ("data", "cache", "outputs"):
            value = value.replace(str(paths[key]), f"${{paths.{key}}}")
    return value


# ------------------------------------------------------------------ checks that all studies share


def common_problems(cfg: DictConfig) -> list[str]:
    """Error messages for the keys that all studies have."""
    problems = SmallModel(**cfg.model).problems("model")
    for key, example in (("tokens", 64), ("resamples", 10000)):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            problems.append(f"{key}={cfg[key]}: must be a whole number of at least 1, e.g. {example}")
    for rate in cfg.rates if "rates" in cfg else [cfg.rate]:
        if not isinstance(rate, int) or rate < 1 or rate > cfg.tokens:
            problems.append(
                f"rate {rate}: documents of tokens={cfg.tokens} would be shorter than one group; give whole "
                f"numbers from 1 to {cfg.tokens}, e.g. 4"
            )
    problems += vocabulary_problems(cfg.vocabulary, "vocabulary")
    if not cfg.seeds:
        problems.append("seeds is empty; give at least one, e.g. [0]")
    if not 0 < cfg.held_out < 1:
        problems.append(f"held_out={cfg.held_out}: must be a share of the sources above 0 and below 1, e.g. 0.4")
    return problems


def vocabulary_problems(size: Any, key: str) -> list[str]:
    """Error messages for the vocabulary size of configuration key `key`."""
    if isinstance(size, int) and size >= 258:
        return []
    return [f"{key}={size}: must be a whole number of at least 258 (all bytes and two special tokens), e.g. 1024"]
