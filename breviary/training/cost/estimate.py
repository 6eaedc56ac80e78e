"""Estimated memory and time of a training run or an evaluation, from FLOPs and bytes. Nothing is loaded or measured.

The time leaves out norms, adapters, communication, validation and data loading; it is within a factor of two of a real
run.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from breviary.backbones.pretrained import DTYPES
from breviary.backbones.shape import BackboneShape
from breviary.config.build import ReaderSpec
from breviary.objectives.answer import AnswerAndCopy
from breviary.training.cost.devices import SUSTAINED
from breviary.training.cost.layer import Training
from breviary.training.cost.memory import Memory, Moment, reader_step, training_moments
from breviary.training.cost.parts import Part, TextLengths, reader_parts, slots_of
from breviary.training.cost.sharding import Weights, engine_weights

CHUNKED = 8192  # maximum cached tokens of a chunked reader: a chunk, memory and question


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a training run or an evaluation.

    processes     number of GPUs
    global_batch  examples per optimizer step
    memory        of the process with the largest peak
    flops         of the whole run, on all GPUs
    moved         bytes of weights that decoding reads from memory, in an evaluation
    """

    processes: int
    global_batch: int
    memory: Memory
    flops: float
    moved: float = 0.0

    @property
    def bytes(self) -> float:
        """Peak bytes."""
        return self.memory.peak.total

    @property
    def hours(self) -> float:
        """Hours at SUSTAINED FLOP/s on every GPU."""
        return self.flops / self.processes / SUSTAINED / 3600

    def __str__(self) -> str:
        hours = f"{self.hours:.0f}" if self.hours >= 2 else f"{self.hours:.1f}"
        return (
            f"global batch {self.global_batch}; estimated {self.bytes / 1e9:.0f} GB on each of {self.processes} GPU"
            f"{'s' * (self.processes > 1)}, {hours} hours"
        )


def estimate_training(
    cfg: DictConfig, shape: BackboneShape, lengths: TextLengths, processes: int = 1, longest: TextLengths | None = None
) -> Estimate:
    """The estimate for a composed configuration of train.py on `processes` GPUs.

    lengths  mean tokens of an example, for the time
    longest  tokens of the longest example, for the memory; None = `lengths`
    With backbone.device=cpu the optimizer is not fused: it copies its largest matrix twice.
    A compressor may define a static method training_cost(cfg, shape, lengths, processes), which returns (memory.Step of
    a micro-batch, FLOPs per example, number of additional trained weights).
    """
    train, spec, longest = cfg.train, ReaderSpec.of(cfg), longest or lengths
    batches = train.batch_size * train.accumulation * processes // cfg.engine.ranks
    global_batch = train.get("global_batch") or batches
    own_cost = getattr(spec.compressor, "training_cost", None)
    if own_cost is not None:
        flops = own_cost(cfg, shape, lengths, processes)[1]
        step, _, further = own_cost(cfg, shape, longest, processes)
        parts = reader_parts(cfg, spec, shape, longest)
        weights = reader_weights(cfg, spec, shape, parts, processes, further)
    else:
        parts = [*reader_parts(cfg, spec, shape, longest, True), *auxiliary_parts(cfg, spec, shape, longest)]
        weights = reader_weights(cfg, spec, shape, parts, processes)
        supervised = train.batch_size * longest.answer
        step = reader_step(cfg, shape, parts, train.batch_size, supervised, weights.is_cast)
        timed = [*reader_parts(cfg, spec, shape, lengths), *auxiliary_parts(cfg, spec, shape, lengths)]
        flops = sum(part.flops(shape, train.gradient_checkpointing) for part in timed)
        flops += 6 * lengths.answer * shape.embedding_weights
    caches = cfg.eval_batch_size * _answer_cache(cfg, spec, shape, longest) if train.eval_examples else 0
    is_fused = cfg.backbone.device != "cpu" or cfg.engine.kind not in ("single", "ddp")
    largest = 0 if is_fused else _largest_matrix(shape, parts)
    memory = training_moments(weights, step, train.accumulation > 1, caches, largest)
    return Estimate(processes, global_batch, memory, flops * global_batch * train.steps)


def reader_weights(
    cfg: DictConfig, spec: ReaderSpec, shape: BackboneShape, parts: list[Part], processes: int, further: float = 0
) -> Weights:
    """Weights of all parts, adapters and alignment included, on one process."""
    adapters = sum(part.adapters * part.training.adapter_weights(shape) for part in parts)
    new = adapters + further + _further_weights(spec, shape)
    total = sum(part.own + part.embeddings for part in parts) + new
    trained = sum(part.trained_weights(shape) for part in parts) + new
    return engine_weights(cfg, shape, total, trained, processes)


