"""Everything that can be wrong with a configuration, found before any weight is loaded, and told all at once."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from breviary.backbone import TRAIN_MODES
from breviary.build import compressor_class, compressor_settings

ENGINES = ("single", "ddp", "zero")


class Problems(ValueError):
    """Several problems of one configuration, a sentence each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def config_problems(cfg: DictConfig, backbone: Any, world_size: int = 1) -> list[str]:
    """Problems of a composed configuration; reads configuration files, no weights."""
    found = _argument_problems(cfg) + backbone.problems()
    if not found:  # the rest asks the compressor about this backbone
        found += compressor_class(cfg).problems(compressor_settings(cfg), backbone)
    found += _decoder_problems(cfg) + _training_problems(cfg) + _generation_problems(cfg)
    if cfg.engine.kind == "single" and world_size > 1:
        found.append(f"engine=single with {world_size} processes: use engine=ddp, zero1, zero2 or zero3")
    return found


def length_problems(cfg: DictConfig, backbone: Any, splits: dict[str, Any]) -> list[str]:
    """Examples whose tokens find no place in the backbone's positions; `splits` are tokenised."""
    positions = backbone.config.max_position_embeddings
    cls, settings = compressor_class(cfg), compressor_settings(cfg)
    found = []
    for name, items in splits.items():
        others = longest_others(items) + cfg.generation.max_new_tokens
        if others >= positions:
            found.append(f"dataset {name}: prefix, question and answer take up to {others} tokens, the backbone has "
                         f"{positions} positions; shorten prompt.template or generation.max_new_tokens")
            continue
        limit = cls.longest_context(settings, positions, others)
        longest = max(items.lengths, default=0)
        if limit is not None and longest > limit:
            found.append(f"dataset {name}: the longest context of {longest} tokens does not fit beside {others} further "
                         f"ones in the backbone's {positions} positions (at most {limit} here); set "
                         f"limits.max_context_tokens={limit} to cut contexts, or compressor.segment_size, or a larger ratio")
    return found


def longest_others(items: Any) -> int:
    """Most tokens that any example has beside its context: prefix, question or prompt, answer."""
    return max((items.others), default=0)


def process_problems(examples: int, world_size: int, key: str) -> list[str]:
    """More processes than examples leave some with nothing to do."""
    if examples >= world_size:
        return []
    return [f"{world_size} processes for {examples} examples: start at most {max(examples, 1)}, or raise {key}"]


# ------------------------------------------------------------------ sections


def _argument_problems(cfg: DictConfig) -> list[str]:
    """Keys that the named class does not take, e.g. added with +compressor.x=1, each with the nearest right one."""
    found = []
    for section in ("backbone", "compressor", "dataset"):
        known = constructor_keys(get_class(cfg[section]._target_))
        for key in cfg[section]:
            if key != "_target_" and key not in known:
                found.append(f"{section}.{key}: unknown key{_nearest(key, known)}")
    return found


