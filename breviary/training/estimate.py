"""Estimated memory and time of a training run, from FLOPs and bytes. Nothing is loaded or measured.

Left out: norms, adapters' multiplications, fragmentation, buffers of the engine, validation, loading of data. Expect
the memory within about a third, and the time within a factor of two of a real run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from breviary.backbones.pretrained import DTYPES
from breviary.backbones.shape import BackboneShape
from breviary.config.build import ReaderSpec

SUSTAINED = 120e12  # FLOP/s of one GPU in training: 38% of an A100's peak in bfloat16
FLOAT32 = 4  # bytes
MASTERS = 3 * FLOAT32  # bytes per trained weight of ZeRO: float32 weight and both moments of Adam
CHUNKED = 8192  # tokens whose keys and values a reader of chunks holds at most: a chunk, memory and question
RAM_KEPT = 0.5  # mean share of segments that RAM keeps in training with uniform_keep


@dataclass(frozen=True)
class TextLengths:
    """Mean tokens of a context, a question and an answer."""

    context: int
    question: int
    answer: int


@dataclass(frozen=True)
class Part:
    """A stack of layers in one forward pass over one example.

    layers, tokens  what it computes
    span            tokens that a token attends to at most: the segment's or the sequence's length
    trained         share of its weights that are trained; `passes` = gradients pass through it
    own             weights of its layers; 0 = those of another part
    embeddings      weights of embeddings and head that it holds; trained only where all weights are
    """

    layers: int
    tokens: int
    span: int
    trained: float
    passes: bool
    own: int
    embeddings: int = 0

    @property
    def trained_weights(self) -> float:
        """Weights that are trained."""
        return self.trained * self.own + (self.embeddings if self.trained == 1 else 0)

    def multiplications(self, shape: BackboneShape) -> int:
        """Of the forward pass; attention is causal."""
        attention = self.tokens * min(self.span, self.tokens) * shape.heads * shape.head
        return self.layers * (self.tokens * shape.layer_weights + attention)

    def flops(self, shape: BackboneShape, checkpointing: bool) -> float:
        """Of forward and backward pass: gradients of the inputs where they pass, of the weights where trained."""
        passes = 1 + (1 + checkpointing if self.passes else 0) + self.trained
        return 2 * passes * self.multiplications(shape)

    def activations(self, shape: BackboneShape, size: int, checkpointing: bool) -> int:
        """Bytes saved for the backward pass; size: of one number of the residual stream."""
        if not self.passes:
            return 0
        q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
        row = shape.width * (2 * FLOAT32 + 5 * size) + (2 * q + 2 * kv) * 2 * size + 3 * shape.inner * size
        return self.tokens * (self.layers * shape.width * size + row if checkpointing else self.layers * row)


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a training run.

    processes, global_batch  GPUs, and examples per optimizer step
    bytes                    of the GPU that holds most
    flops                    of the whole run, on all GPUs
    moved                    bytes of weights that decoding reads from memory, in an evaluation
    """

    processes: int
    global_batch: int
    bytes: float
    flops: float
    moved: float = 0.0

    @property
    def hours(self) -> float:
        """At SUSTAINED on every GPU."""
        return self.flops / self.processes / SUSTAINED / 3600

    def __str__(self) -> str:
        hours = f"{self.hours:.0f}" if self.hours >= 2 else f"{self.hours:.1f}"
        return (
            f"global batch {self.global_batch}; estimated {self.bytes / 1e9:.0f} GB on each of {self.processes} GPU"
            f"{'s' * (self.processes > 1)}, {hours} hours"
        )


def estimate_training(cfg: DictConfig, shape: BackboneShape, lengths: TextLengths, processes: int = 1) -> Estimate:
    """The estimate for a composed configuration of train.py on `processes` GPUs.

    A compressor with a cost of its own has a static method training_cost(cfg, shape, lengths, processes), which
    returns (bytes of the GPU that holds most, FLOPs per example).
    """
    train, spec = cfg.train, ReaderSpec.of(cfg)
    batches = train.batch_size * train.accumulation * processes // cfg.engine.ranks
    global_batch = train.get("global_batch") or batches
    own_cost = getattr(spec.compressor, "training_cost", None)
    if own_cost is not None:
        held, flops = own_cost(cfg, shape, lengths, processes)
    else:
        parts, size = reader_parts(cfg, spec, shape, lengths), DTYPES[cfg.backbone.dtype].itemsize
        logits = lengths.answer * shape.vocabulary * (2 * FLOAT32 + size)
        checkpointing = train.gradient_checkpointing
        activations = logits + sum(part.activations(shape, size, checkpointing) for part in parts)
        held = _weight_bytes(cfg, shape, parts, processes, size) + train.batch_size * activations
        flops = sum(part.flops(shape, checkpointing) for part in parts) + 6 * lengths.answer * shape.embedding_weights
    return Estimate(processes, global_batch, held, flops * global_batch * train.steps)


