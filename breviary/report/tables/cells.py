"""The cells of a published table: configuration and cost of their commands, and whether results are a cell's."""

from __future__ import annotations

import copy
import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from breviary.backbones.shape import known_shape
from breviary.config.cli.run_names import CONFIG, FINISHED
from breviary.config.compose import compose_config
from breviary.config.errors import raise_problems
from breviary.config.keys import CONFIGS, drop_unused_keys, validate_keys
from breviary.evaluation.facts import conditions_of, source_name, stored_training
from breviary.evaluation.resolve import EVAL_KEYS
from breviary.runs.folders import NOT_COMPARED, config_hash, load_config
from breviary.training.cost.estimate import Estimate, estimate_evaluation, estimate_training
from breviary.training.cost.parts import TextLengths

ENTRY_POINTS = {"train.py": "train", "eval.py": "eval"}
PROCESSES = ("--nproc_per_node", "--num_gpus")
TOKENS = 1.3  # of a word of generated filler
DATA_KEYS = ("max_documents", "passage_format")  # of a data set, beside its files


# ------------------------------------------------------------------ commands


def parse_command(command: str) -> tuple[str, list[str], int]:
    """(configuration, overrides without the run, processes) of a command line of train.py or eval.py.

    Raises: ValueError for any other command.
    """
    words = shlex.split(command)
    place = next((i for i, word in enumerate(words) if word in ENTRY_POINTS), None)
    if place is None:
        raise ValueError(f"{command!r}: neither train.py nor eval.py")
    processes = [int(words[i + 1]) for i, word in enumerate(words[:place]) if word in PROCESSES]
    overrides = [word for word in words[place + 1 :] if "=" in word and not word.startswith(("run=", "init_from="))]
    return ENTRY_POINTS[words[place]], overrides, processes[0] if processes else 1


def command_words(command: str) -> list[str]:
    """The settings of a command line of train.py or eval.py, without its run.  A run among them is a training's."""
    return parse_command(command)[1]


def finished_training(words: Sequence[str]) -> Path | None:
    """The newest finished run that train.py made of these words, by its configuration; None where there is none.

    The data's paths are compared, not their content: train.py itself compares that where it resumes.
    Raises: ValueError for wrong words.
    """
    cfg = training_config(words)
    for folder in sorted((Path(cfg.paths.outputs) / cfg.name).glob("*_*"), reverse=True):
        if (folder / CONFIG).is_file() and (folder / FINISHED).is_file() and _same_run(load_config(folder), cfg):
            return folder
    return None


def training_config(words: Sequence[str]) -> DictConfig:
    """The configuration that train.py makes of these words. Raises: ValueError for wrong ones."""
    cfg = compose_config("train", list(words))
    drop_unused_keys(cfg, list(words))
    cfg, problems = validate_keys(cfg)
    raise_problems(problems)
    return cfg


def _same_run(stored: DictConfig, cfg: DictConfig) -> bool:
    starts = [one.get("init_from") and Path(one.init_from).resolve() for one in (stored, cfg)]
    without = (*NOT_COMPARED, "init_from", "reader", "run")
    return starts[0] == starts[1] and config_hash(stored, without) == config_hash(cfg, without)


@functools.cache
def compose_cell(config: str, overrides: tuple[str, ...]) -> DictConfig:
    """The resolved configuration. Callers must not change it. Raises: ValueError for unknown keys."""
    # Composing takes a quarter of a second, so cells of equal choices share it; their values are set afterwards.
    is_choice = [(CONFIGS / word.partition("=")[0]).is_dir() for word in overrides]
    cfg = copy.deepcopy(_compose_choices(config, tuple(w for w, choice in zip(overrides, is_choice) if choice)))
    try:
        cfg.merge_with_dotlist([word for word, choice in zip(overrides, is_choice) if not choice])
    except OmegaConfBaseException as error:
        raise ValueError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    drop_unused_keys(cfg, list(overrides))
    if OmegaConf.is_missing(cfg, "init_from"):
        cfg.init_from = None  # the run of an earlier stage
    cfg, problems = validate_keys(cfg)
    if problems:
        raise ValueError("\n".join(problems))
    return cfg


@functools.cache
def _compose_choices(config: str, choices: tuple[str, ...]) -> DictConfig:
    return compose_config(config, list(choices))


def command_estimate(command: str, tokens: Sequence[int]) -> Estimate | None:
    """Estimated memory and time of a training command on contexts of these lengths; None for an evaluation.

    tokens  mean of context, question and answer. A first stage on texts has its own lengths, those of its data set.
    """
    if is_script(command):
        return None
    config, overrides, processes = parse_command(command)
    if config != "train":
        return None
    cfg = compose_cell(config, tuple(overrides))
    lengths = cell_lengths(cfg, tokens)
    longest = replace(lengths, context=max(lengths.context, round(TOKENS * cfg.dataset.get("context_words", 0))))
    return estimate_training(cfg, known_shape(cfg.backbone.path), lengths, processes, longest)


def evaluation_estimate(commands: Sequence[str], tokens: Sequence[int], examples: int) -> Estimate:
    """Estimated memory and time of a cell's evaluation, the last of its commands, on this many examples."""
    cfg = cell_config(commands)
    return estimate_evaluation(cfg, known_shape(cfg.backbone.path), cell_lengths(cfg, tokens), examples)


def has_shape(commands: Sequence[str]) -> bool:
    """Whether the sizes of the backbone of a cell's commands, or of its first ones, are known."""
    config, overrides, _ = parse_command(commands[-1])
    cfg = compose_cell(config, tuple(overrides)) if config == "train" else cell_config(commands)
    try:
        known_shape(str(cfg.backbone.get("path")))
    except ValueError:
        return False
    return True