def constructor_keys(cls: type) -> list[str]:
    """Names of a class's constructor arguments; **kwargs are followed up the class's bases and its reading."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(base.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                return names
    from breviary.reading import Reading

    return names + list(inspect.signature(Reading.__init__).parameters)


def _decoder_problems(cfg: DictConfig) -> list[str]:
    d, found = cfg.decoder, []
    if d.train not in TRAIN_MODES:
        found.append(f"decoder.train={d.train}: allowed are {', '.join(TRAIN_MODES)}")
    if d.lora_rank < 1:
        found.append(f"decoder.lora_rank={d.lora_rank}: must be at least 1, e.g. 16")
    if not 0 <= d.lora_dropout < 1:
        found.append(f"decoder.lora_dropout={d.lora_dropout}: must be from 0 to below 1, e.g. 0.05")
    return found


def _training_problems(cfg: DictConfig) -> list[str]:
    t, found = cfg.train, []
    for key in ("steps", "batch_size", "accumulation", "log_every"):
        if t[key] < 1:
            found.append(f"train.{key}={t[key]}: must be at least 1, e.g. {dict(steps=100, batch_size=8).get(key, 1)}")
    for key in ("eval_every", "eval_examples", "max_grad_norm", "weight_decay", "workers"):
        if t[key] < 0:
            found.append(f"train.{key}={t[key]}: must be 0 or more")
    if t.learning_rate <= 0:
        found.append(f"train.learning_rate={t.learning_rate}: must be above 0, e.g. 1e-3")
    if not 0 <= t.warmup < 1:
        found.append(f"train.warmup={t.warmup}: a fraction of the steps from 0 to below 1, e.g. 0.1")
    choices = {"optimizer": ("adamw", "sgd"), "schedule": ("cosine", "linear", "constant"),
               "wandb": ("disabled", "offline", "online")}
    for key, allowed in choices.items():
        if t[key] not in allowed:
            found.append(f"train.{key}={t[key]}: allowed are {', '.join(allowed)}")
    if cfg.engine.kind not in ENGINES:
        found.append(f"engine.kind={cfg.engine.kind}: allowed are {', '.join(ENGINES)}")
    if cfg.eval_batch_size < 1:
        found.append(f"eval_batch_size={cfg.eval_batch_size}: must be at least 1, e.g. 16")
    limit = cfg.limits.max_context_tokens
    if limit is not None and limit < 1:
        found.append(f"limits.max_context_tokens={limit}: must be at least 1 token, or null for no limit")
    if cfg.limits.truncation not in ("head", "tail", "middle"):
        found.append(f"limits.truncation={cfg.limits.truncation}: allowed are head, tail, middle")
    if cfg.resume not in ("never", "auto") and not Path(cfg.resume).is_dir():
        found.append(f"resume={cfg.resume}: allowed are never, auto, or an existing run folder")
    return found


def _generation_problems(cfg: DictConfig) -> list[str]:
    g, found = cfg.generation, []
    if g.max_new_tokens < 1 or not 0 <= g.min_new_tokens <= g.max_new_tokens:
        found.append(f"generation.max_new_tokens={g.max_new_tokens}, min_new_tokens={g.min_new_tokens}: must be at least 1, "
                     "and 0 up to that")
    if g.temperature < 0 or not 0 < g.top_p <= 1 or g.repetition_penalty <= 0:
        found.append(f"generation: temperature={g.temperature} must be 0 or more, top_p={g.top_p} above 0 up to 1, "
                     f"repetition_penalty={g.repetition_penalty} above 0")
    return found


# ------------------------------------------------------------------ errors for people


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    return f"; the nearest right one is {near[0]}" if near else ""


def run_for_people(main: Callable[[], Any], config_keys: Callable[[], list[str]]) -> None:
    """Calls `main`; a mistake in the configuration or the data ends in its sentences on stderr and exit code 2.

    config_keys gives every known key (a.b.c), for naming the nearest right one. Other errors keep their traceback.
    """
    try:
        main()
    except Problems as error:
        problems = error.problems
    except ValueError as error:
        problems = [str(error)]
    except ConfigCompositionException as error:
        problems = [_composition_message(error, config_keys)]
    except (HydraException, OmegaConfBaseException) as error:
        problems = [str(error).split("\n    full_key")[0]]
    else:
        return
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def _composition_message(error: ConfigCompositionException, config_keys: Callable[[], list[str]]) -> str:
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]}: unknown key{_nearest(unknown[1], config_keys())}"
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        options = [line.strip() for line in text.partition("Available options in")[2].splitlines()[1:] if line.strip()]
        options = options[: next((i for i, o in enumerate(options) if " " in o), len(options))]
        return f"no such configuration {missing[1]}{_nearest(missing[1].rpartition('/')[2], options)}; there are: {', '.join(options)}"
    return text


def flat_keys(cfg: DictConfig) -> list[str]:
    """Every key of a configuration as a.b.c."""
    def walk(node: Any, prefix: str) -> Iterable[str]:
        for key in node:
            yield f"{prefix}{key}"
            value = node._get_node(key)
            if OmegaConf.is_dict(value) and not value._is_none():
                yield from walk(value, f"{prefix}{key}.")

    return list(walk(cfg, ""))
