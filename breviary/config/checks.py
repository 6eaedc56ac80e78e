"""Checks of a configuration that need no weights. Each returns error messages, so that all are reported at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from breviary.backbones.attention import check_head_masks
from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import LINEAR, TRAIN_MODES
from breviary.config.build import ReaderSpec
from breviary.config.errors import collect_errors
from breviary.config.training_length import check_length
from breviary.contract import Example
from breviary.memory.budget import check_budget
from breviary.readers.chunked import ChunkedReader
from breviary.runtime.files import folder_problem
from breviary.runtime.markup import surrogate_problem, unknown_fields
from breviary.runtime.spelling import escape_problems, override, unescaped
from breviary.selection.likelihood import LikelihoodRelevance
from breviary.selection.named import relevance_class, relevance_problems

ENGINES = ("single", "ddp", "zero", "fsdp")
BUDGET = ("ratio", "slots", "ratio_choices")
# Values of train.optimizer and train.schedule, with their names in transformers.TrainingArguments.
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "sgd": "sgd"}
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "tracker": ("none", "wandb", "trackio"),
    "not_finite": ("stop", "skip"),
    "wandb": ("disabled", "offline", "online"),
}


# Allowed values of the keys of engine.fsdp.
FSDP_CHOICES = {
    "param_dtype": ("auto", "float32", "bfloat16"),
    "reduce_dtype": ("float32", "bfloat16"),
    "offload": ("none", "cpu"),
}


def optimizer_name(optimizer: str, engine: str, device: torch.device) -> str:
    """train.optimizer's name in transformers.TrainingArguments: fused where there is a GPU.

    engine  engine.kind: FSDP's sharded weights need torchao's 8-bit AdamW, which bitsandbytes does not support
    """
    if optimizer == "adamw" and device.type == "cuda":
        return "adamw_torch_fused"
    return "adamw_torch_8bit" if optimizer == "adamw_8bit" and engine == "fsdp" else OPTIMIZERS[optimizer]


def check_optimizer(train: DictConfig, engine: DictConfig) -> list[str]:
    """Checks that the engine can skip steps where that is set, and that the package of the 8-bit AdamW is installed."""
    if train.not_finite == "skip" and engine.kind == "zero":
        return ["train.not_finite=skip: DeepSpeed updates the weights by itself; allowed with engine=zero* is stop"]
    if train.not_finite == "skip" and engine.ranks > 1:
        return [
            f"train.not_finite=skip: a pipeline (engine.ranks={engine.ranks}) ends within the step, before a wrong "
            "memory is passed on; allowed is stop"
        ]
    if train.optimizer != "adamw_8bit":
        return []
    package = "torchao" if engine.kind == "fsdp" else "bitsandbytes"
    if importlib.util.find_spec(package) is not None:
        return []
    return [
        f"train.optimizer=adamw_8bit: with this engine it is that of the package {package}, which is not installed; "
        f"python -m pip install {package}, or set train.optimizer=adamw"
    ]


def check_config(
    cfg: DictConfig, spec: ReaderSpec, backbone: Backbone | TinyBackbone, world_size: int = 1
) -> list[str]:
    """Checks every section of a resolved configuration. Reads the backbone's configuration files, no weights."""
    problems = check_reader(spec, backbone)
    problems += spec.objective.problems(spec.objective_settings, spec.compressor, cfg.decoder.train)
    problems += check_decoder(cfg.decoder) + check_training(cfg.train) + check_limits(cfg.limits)
    problems += check_optimizer(cfg.train, cfg.engine) + check_fsdp(cfg.engine)
    if cfg.eval_batch_size < 1:
        problems.append(f"eval_batch_size={cfg.eval_batch_size}: must be at least 1, e.g. 16")
    problems += check_generation(cfg.generation) + check_paths(cfg)
    if not cfg.prompt.template and spec.objective.asks_question(spec.objective_settings):
        problems.append(
            "prompt.template is empty, so the decoder would not see the question; it must hold {question}, for example "
            f"{override('prompt.template', PROMPT_TEXTS['template'][1])} (only objectives that ask none, such as "
            "reconstruct, may have an empty one)"
        )
    if not cfg.prompt.template and getattr(spec.compressor, "keeps_cache", False):
        problems.append(
            "prompt.template is empty, but this compressor keeps keys and values only, behind which a prompt has to "
            f"predict the answer; set {override('prompt.template', PROMPT_TEXTS['template'][1])}"
        )
    if not cfg.get("run"):  # the texts of a run are checked where they differ from those it was trained with
        problems += check_texts(cfg)
    problems += check_equal_calls(cfg.engine, spec, backbone) + check_kernels(cfg.engine, spec, backbone)
    return problems + check_engine(cfg.engine, spec.compressor, world_size)


