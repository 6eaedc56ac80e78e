"""The forward pass of a reader on one example as parts: stacks of layers, each on a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from breviary.backbones.shape import BackboneShape
from breviary.config.build import ReaderSpec
from breviary.memory.assembly import ROUND_TO
from breviary.selection.head_scores import selecting_layer
from breviary.training.cost.layer import Training

GROUPED = 6  # measured number of float32 copies of a context's states that COMI's grouping saves
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

    layers      number of layers
    tokens      tokens of the sequence, padding included
    span        maximum number of tokens that a token attends to: length of a segment or of the sequence
    training    which weights are trained
    passes      whether gradients pass through the part
    own         weights of its layers; 0 = shared with another part
    embeddings  weights of its embeddings and head; trained only in mode full
    keys        cached tokens that each layer attends to in addition to `tokens`
    feeds       tokens whose keys and values a later part attends to
    wide        rows of states copied to float32 after the last layer, by norm, grouping and merging
    adapters    layers with adapters of their own; 0 = shared with another part
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
        """Multiply-adds of the forward pass, with causal attention."""
        attention = self.tokens * min(self.span, self.tokens) + 2 * self.tokens * self.keys
        return self.layers * (self.tokens * shape.layer_weights + attention * shape.heads * shape.head)

    def flops(self, shape: BackboneShape, checkpointing: bool) -> float:
        """FLOPs of forward and backward pass: gradients of inputs where they pass, of weights where trained."""
        passes = 1 + (1 + checkpointing if self.passes else 0) + self.training.share(shape)
        return 2 * passes * self.multiplications(shape)


def reader_parts(
    cfg: DictConfig, spec: ReaderSpec, shape: BackboneShape, lengths: TextLengths, is_peak: bool = False
) -> list[Part]:
    """Encoder, alignment and decoder, those of them that the reader has, for one example.

    is_peak  for memory: use the maximum number of slots of a step, not the mean
    """
    settings, rest = spec.settings, lengths.question + lengths.answer
    decoder, on_cpu = cfg.decoder, cfg.backbone.device == "cpu"
    training = Training.of(decoder.train, decoder.lora_rank, decoder.lora_targets, decoder.lora_dropout, on_cpu)
    slots = slots_of(settings, lengths.context, is_peak)
    own, embeddings = shape.layers * shape.layer_weights, shape.weights - shape.layers * shape.layer_weights
    if "encoder_layers" not in settings:
        return _plain_parts(spec, shape, lengths, slots, training, (own, embeddings))
    span, context = settings.get("segment_size") or lengths.context, lengths.context
    if "memory_tokens" in settings:  # adapters on the decoder's own weights
        slots = memory_slots(settings, context)
    width, layers = slots + rest, settings["encoder_layers"] or shape.layers
    above = Part(shape.layers, _padded(width), width, training, True, own, embeddings, adapters=shape.layers)
    if settings.get("join") == "depth":
        below = Part(
            layers, _segmented(settings, context), span, training, True, 0, wide=context + _compared(settings, context)
        )
        prompt = Part(layers, _padded(rest), rest, training, True, 0)
        return [below, prompt, replace(above, layers=shape.layers - layers)]
    if "memory_tokens" in settings:
        rank, targets, dropout = settings["lora_rank"], settings["lora_targets"], settings["lora_dropout"]
        adapters = Training.of("lora", rank, targets, dropout, on_cpu)
        segments = -(-context // _segment(settings)) or 1
        read = segments * _padded(-(-context // segments) + slots // segments)
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
    uses_question = getattr(spec.compressor, "needs_question", True)
    behind = context if uses_question and settings.get("question") == "after_context" else 0
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
    question = Part(layers, _padded(lengths.question), lengths.question, training, passes, 0, keys=behind)
    aligned = settings.get("lsa_layers", 0) if settings.get("alignment") not in ("linear", "none") else 0
    whole = Training("frozen" if frozen else "full")
    block = Part(aligned, slots, slots, whole, not frozen, aligned * shape.layer_weights, wide=slots if aligned else 0)
    return [read, question, block] if uses_question else [read, block]


def _plain_parts(
    spec: ReaderSpec,
    shape: BackboneShape,
    lengths: TextLengths,
    slots: int,
    training: Training,
    weights: tuple[int, int],
) -> list[Part]:
    """Parts of a reader without an encoder: the decoder on a prompt, on its own cache, or on selected tokens."""
    settings, context, rest = spec.settings, lengths.context, lengths.question + lengths.answer
    if not getattr(spec.compressor, "keeps_cache", False):
        kept = {"all": context, "none": 0}.get(str(settings.get("keep")), slots)
        return [Part(shape.layers, _padded(kept + rest), kept + rest, training, True, *weights, adapters=shape.layers)]
    kept = slots or context
    chosen = selecting_layer(settings["layer"], shape.layers) if "window" in settings and "layer" in settings else None
    below = shape.layers if chosen is None else chosen
    span = settings.get("window") or context if chosen is None else context
    read = Part(below, _padded(context), span, training, True, 0, feeds=min(kept, context))
    upper = [] if chosen is None else [Part(shape.layers - below, _padded(kept), kept, training, True, 0)]
    last = Part(shape.layers, _padded(rest), rest, training, True, *weights, keys=kept, adapters=shape.layers)
    return [read, *upper, last]


def slots_of(settings: Any, context: int, is_peak: bool = False) -> int:
    """Memory slots of a context in training: the mean, or with is_peak the maximum of a step."""
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
    """Slots of a reader with memory tokens: those of all segments, and the task token."""
    if settings.get("slots"):
        return settings["slots"] + bool(settings["task_tokens"])
    segments = -(-context // _segment(settings)) or 1
    each = settings["memory_tokens"] if settings["count"] == "fixed" else -(-context // (segments * settings["ratio"]))
    return segments * each + bool(settings["task_tokens"])


def _segment(settings: Any) -> int:
    """Context tokens of a full segment, after which memory tokens are inserted."""
    return int(settings["memory_tokens"] * (settings["ratio"] or 4))


def _compared(settings: Any, context: int) -> int:
    """Rows of float32 states copied by pairwise comparison within groups (COMI's grouping)."""
    grouping = settings if "redundancy_fine" in settings else settings.get("skimmer") or {}
    return GROUPED * context if grouping.get("redundancy_fine") else 0


def _segmented(settings: Any, context: int) -> int:
    """Columns of a context; all segments are padded to a full one."""
    size = settings.get("segment_size") or context
    return _padded(context) if context <= size or settings.get("read") == "whole" else -(-context // size) * size


def _padded(tokens: int) -> int:
    """`tokens` rounded up to a multiple of ROUND_TO, at least one."""
    return max(-(-tokens // ROUND_TO), 1) * ROUND_TO