def _further_weights(spec: ReaderSpec, shape: BackboneShape) -> float:
    """Number of trained weights outside the layers: linear alignment, memory tokens and their head."""
    settings, weights = spec.settings, 0
    if settings.get("join") == "input" and "linear" in str(settings.get("alignment")) and not settings.get("frozen"):
        weights += shape.width * (shape.width + 1)
    if "memory_tokens" in settings:
        tokens = settings["memory_tokens"] + 3 * bool(settings.get("task_tokens"))
        weights += shape.width * (tokens + 2 * (shape.width + 1) * (settings.get("head") == "mlp"))
    return weights


def auxiliary_parts(cfg: DictConfig, spec: ReaderSpec, shape: BackboneShape, lengths: TextLengths) -> list[Part]:
    """Parts of an objective's auxiliary batches: a copied passage, or the continuation of half the context."""
    settings, parts = spec.objective_settings, reader_parts(cfg, spec, shape, lengths)
    if issubclass(spec.objective, AnswerAndCopy):
        hint, answer = settings["hint_tokens"], settings["copy_tokens"]
        copied = reader_parts(cfg, spec, shape, TextLengths(lengths.context, hint, answer))
        parts = [part for part in copied if part.embeddings and part is copied[-1]]
    elif settings.get("continuation_weight"):
        half, hint = lengths.context // 2, settings["continuation_hint"]
        parts = reader_parts(cfg, spec, shape, TextLengths(half, hint, lengths.context - half))
    else:
        return []
    return [_second_pass(part) for part in parts]


def _second_pass(part: Part) -> Part:
    """The part with shared weights, which are counted elsewhere."""
    fields = {**vars(part), "own": 0, "embeddings": 0, "adapters": 0}
    return Part(**fields)


def _largest_matrix(shape: BackboneShape, parts: list[Part]) -> float:
    """Elements of the largest trained matrix."""
    if any(part.training.mode == "full" and part.embeddings for part in parts):
        return max(shape.embedding_weights, shape.width * shape.inner)
    modes = {part.training.mode for part in parts if part.layers}
    if "full" in modes:
        return shape.width * shape.inner
    return shape.width * shape.heads * shape.head if modes & {"attention", "qkv"} else 0


def _answer_cache(cfg: DictConfig, spec: ReaderSpec, shape: BackboneShape, lengths: TextLengths) -> float:
    """Bytes of the decoder's key/value cache for one context, question and answer."""
    context = min(lengths.context, CHUNKED) if hasattr(spec.compressor, "training_cost") else lengths.context
    settings = spec.settings
    if not getattr(spec.compressor, "keeps_cache", False) and str(settings.get("keep")) != "all":
        context = slots_of(settings, context) if "encoder_layers" in settings or "keep" in settings else context
    tokens = context + lengths.question + (cfg.generation.max_new_tokens or lengths.answer)
    return 2 * shape.layers * shape.kv_heads * shape.head * tokens * DTYPES[cfg.backbone.dtype].itemsize


def estimate_evaluation(cfg: DictConfig, shape: BackboneShape, lengths: TextLengths, examples: int) -> Estimate:
    """The estimate for a composed configuration that is evaluated on `examples` examples by one process.

    Assumes that each question encodes its context again, in full: an upper bound where questions share contexts.
    Answers have their mean length.
    """
    spec, size = ReaderSpec.of(cfg), DTYPES[cfg.backbone.dtype].itemsize
    own_cost, weights, encoded = getattr(spec.compressor, "training_cost", None), shape.weights, lengths.context
    if own_cost is not None:
        encoded = min(encoded, CHUNKED)
        one = own_cost(cfg, shape, lengths, cfg.engine.ranks)[1] / 4  # forward of forward, recomputation and backward
    else:
        parts = reader_parts(cfg, spec, shape, lengths)
        weights = sum(part.own + part.embeddings for part in parts)
        if "encoder_layers" not in spec.settings and str(spec.settings.get("keep")) != "none":
            tokens = lengths.context + lengths.question
            parts = [Part(shape.layers, tokens, tokens, Training("frozen"), False, 0)]
        one = sum(2 * part.multiplications(shape) for part in parts) + 2 * lengths.answer * shape.weights
    cache = 2 * shape.layers * shape.kv_heads * shape.head * (encoded + lengths.answer) * size
    held = Moment("evaluation", weights=weights * size, caches=min(cfg.eval_batch_size, examples) * cache)
    steps = -(-examples // cfg.eval_batch_size) * lengths.answer
    return Estimate(1, examples, Memory((held,)), one * examples, float(steps * shape.weights * size))