def check_reader(spec: ReaderSpec, backbone: Backbone | TinyBackbone) -> list[str]:
    """Checks the backbone, and the compressor's arguments against it."""
    problems = backbone.problems()
    if collect_errors([], lambda: backbone.config) is not None:
        problems += spec.compressor.problems(spec.settings, backbone)
        collect_errors(problems, backbone.tokenizer)
    elif all(key in spec.settings for key in BUDGET):  # the only check that works without the backbone's configuration
        problems += check_budget(spec.settings)
    return problems


def read_splits(
    dataset: DictConfig,
    splits: list[str],
    problems: list[str],
    store: Callable[[Any, str, str | None], Sequence[Example]],
    folder: str,
) -> dict[str, Sequence[Example]]:
    """The examples of each split. Appends to `problems` what is wrong with the data; the result is incomplete then.

    store   TextPipeline.store
    folder  where the examples are stored; with problems nothing is written to disk
    """
    source = collect_errors(problems, instantiate, dataset)
    if source is None:
        return {}
    before = len(problems)
    problems += collect_errors(problems, source.problems, splits) or []
    if len(problems) > before:
        return {}
    return {
        split: collect_errors(problems, store, source, split, None if problems else folder) or [] for split in splits
    }


def missing_splits(dataset: DictConfig, splits: Sequence[str]) -> list[str]:
    """The `splits` that the data set does not define, or whose files are missing."""
    source = instantiate(dataset)
    return [split for split in splits if source.problems([split])]


def check_process_count(examples: int, world_size: int, key: str) -> list[str]:
    """Refuses more processes than examples: some would have nothing to do. `key` is what the user can raise."""
    if examples >= world_size:
        return []
    return [f"{world_size} processes for {examples} examples: start at most {max(examples, 1)}, or raise {key}"]


# ------------------------------------------------------------------ sections


def check_decoder(decoder: DictConfig) -> list[str]:
    """Checks section `decoder`: which weights are trained."""
    problems = []
    if decoder.train not in TRAIN_MODES:
        problems.append(f"decoder.train={decoder.train}: allowed are {', '.join(TRAIN_MODES)}")
    if decoder.lora_rank < 1:
        problems.append(f"decoder.lora_rank={decoder.lora_rank}: must be at least 1, e.g. 16")
    if not 0 <= decoder.lora_dropout < 1:
        problems.append(f"decoder.lora_dropout={decoder.lora_dropout}: must be from 0 to below 1, e.g. 0.05")
    targets = decoder.lora_targets
    if targets != "all-linear" and (isinstance(targets, str) or not targets or set(targets) - set(LINEAR)):
        problems.append(
            f"decoder.lora_targets={targets}: must be all-linear, or a list out of {', '.join(LINEAR)}, "
            "e.g. [q_proj,v_proj]"
        )
    return problems


def check_training(train: DictConfig) -> list[str]:
    """Checks section `train`."""
    problems = []
    for key in ("steps", "batch_size", "accumulation", "log_every"):
        if train[key] < 1:
            example = {"steps": 100, "batch_size": 8}.get(key, 1)
            problems.append(f"train.{key}={train[key]}: must be at least 1, e.g. {example}")
    for key in ("eval_every", "eval_examples", "max_grad_norm", "weight_decay", "workers"):
        if train[key] < 0:
            problems.append(f"train.{key}={train[key]}: must be 0 or more")
    if train.learning_rate <= 0:
        problems.append(f"train.learning_rate={train.learning_rate}: must be above 0, e.g. 1e-3")
    if not 0 <= train.warmup < 1:
        problems.append(f"train.warmup={train.warmup}: a fraction of the steps from 0 to below 1, e.g. 0.1")
    for key, allowed in CHOICES.items():
        if train[key] not in allowed:
            problems.append(f"train.{key}={train[key]}: allowed are {', '.join(allowed)}")
    if train.tracker == "trackio" and train.wandb != "disabled":
        problems.append(
            f"train.tracker=trackio and train.wandb={train.wandb}: one tracker at a time; set train.wandb=disabled, or "
            "train.tracker=wandb"
        )
    if train.tracker == "trackio" and importlib.util.find_spec("trackio") is None:
        problems.append(
            "train.tracker=trackio: the package trackio is not installed; python -m pip install trackio, or set "
            "train.tracker=wandb"
        )
    return problems + check_length(train)