def estimate_evaluation(cfg: DictConfig, shape: BackboneShape, lengths: TextLengths, examples: int) -> Estimate:
    """The estimate for a composed configuration that is evaluated on `examples` examples by one process.

    Every context is encoded anew for every question, and readers that choose among keys or words read all of it: an
    upper bound where questions share contexts. Answers have their mean length.
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
            parts = [Part(shape.layers, tokens, tokens, 0.0, False, 0)]
        one = sum(2 * part.multiplications(shape) for part in parts) + 2 * lengths.answer * shape.weights
    cache = 2 * shape.layers * shape.kv_heads * shape.head * (encoded + lengths.answer) * size
    held = weights * size + min(cfg.eval_batch_size, examples) * cache
    steps = -(-examples // cfg.eval_batch_size) * lengths.answer
    return Estimate(1, examples, held, one * examples, float(steps * shape.weights * size))


def reader_parts(cfg: DictConfig, spec: ReaderSpec, shape: BackboneShape, lengths: TextLengths) -> list[Part]:
    """Encoder, alignment and decoder, those that the reader has, for one example."""
    settings, asked = spec.settings, lengths.question + lengths.answer
    decoder_trained = _trained_share(cfg.decoder.train, shape)
    layers, slots = settings.get("encoder_layers"), _slots(settings, lengths.context)
    whole = shape.layers * shape.layer_weights, shape.weights - shape.layers * shape.layer_weights
    if "encoder_layers" not in settings:  # a plain prompt
        context = {"all": lengths.context, "none": 0}.get(str(settings.get("keep")), slots)
        return [Part(shape.layers, context + asked, context + asked, decoder_trained, True, *whole)]
    span = settings.get("segment_size") or lengths.context
    if settings.get("join") == "depth":
        assert layers is not None, settings
        below = Part(layers, lengths.context + asked, span, decoder_trained, True, 0)
        return [below, Part(shape.layers - layers, slots + asked, slots + asked, decoder_trained, True, *whole)]
    decoder = Part(shape.layers, slots + asked, slots + asked, decoder_trained, True, *whole)
    layers = layers or shape.layers
    if "memory_tokens" in settings:  # adapters on the decoder's own weights
        return [Part(layers, lengths.context + slots, lengths.context + slots, 0.0, True, 0), decoder]
    frozen, mode = settings.get("frozen"), settings.get("encoder_train")
    share = 0.0 if frozen else _trained_share(mode, shape)
    own, passes = layers * shape.layer_weights, not frozen and mode != "frozen"
    encoder = Part(layers, lengths.context + lengths.question, span, share, passes, own, shape.embedding_weights)
    aligned = settings.get("lsa_layers", 0) if "lsa" in str(settings.get("alignment")) else 0
    block = Part(aligned, slots, slots, 0.0 if frozen else 1.0, not frozen, aligned * shape.layer_weights)
    return [encoder, block, decoder]


def _slots(settings: Any, context: int) -> int:
    """Memory slots of a context in training."""
    if settings.get("slots"):
        return settings["slots"]
    if not (ratio := settings.get("ratio")):
        return 0
    if not settings.get("keep") or "segment_size" not in settings:
        return round(context / ratio)
    kept = RAM_KEPT if settings.get("uniform_keep") else 1 / ratio
    return round(context * (kept + (1 - kept) / settings["segment_size"]))


def _trained_share(mode: str | None, shape: BackboneShape) -> float:
    """Share of a layer's weights that are trained; adapters count as none."""
    if mode == "full":
        return 1.0
    if mode in ("attention", "qkv"):
        share = shape.attention_weights / shape.layer_weights
        return share if mode == "attention" else share * (1 - shape.heads / (2 * (shape.heads + shape.kv_heads)))
    return 0.0


def _weight_bytes(cfg: DictConfig, shape: BackboneShape, parts: list[Part], processes: int, size: int) -> float:
    """Bytes of weights, gradients and optimizer of one process; adapters are included with 16 bytes a weight."""
    total = sum(part.own + part.embeddings for part in parts)
    trained = sum(part.trained_weights for part in parts)
    rank, targets = cfg.decoder.lora_rank, 2 * shape.width + shape.inner
    adapters = shape.layers * rank * targets * 4 if cfg.decoder.train == "lora" else 0
    if cfg.engine.kind != "zero":
        return (total - trained) * size + (trained + adapters) * 4 * FLOAT32
    stage = cfg.engine.deepspeed["zero_optimization"]["stage"]
    weights = total * size / (processes if stage == 3 else 1)
    gradients = (trained + adapters) * size / (processes if stage > 1 else 1)
    return weights + gradients + (trained + adapters) * MASTERS / processes
