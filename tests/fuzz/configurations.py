"""Random configurations: valid and invalid values for random keys, one step of training and one validation each."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

from omegaconf import OmegaConf

import train
from breviary.config.compose import compose_config
from breviary.config.keys import CONFIGS
from tests.fuzz.outcomes import Outcome, run_command

SMALL = [
    *("backbone=tiny", "backbone.layers=4", "backbone.width=32", "train.steps=1", "train.batch_size=2"),
    *("dataset=invented_facts", "dataset.facts=3", "dataset.train_size=8", "dataset.validation_size=2"),
    *("dataset.test_size=2", "train.eval_examples=2", "eval_batch_size=2", "generation.max_new_tokens=2"),
]
SIZES = {
    "encoder_layers": 2,
    "chunk_size": 16,
    "stride": 4,
    "global_slots": 3,
    "queue_budget": 8,
    "window": 4,
    "segment": 2,
}
# Keys that start other processes or services, or lead out of the test's folder.
EXCLUDED = re.compile(
    r"^(paths|hydra|engine\.deepspeed|resume|init_from)\b|workers|tracker|wandb|timeout|train\.epochs"
)
VALUES = (
    *("-1", "0", "1", "2", "3", "7", "64", "0.5", "-0.5", "1.5", "1e-3", "1e30", "nan", "inf", "null", "true", "false"),
    *("abc", "''", "'a b'", "[]", "{}", "[1,2]", "[null]", "{a:1}", "'${x}'", "'${seed}'", "0x10", "1_000"),
    *("os.system", "../x", "é", '"\\""', "-"),
)
# By the type of a key's present value: such as often fit.
FITTING = {bool: ("true", "false"), int: ("0", "1", "2", "3", "5", "64"), float: ("0", "0.1", "0.5", "0.9", "1", "2.5")}
OBJECTIVES = ("answer", "answer", "answer_and_copy", "reconstruct", "continue")


@functools.cache
def names(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@functools.cache
def comments() -> dict[str, list[str]]:
    """{last part of a key: the values that its comment lists, as in a | b | c}."""
    found: dict[str, list[str]] = {}
    for file in CONFIGS.rglob("*.yaml"):
        for key, comment in re.findall(r"^\s*(\w+): [^#\n]*#\s*(.*)$", file.read_text(), re.MULTILINE):
            if " | " in comment:
                found.setdefault(key, []).extend(re.findall(r"(\w+)(?= \||$|\s*$|[;:,(])", comment)[:6])
    return found


@functools.cache
def base(compressor: str, objective: str) -> tuple[tuple[str, ...], dict[str, type]]:
    """(overrides of a small training, {key: type of its value})."""
    words = [*SMALL, f"compressor={compressor}", f"objective={objective}"]
    cfg = compose_config("train", words)
    words += [f"compressor.{key}={value}" for key, value in SIZES.items() if key in cfg.compressor]
    words += ["compressor.relevance.layers=4"] * (compressor == "dense")  # as many as the backbone has
    words += ["compressor.segment=2"] * (compressor == "transformer_xl")  # at most the window
    flat: dict[str, type] = {}

    def visit(prefix: str, node: object) -> None:
        for key, value in node.items():  # type: ignore[attr-defined]
            name = f"{prefix}{key}"
            if isinstance(value, dict) and value:
                visit(f"{name}.", value)
            elif not EXCLUDED.search(name):
                flat[name] = type(value)

    visit("", OmegaConf.to_container(cfg))
    return tuple(words), flat


def configuration(rng: random.Random) -> tuple[list[str], list[str]]:
    """(all overrides, those of them that are random)."""
    words, keys = base(rng.choice(names("compressor")), rng.choice(OBJECTIVES))
    changes = []
    for key in rng.sample(sorted(keys), rng.randint(1, 3)):
        fitting = comments().get(key.rpartition(".")[2]) or FITTING.get(keys[key])
        value = rng.choice(fitting if fitting and rng.random() < 0.75 else VALUES)
        changes.append(f"{key}={value}")
    return [*words, *changes], changes


def run_configuration(rng: random.Random, home: Path) -> tuple[str, Outcome]:
    """The command, and what came of it. A refusal must name one of the changed keys, or the compressor."""
    words, changes = configuration(rng)
    outcome = run_command(train, words, home)
    parts = {part for change in changes for part in re.split(r"[.=]", change.partition("=")[0])[-1:]}
    parts |= {word for word in words if word.startswith("compressor=")}  # some read what these data do not have
    parts |= {"longest context"} if "facts" in parts else set()
    if outcome.kind == "refused" and not any(part in outcome.text for part in parts):
        outcome = Outcome("fault", f"the message names none of {sorted(parts)}: {outcome.text}")
    return "train.py " + " ".join(words), outcome