def check_training_dtype(dtype: str) -> list[str]:
    """Refuses to train in float16, whose smallest gradients are zero without loss scaling."""
    if dtype != "float16":
        return []
    return [
        "backbone.dtype=float16: trains nothing reliably, as small gradients become 0 and large ones infinite; allowed "
        "in training are bfloat16, float32 and, for the tiny backbone, float64, e.g. backbone.dtype=bfloat16"
    ]


# Environment variables from which configs/paths/default.yaml takes its folders.
VARIABLES = {"cache": "BREVIARY_CACHE", "data": "BREVIARY_DATA"}


def check_paths(cfg: DictConfig) -> list[str]:
    """Checks section `paths`: no folder is empty, and a new run can be written. Creates nothing."""
    problems = []
    for name, folder in cfg.paths.items():
        written = name == "outputs" and not cfg.get("run")
        if written or not str(folder).strip():  # a cache that cannot be written may hold everything already
            problems += folder_problem(f"paths.{name}", folder, VARIABLES.get(name))
    return problems


def check_limits(limits: DictConfig) -> list[str]:
    """Checks section `limits`: how long contexts are cut."""
    problems = []
    limit = limits.max_context_tokens
    if limit is not None and limit < 1:
        problems.append(f"limits.max_context_tokens={limit}: must be at least 1 token, or null for no limit")
    if limits.truncation not in ("head", "tail", "middle"):
        problems.append(f"limits.truncation={limits.truncation}: allowed are head, tail, middle")
    return problems


def check_generation(generation: DictConfig) -> list[str]:
    """Checks section `generation`."""
    problems = []
    most, least = generation.max_new_tokens, generation.min_new_tokens
    if most < 1 or not 0 <= least <= most:
        problems.append(
            f"generation.max_new_tokens={most}, min_new_tokens={least}: must be at least 1, and 0 up to that"
        )
    if generation.temperature < 0 or not 0 < generation.top_p <= 1 or generation.repetition_penalty <= 0:
        problems.append(
            f"generation: temperature={generation.temperature} must be 0 or more, top_p={generation.top_p} "
            f"above 0 up to 1, repetition_penalty={generation.repetition_penalty} above 0"
        )
    return problems


# Texts of section prompt: the field that each may hold, and an example of the key.
PROMPT_TEXTS = {
    "instruction": (None, "Answer from the text.\n"),
    "template": ("question", "\nQuestion: {question}\nAnswer:"),
    "answer_template": ("answer", " {answer}"),
}


def check_texts(cfg: DictConfig, stored: DictConfig | None = None) -> list[str]:
    """Checks fields and characters of `prompt` and `generation.stop`.

    stored  configuration of the run that is evaluated: texts that equal its own are not checked
    """
    problems = []
    for name, (field, text) in PROMPT_TEXTS.items():
        key, value = f"prompt.{name}", cfg.prompt[name]
        if stored is not None and value == stored.prompt.get(name):
            continue
        surrogate = surrogate_problem(value)
        problems += [f"{key} {surrogate}"] if surrogate else []
        problems += escape_problems(key, value, unescaped(value))
        problems += unknown_fields(key, value, field, override(key, text))
    if stored is None or cfg.generation.stop != stored.generation.stop:
        problems += check_stop(cfg.generation.stop)
    return problems


def check_stop(stop: Sequence[str]) -> list[str]:
    """Checks generation.stop: texts at which an answer ends."""
    problems = []
    if any(not text for text in stop):
        problems.append(
            "generation.stop holds an empty text, at which every answer would end before its first character; "
            f"{override('generation.stop', [])} waits for the end token, "
            f"{override('generation.stop', [chr(10)])} ends at a line break (in bash or zsh)"
        )
    for text in stop:
        problems += escape_problems("generation.stop", text, [unescaped(other) for other in stop if other])
    return problems