def is_script(command: str) -> bool:
    """Whether a command is neither train.py nor eval.py but one of scripts/."""
    return any(word.startswith("scripts/") for word in shlex.split(command))


def cell_lengths(cfg: DictConfig, tokens: Sequence[int]) -> TextLengths:
    """Mean tokens of context, question and answer: a data set's, or those of a first stage on texts."""
    lengths = TextLengths(*tokens)
    if "max_words" in cfg.dataset:  # passages of running text, which are also the answer; 4 tokens for 3 words
        words = (cfg.dataset.min_words + cfg.dataset.max_words) // 2
        lengths = TextLengths(words * 4 // 3, 8, words * 4 // 3)
    if "context_words" in cfg.dataset:  # generated texts, of a length that training and evaluation set themselves
        least, most = cfg.dataset.get("least_words") or cfg.dataset.context_words, cfg.dataset.context_words
        lengths = replace(lengths, context=round(TOKENS * (least + most) / 2))
    return lengths


def cell_config(commands: Sequence[str]) -> DictConfig:
    """The configuration that a cell is evaluated with, from its commands in order."""
    *training, evaluation = (parse_command(command) for command in commands)
    if not training:
        return compose_cell(evaluation[0], tuple(evaluation[1]))
    # Later words replace earlier ones, as an evaluation's replace its run's.
    own = [word for word in evaluation[1] if word.partition("=")[0] not in EVAL_KEYS]
    words = {word.partition("=")[0]: word for word in (*training[-1][1], *own)}
    return compose_cell("train", tuple(words.values()))


# ------------------------------------------------------------------ results of a cell


def cell_problems(
    results: Mapping[str, Any], row: Mapping[str, Any], commands: Sequence[str], n: int | None
) -> tuple[list[str], list[str]]:
    """(how results differ from the cell, what they do not state and was not compared).

    n  examples of the cell; None = the whole test split
    """
    cfg, stored = cell_config(commands), conditions_of(results)
    problems, unknown = _training_problems(results, commands)
    if row["ratio"] is not None and results["requested_ratio"] != row["ratio"]:
        problems.append(f"ratio: {_ratio(results['requested_ratio'])}, the cell has {_ratio(row['ratio'])}")
    for key, compare in (("backbone", _backbone), ("dataset", _data), ("prompt", _prompt)):
        if key not in stored:
            unknown.append("data" if key == "dataset" else key)
        else:
            problems += compare(stored, cfg)
    problems += _size(results, stored, n)
    return problems, unknown


def _training_problems(results: Mapping[str, Any], commands: Sequence[str]) -> tuple[list[str], list[str]]:
    """Untrained where the cell trains, trained where it does not, or begun from another run than its first stage."""
    record, stages = stored_training(results), len(commands) - 1
    if record is None:
        return ([] if stages else ["training: trained, the cell is the untouched backbone"]), ["training"]
    if record["trained"] != bool(stages):
        is_trained = ("trained", "untrained") if record["trained"] else ("untrained", "trained")
        return [f"training: {is_trained[0]}, the cell is {is_trained[1]}"], []
    if stages > 1 and not record.get("imported"):
        wanted = compose_cell("train", tuple(parse_command(commands[0])[1])).name
        start = record["init_from"]
        if start is None or Path(start).parent.name != wanted:
            return [f"first stage: {start or 'none'}, the cell begins from outputs/{wanted}"], []
    return [], []


def _ratio(ratio: float | None) -> str:
    return "none" if ratio is None else f"{ratio:g}x"


def _backbone(stored: Mapping[str, Any], cfg: DictConfig) -> list[str]:
    """Compared by the last part of the path: a local folder has the name of the model."""
    own, wanted = (str(one.get("path") or one["_target_"]) for one in (stored["backbone"], cfg.backbone))
    if Path(own).name.lower() == Path(wanted).name.lower():
        return []
    return [f"backbone: {own}, the cell has {wanted} (a local folder must have this name: {Path(wanted).name})"]


def _data(stored: Mapping[str, Any], cfg: DictConfig) -> list[str]:
    """The files by their last two parts, and how contexts are made of them."""
    split = stored.get("split", "test")
    own, wanted = source_name(stored["dataset"], split), source_name(cfg.dataset, "test")
    problems = [f"data: {own}, the cell has {wanted}"] if own != wanted else []
    chosen = stored.get("questions_per_context"), cfg.get("questions_per_context")
    if chosen[0] != chosen[1]:
        problems.append(f"data: questions_per_context={chosen[0]}, the cell has {chosen[1]}")
    for key in DATA_KEYS:
        values = stored["dataset"].get(key), cfg.dataset.get(key)
        if values[0] != values[1] and not problems:
            problems.append(f"data: dataset.{key}={values[0]}, the cell has {values[1]}")
    return problems


def _prompt(stored: Mapping[str, Any], cfg: DictConfig) -> list[str]:
    wanted = OmegaConf.to_container(cfg.prompt, resolve=True)
    return [
        f"prompt: prompt.{key}={stored['prompt'][key]!r}, the cell has {wanted[key]!r}"
        for key in wanted
        if key in stored["prompt"] and stored["prompt"][key] != wanted[key]
    ]


def _size(results: Mapping[str, Any], stored: Mapping[str, Any], n: int | None) -> list[str]:
    """The number of examples: the cell's, or that of the whole split."""
    limits = {"examples": stored.get("examples"), "dataset.test_limit": (stored.get("dataset") or {}).get("test_limit")}
    cut = [f"{key}={value}" for key, value in limits.items() if value is not None and value <= results["n"]]
    if n is not None:
        return [] if results["n"] == n else [f"n: {results['n']:,} examples, the cell has {n:,}"]
    return [f"n: the first {results['n']:,} examples ({cut[0]}), the cell has the whole split"] if cut else []
