"""Everything that can be wrong with a configuration, found before any weight is loaded, and told all at once."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from breviary.backbones.trainable import LINEAR, TRAIN_MODES
from breviary.config.build import compressor_class, compressor_settings, objective_class, objective_settings
from breviary.config.errors import collect_errors
from breviary.contract import Example
from breviary.memory.budget import check_budget
from breviary.readers.chunked import ChunkedReader

ENGINES = ("single", "ddp", "zero")

BUDGET = ("ratio", "slots", "ratio_choices")


def check_config(cfg: DictConfig, backbone: Any, world_size: int = 1) -> list[str]:
    """Problems of a composed configuration; reads configuration files, no weights."""
    found = backbone.problems()
    cls, settings = compressor_class(cfg), compressor_settings(cfg)
    if collect_errors([], lambda: backbone.config) is not None:
        found += cls.problems(settings, backbone)
        collect_errors(found, backbone.tokenizer)
    elif all(key in settings for key in BUDGET):  # all that can be said without the backbone's configuration
        found += check_budget(settings)
    found += objective_class(cfg).problems(objective_settings(cfg), cls, cfg.decoder.train)
    found += _check_decoder(cfg) + _check_training(cfg) + _check_generation(cfg)
    stage = cfg.engine.deepspeed.zero_optimization.stage if cfg.engine.deepspeed else 0
    if stage == 3 and issubclass(cls, ChunkedReader):
        found.append(
            "engine=zero3: this compressor reads as many chunks as a text has, and ZeRO-3 needs equal calls on every "
            "process; use engine=zero2"
        )
    found += _check_pipeline(cfg.engine, cls, stage, world_size)
    if cfg.engine.kind == "single" and world_size > 1:
        found.append(f"engine=single with {world_size} processes: use engine=ddp, zero1, zero2 or zero3")
    return found


def read_splits(cfg: DictConfig, splits: list[str], problems: list[str]) -> dict[str, list[Example]]:
    """The examples of `splits`; where something is wrong with the data, its sentences go to `problems`."""
    dataset = collect_errors(problems, instantiate, cfg.dataset)
    if dataset is None:
        return {}
    found = collect_errors(problems, dataset.problems, splits)
    problems += found or []
    if found != []:
        return {}
    return {split: collect_errors(problems, dataset.examples, split) or [] for split in splits}


def check_process_count(examples: int, world_size: int, key: str) -> list[str]:
    """More processes than examples leave some with nothing to do."""
    if examples >= world_size:
        return []
    return [f"{world_size} processes for {examples} examples: start at most {max(examples, 1)}, or raise {key}"]


# ------------------------------------------------------------------ sections


def _check_decoder(cfg: DictConfig) -> list[str]:
    d, found = cfg.decoder, []
    if d.train not in TRAIN_MODES:
        found.append(f"decoder.train={d.train}: allowed are {', '.join(TRAIN_MODES)}")
    if d.lora_rank < 1:
        found.append(f"decoder.lora_rank={d.lora_rank}: must be at least 1, e.g. 16")
    if not 0 <= d.lora_dropout < 1:
        found.append(f"decoder.lora_dropout={d.lora_dropout}: must be from 0 to below 1, e.g. 0.05")
    targets = d.lora_targets
    if targets != "all-linear" and (isinstance(targets, str) or not targets or set(targets) - set(LINEAR)):
        found.append(
            f"decoder.lora_targets={targets}: must be all-linear, or a list out of {', '.join(LINEAR)}, "
            "e.g. [q_proj,v_proj]"
        )
    return found


def _check_training(cfg: DictConfig) -> list[str]:
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
    choices = {
        "optimizer": ("adamw", "sgd"),
        "schedule": ("cosine", "linear", "constant"),
        "wandb": ("disabled", "offline", "online"),
    }
    for key, allowed in choices.items():
        if t[key] not in allowed:
            found.append(f"train.{key}={t[key]}: allowed are {', '.join(allowed)}")
    if cfg.engine.kind not in ENGINES:
        found.append(f"engine.kind={cfg.engine.kind}: allowed are {', '.join(ENGINES)}")
    if cfg.engine.timeout <= 0:
        found.append(f"engine.timeout={cfg.engine.timeout}: seconds, must be above 0, e.g. 900")
    if cfg.eval_batch_size < 1:
        found.append(f"eval_batch_size={cfg.eval_batch_size}: must be at least 1, e.g. 16")
    limit = cfg.limits.max_context_tokens
    if limit is not None and limit < 1:
        found.append(f"limits.max_context_tokens={limit}: must be at least 1 token, or null for no limit")
    if cfg.limits.truncation not in ("head", "tail", "middle"):
        found.append(f"limits.truncation={cfg.limits.truncation}: allowed are head, tail, middle")
    return found


def _check_pipeline(engine: DictConfig, cls: type, stage: int, world_size: int) -> list[str]:
    """What keeps engine.ranks processes from reading one batch together."""
    if engine.ranks == 1:
        return []
    if engine.ranks < 1 or world_size % engine.ranks:
        return [
            f"engine.ranks={engine.ranks}: {world_size} process(es) do not divide into pipelines of so many; e.g. "
            f"engine.ranks={world_size}, or torchrun --nproc_per_node {max(engine.ranks, 1)}"
        ]
    schedules = cls.schedules if issubclass(cls, ChunkedReader) else ()
    if not schedules:
        return [f"engine.ranks={engine.ranks}: this compressor reads a batch on one process; use engine.ranks=1"]
    found = []
    if engine.schedule not in schedules:
        found.append(f"engine.schedule={engine.schedule}: allowed are {', '.join(schedules)}")
    if stage == 3:
        found.append(
            f"engine.ranks={engine.ranks}: the ranks of a pipeline stand at different layers, and ZeRO's stage 3 has "
            "all processes meet at every layer to gather its weights: they would wait for each other; use "
            "engine=zero1, zero2 or pipeline"
        )
    return found


def _check_generation(cfg: DictConfig) -> list[str]:
    g, found = cfg.generation, []
    if g.max_new_tokens < 1 or not 0 <= g.min_new_tokens <= g.max_new_tokens:
        found.append(
            f"generation.max_new_tokens={g.max_new_tokens}, min_new_tokens={g.min_new_tokens}: must be at least 1, "
            "and 0 up to that"
        )
    if g.temperature < 0 or not 0 < g.top_p <= 1 or g.repetition_penalty <= 0:
        found.append(
            f"generation: temperature={g.temperature} must be 0 or more, top_p={g.top_p} above 0 up to 1, "
            f"repetition_penalty={g.repetition_penalty} above 0"
        )
    return found
