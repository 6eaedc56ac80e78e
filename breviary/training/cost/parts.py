"""What a reader computes for one example: stacks of layers, each on a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from breviary.backbones.shape import BackboneShape
from breviary.config.build import ReaderSpec
from breviary.memory.assembly import ROUND_TO
from breviary.selection.head_scores import selecting_layer
from breviary.training.cost.layer import Training

GROUPED = 6  # float32 copies of a context's states that COMI's grouping saves, measured
RAM_KEPT = 0.5  # mean share of segments that RAM keeps in training with uniform_keep


@dataclass(frozen=True)
class TextLengths:
    """Tokens of a context, of question and prefix, and of an answer."""

    context: int
    question: int
    answer: int


@dataclass(frozen=True)
class Part:
    """A stack of layers in one forward pass over one example.

    layers, tokens  what it computes
    span            tokens that a token attends to at most: the segment's or the sequence's length
    training        which of its weights are trained; `passes` = gradients pass through it
    own             weights of its layers; 0 = those of another part
    embeddings      weights of embeddings and head that it holds; trained only where all weights are
    keys            tokens whose keys and values, from a cache, each layer joins with those of `tokens`
    feeds           tokens of it whose keys and values a later part reads
    wide            rows of states that it copies in float32 behind its last layer: norm, grouping, merging
    adapters        layers whose adapters it holds; 0 = those of another part
    """

    layers: int
    tokens: int
    span: int
    training: Training
    passes: bool
    own: int
    embeddings: int = 0
    keys: int = 0
    feeds: int = 0
    wide: int = 0
    adapters: int = 0

    def trained_weights(self, shape: BackboneShape) -> float:
        """Weights that are trained, without adapters."""
        return self.layer_weights_trained(shape) + (self.embeddings if self.training.mode == "full" else 0)

    def layer_weights_trained(self, shape: BackboneShape) -> float:
        """As `trained_weights`, of its layers alone."""
        return self.training.share(shape) * self.own

    def multiplications(self, shape: BackboneShape) -> int:
        """Of the forward pass; attention is causal."""
        attention = self.tokens * min(self.span, self.tokens) + 2 * self.tokens * self.keys
        return self.layers * (self.tokens * shape.layer_weights + attention * shape.heads * shape.head)

    def flops(self, shape: BackboneShape, checkpointing: bool) -> float:
        """Of forward and backward pass: gradients of the inputs where they pass, of the weights where trained."""
        passes = 1 + (1 + checkpointing if self.passes else 0) + self.training.share(shape)
        return 2 * passes * self.multiplications(shape)


def reader_parts(
    cfg: DictConfig, spec: ReaderSpec, shape: BackboneShape, lengths: TextLengths, is_peak: bool = False
) -> list[Part]:
    """Encoder, alignment and decoder, those that the reader has, for one example.

    is_peak  for memory: the most slots that a step may draw, in place of their mean
    """
    settings, asked = spec.settings, lengths.question + lengths.answer
    decoder, on_cpu = cfg.decoder, cfg.backbone.device == "cpu"
    training = Training.of(decoder.train, decoder.lora_rank, decoder.lora_targets, decoder.lora_dropout, on_cpu)
    slots = slots_of(settings, lengths.context, is_peak)
    own, embeddings = shape.layers * shape.layer_weights, shape.weights - shape.layers * shape.layer_weights
    if "encoder_layers" not in settings:
        return _plain_parts(spec, shape, lengths, slots, training, (own, embeddings))
    span, context = settings.get("segment_size") or lengths.context, lengths.context
    if "memory_tokens" in settings:  # adapters on the decoder's own weights
        slots = memory_slots(settings, context)
    width, layers = slots + asked, settings["encoder_layers"] or shape.layers
    above = Part(shape.layers, _wide(width), width, training, True, own, embeddings, adapters=shape.layers)
    if settings.get("join") == "depth":
        below = Part(
            layers, _segmented(settings, context), span, training, True, 0, wide=context + _compared(settings, context)
        )
        prompt = Part(layers, _wide(asked), asked, training, True, 0)
        return [below, prompt, replace(above, layers=shape.layers - layers)]
    if "memory_tokens" in settings:
        rank, targets, dropout = settings["lora_rank"], settings["lora_targets"], settings["lora_dropout"]
        adapters = Training.of("lora", rank, targets, dropout, on_cpu)
        segments = -(-context // _segment(settings)) or 1
        read = segments * _wide(-(-context // segments) + slots // segments)
        return [Part(layers, read, read // segments, adapters, True, 0, wide=read, adapters=layers), above]
    return [*_encoder_parts(spec, shape, lengths, slots, on_cpu), above]


def _encoder_parts(
    spec: ReaderSpec, shape: BackboneShape, lengths: TextLengths, slots: int, on_cpu: bool
) -> list[Part]:
    """A separate encoder's pass over the context and over the question, and the alignment's over the slots."""
    settings = spec.settings
    frozen, mode = settings.get("frozen"), settings.get("encoder_train")
    training = Training("frozen")
    if not frozen:
        rank, dropout = settings.get("encoder_lora_rank") or 0, settings.get("encoder_lora_dropout") or 0.0
        training = Training.of(mode, rank, "all-linear", dropout, on_cpu)
    layers, passes = settings["encoder_layers"] or shape.layers, training.mode != "frozen"
    span = settings.get("segment_size") or lengths.context
    own = layers * shape.layer_weights
    context, held = lengths.context, shape.embedding_weights
    wide = context + _compared(settings, context)
    asks = getattr(spec.compressor, "needs_question", True)
    behind = context if asks and settings.get("question") == "after_context" else 0
    read = Part(
        layers,
        _segmented(settings, context),
        span,
        training,
        passes,
        own,
        held,
        feeds=behind,
        wide=wide,
        adapters=layers,
    )
    asked = Part(layers, _wide(lengths.question), lengths.question, training, passes, 0, keys=behind)
    aligned = settings.get("lsa_layers", 0) if settings.get("alignment") not in ("linear", "none") else 0
    whole = Training("frozen" if frozen else "full")
    block = Part(aligned, slots, slots, whole, not frozen, aligned * shape.layer_weights, wide=slots if aligned else 0)
    return [read, asked, block] if asks else [read, block]


def _plain_parts(
    spec: ReaderSpec,
    shape: BackboneShape,
    lengths: TextLengths,
    slots: int,
    training: Training,
    weights: tuple[int, int],
) -> list[Part]:
    """The decoder on a prompt, on a cache that it computed before, or on what its lower layers chose."""
    settings, context, asked = spec.settings, lengths.context, lengths.question + lengths.answer
    if not getattr(spec.compressor, "keeps_cache", False):
        kept = {"all": context, "none": 0}.get(str(settings.get("keep")), slots)
        return [Part(shape.layers, _wide(kept + asked), kept + asked, training, True, *weights, adapters=shape.layers)]
    kept = slots or context
    chosen = selecting_layer(settings["layer"], shape.layers) if "window" in settings and "layer" in settings else None
    below = shape.layers if chosen is None else chosen
    span = settings.get("window") or context if chosen is None else context
    read = Part(below, _wide(context), span, training, True, 0, feeds=min(kept, context))
    upper = [] if chosen is None else [Part(shape.layers - below, _wide(kept), kept, training, True, 0)]
    last = Part(shape.layers, _wide(asked), asked, training, True, *weights, keys=kept, adapters=shape.layers)
    return [read, *upper, last]


def slots_of(settings: Any, context: int, is_peak: bool = False) -> int:
    """Memory slots of a context in training: on average, or the most that a step may draw."""
    if settings.get("slots"):
        return settings["slots"]
    choices = [settings.get("ratio"), *(settings.get("ratio_choices") or [])]
    if not choices[0]:
        return 0
    ratio = min(choices) if is_peak else choices[0]
    if not settings.get("keep") or "segment_size" not in settings:
        return -(-context // int(ratio))
    kept = (1.0 if is_peak else RAM_KEPT) if settings.get("uniform_keep") else 1 / ratio
    return round(context * (kept + (1 - kept) / settings["segment_size"]))


def memory_slots(settings: Any, context: int) -> int:
    """Slots of a reader with memory tokens: those of all segments, and the task's."""
    if settings.get("slots"):
        return settings["slots"] + bool(settings["task_tokens"])
    segments = -(-context // _segment(settings)) or 1
    each = settings["memory_tokens"] if settings["count"] == "fixed" else -(-context // (segments * settings["ratio"]))
    return segments * each + bool(settings["task_tokens"])


def _segment(settings: Any) -> int:
    """Context tokens of a full segment that memory tokens follow."""
    return int(settings["memory_tokens"] * (settings["ratio"] or 4))


def _compared(settings: Any, context: int) -> int:
    """Rows of float32 states that comparing tokens of a group with each other copies (COMI's grouping)."""
    grouping = settings if "redundancy_fine" in settings else settings.get("skimmer") or {}
    return GROUPED * context if grouping.get("redundancy_fine") else 0


def _segmented(settings: Any, context: int) -> int:
    """Columns of a context: several segments are all as wide as a full one."""
    size = settings.get("segment_size") or context
    return _wide(context) if context <= size or settings.get("read") == "whole" else -(-context // size) * size


def _wide(tokens: int) -> int:
    """Columns of a sequence of so many tokens."""
    return max(-(-tokens // ROUND_TO), 1) * ROUND_TO