def check_engine(engine: DictConfig, compressor: type, world_size: int) -> list[str]:
    """Checks section `engine` against the number of processes and what the compressor's class supports."""
    problems = []
    if engine.kind not in ENGINES:
        problems.append(f"engine.kind={engine.kind}: allowed are {', '.join(ENGINES)}")
    elif (engine.kind == "zero") != bool(engine.deepspeed):
        return [
            f"engine.kind={engine.kind} with engine.deepspeed={'set' if engine.deepspeed else 'null'}: choose both by "
            "name, e.g. engine=zero2"
        ]
    if engine.timeout <= 0:
        problems.append(f"engine.timeout={engine.timeout}: seconds, must be above 0, e.g. 900")
    stage = engine.deepspeed.zero_optimization.stage if engine.deepspeed else 0
    has_chunks = issubclass(compressor, ChunkedReader) or getattr(compressor, "has_blocks", False)
    if (stage == 3 or engine.kind == "fsdp") and has_chunks:
        problems.append(
            f"{_sharding_engine(engine)}: this compressor processes a data-dependent number of chunks, and it needs "
            "equal module calls on every process; use engine=zero2"
        )
    problems += _check_pipeline(engine, compressor, stage, world_size)
    if engine.kind == "single" and world_size > 1:
        problems.append(f"engine=single with {world_size} processes: use engine=ddp, zero1, zero2, zero3 or fsdp")
    return problems


def check_fsdp(engine: DictConfig) -> list[str]:
    """Checks section engine.fsdp."""
    settings = engine.get("fsdp")
    if (engine.kind == "fsdp") != bool(settings):
        return [f"engine.fsdp={settings} with engine.kind={engine.kind}: choose both by name, e.g. engine=fsdp"]
    if not settings:
        return []
    problems = [
        f"engine.fsdp.{key}={settings.get(key)}: allowed are {', '.join(allowed)}"
        for key, allowed in FSDP_CHOICES.items()
        if settings.get(key) not in allowed
    ]
    if not settings.smallest >= 0:
        problems.append(f"engine.fsdp.smallest={settings.smallest}: elements of a weight, must be 0 or more, e.g. 1e5")
    return problems


def _sharding_engine(engine: DictConfig) -> str:
    return "engine=fsdp" if engine.kind == "fsdp" else "engine=zero3"


def check_equal_calls(engine: DictConfig, spec: ReaderSpec, backbone: Backbone | TinyBackbone) -> list[str]:
    """Relevances that run the decoder as often as their contexts have parts, against ZeRO-3 and FSDP."""
    relevance = spec.settings.get("relevance")
    if relevance is None or relevance_problems(relevance, backbone):
        return []
    stage = engine.deepspeed.zero_optimization.stage if engine.deepspeed else 0
    shards = stage == 3 or engine.kind == "fsdp"
    if not shards or not issubclass(relevance_class(relevance), LikelihoodRelevance):
        return []
    return [
        f"{_sharding_engine(engine)}: this compressor.relevance runs a language model a data-dependent number of "
        "times, and it needs equal module calls on every process; use engine=zero2"
    ]


def check_kernels(engine: DictConfig, spec: ReaderSpec, backbone: Backbone | TinyBackbone) -> list[str]:
    """Checks attention and compilation of the backbone's layers against reader and engine."""
    problems = check_head_masks(backbone.attn_implementation, getattr(spec.compressor, "keeps_cache", False))
    stage = engine.deepspeed.zero_optimization.stage if engine.deepspeed else 0
    if backbone.compile and issubclass(spec.compressor, ChunkedReader):
        problems.append(
            "backbone.compile=true: layers of this compressor run with a memory, and only those that run without a "
            "cache are compiled; set backbone.compile=false"
        )
    elif backbone.compile and (stage == 3 or engine.kind == "fsdp"):
        problems.append(
            f"backbone.compile=true with engine={'fsdp' if engine.kind == 'fsdp' else 'zero3'}: gathering weights "
            "interrupts the compiled layers; set backbone.compile=false, or use engine=zero2"
        )
    return problems


def _check_pipeline(engine: DictConfig, compressor: type[Any], stage: int, world_size: int) -> list[str]:
    """Checks engine.ranks: whether that many processes can process one batch together."""
    if engine.ranks == 1:
        return []
    if engine.ranks < 1 or world_size % engine.ranks:
        return [
            f"engine.ranks={engine.ranks}: {world_size} process(es) do not divide into pipelines of so many; e.g. "
            f"engine.ranks={world_size}, or torchrun --nproc_per_node {max(engine.ranks, 1)}"
        ]
    schedules = compressor.schedules if issubclass(compressor, ChunkedReader) else ()
    if not schedules:
        return [f"engine.ranks={engine.ranks}: this compressor needs a batch on one process; use engine.ranks=1"]
    problems = []
    if engine.schedule not in schedules:
        problems.append(f"engine.schedule={engine.schedule}: allowed are {', '.join(schedules)}")
    if stage == 3:
        problems.append(
            f"engine.ranks={engine.ranks}: the ranks of a pipeline are at different layers, but ZeRO-3 gathers every "
            "layer's weights on all processes at once: they would deadlock; use engine=zero1, zero2 or pipeline"
        )
    return problems
