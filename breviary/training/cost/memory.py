"""Memory of one process at each moment of a training step, bytes.

loss        all activations, and the logits of one chunk of rows
backward    activations of the remaining layers, gradients of the finished ones, and temporary tensors of one layer
optimizer   weights, gradients and optimizer state
validation  keys and values of a batch of contexts and answers, without activations
The largest moment is the peak. Left out: fragmentation, kernel workspaces, batches of the data loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from omegaconf import DictConfig

from breviary.backbones.head import loss_bytes
from breviary.backbones.pretrained import DTYPES
from breviary.backbones.shape import BackboneShape
from breviary.training.cost.layer import FLOAT32, saved_bytes, transient_bytes
from breviary.training.cost.parts import Part
from breviary.training.cost.sharding import Weights


@dataclass(frozen=True)
class Moment:
    """Bytes by component at one moment."""

    name: str
    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    logits: float = 0
    caches: float = 0
    buffers: float = 0

    @property
    def total(self) -> float:
        """All components."""
        return sum(getattr(self, name) for name in COMPONENTS)


COMPONENTS = tuple(field.name for field in fields(Moment) if field.name != "name")


@dataclass(frozen=True)
class Memory:
    """The moments of a training step. host: bytes of host memory where an engine offloads."""

    moments: tuple[Moment, ...]
    host: float = 0

    @property
    def peak(self) -> Moment:
        """The moment with the largest total."""
        return max(self.moments, key=lambda moment: moment.total)


@dataclass(frozen=True)
class Step:
    """Bytes of one forward and backward pass, for all examples of a micro-batch. Tuples: one entry per part.

    saved    activations of the layers, in the order of the forward pass
    ends     activations after the last layer (norm, grouping, merging), freed before the backward pass of the layers
    layer    additional bytes during the backward pass of one layer
    weights  number of trained weights, whose gradients exist once the part's backward pass is done
    logits   of the loss
    caches   keys and values that exist during both passes
    """

    saved: tuple[float, ...]
    ends: tuple[float, ...]
    layer: tuple[float, ...]
    weights: tuple[float, ...]
    logits: float
    caches: float = 0


def reader_step(
    cfg: DictConfig, shape: BackboneShape, parts: Sequence[Part], rows: int, supervised: int, is_cast: bool
) -> Step:
    """The step of a reader that consists of `parts`.

    rows        examples of the micro-batch
    supervised  supervised tokens of all examples, i.e. rows of the head
    is_cast     whether autocast copies trained float32 weights to the stream's dtype
    """
    size, checkpointing = DTYPES[cfg.backbone.dtype].itemsize, bool(cfg.train.gradient_checkpointing)
    saved, ends, layer, weights = [], [], [], []
    for part in parts:
        one, of_layer = part_bytes(part, shape, size, checkpointing)
        trained = part.layer_weights_trained(shape) + part.adapters * part.training.adapter_weights(shape)
        casts = trained * size if is_cast else 0
        saved.append(rows * one + (0 if checkpointing else casts))
        ends.append(rows * part.wide * shape.width * FLOAT32 if part.passes else 0)
        layer.append(rows * of_layer + (casts / max(part.layers, 1) if checkpointing else 0))
        weights.append(part.trained_weights(shape) + part.adapters * part.training.adapter_weights(shape))
    logits = loss_bytes(supervised, shape.vocabulary, size) + 3 * supervised * shape.width * size
    if parts[-1].training.mode == "full":  # a chunk's gradient of the head, and the head cast to the stream's dtype
        logits += shape.embedding_weights * (size + (size if is_cast else 0))
    return Step(tuple(saved), tuple(ends), tuple(layer), tuple(weights), logits)


def part_bytes(part: Part, shape: BackboneShape, size: int, checkpointing: bool) -> tuple[float, float]:
    """(saved bytes of a part, additional bytes during the backward pass of one of its layers), for one example."""
    if not part.passes or not part.layers:
        return 0, 0
    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    row = part.tokens * saved_bytes(shape, part.training, size)
    if part.keys:  # attention to a cache uses a mask, for which keys and values are copied to every query head
        row += 2 * q * size * (part.keys + part.tokens) - 2 * kv * size * part.tokens
    rotary = 2 * part.tokens * shape.head * size
    transient = part.tokens * transient_bytes(shape, part.training, size)
    transient += part.layers * part.feeds * 2 * kv * size  # gradients of keys and values that a later part read
    if not checkpointing:
        return part.layers * row + rotary, transient
    inputs = part.tokens * shape.width + part.keys * 2 * kv
    return part.layers * inputs * size + rotary, row + transient


def training_moments(
    weights: Weights, step: Step, accumulates: bool, validation_caches: float, largest: float = 0
) -> Memory:
    """The moments of a training step.

    accumulates  whether gradients of an earlier micro-batch exist in the forward pass
    largest      elements of the largest matrix, of which an optimizer on the CPU makes two float32 copies
    """
    held = Moment("", weights=weights.bytes, optimizer=weights.optimizer, caches=step.caches, buffers=weights.buffers)
    full = weights.gradients
    per_weight = full / weights.trained if weights.trained else 0
    before = full if accumulates else 0
    moments = [
        replace(held, name="loss", gradients=before, activations=sum(step.saved) + sum(step.ends), logits=step.logits)
    ]
    done = 0.0
    for i in reversed(range(len(step.saved))):
        for saved, behind in ((sum(step.saved[: i + 1]), done), (sum(step.saved[:i]), done + step.weights[i])):
            gradients = max(before, min(full, behind * per_weight))
            activations = saved + sum(step.ends[:i]) + step.layer[i]
            moments.append(replace(held, name="backward", gradients=gradients, activations=activations))
        done += step.weights[i]
    backward = max(moments[1:], key=lambda moment: moment.total)
    at_step = replace(held, name="optimizer", gradients=full, caches=0)
    at_step = replace(at_step, buffers=held.buffers + weights.step + 2 * FLOAT32 * largest)
    validation = replace(held, name="validation", caches=validation_caches, buffers=held.buffers)
    return Memory((moments[0], backward, at_step, validation), weights.host)
