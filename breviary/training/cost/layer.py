"""Activation bytes of one decoder layer for the backward pass, counted from the tensors that autograd saves.

The counts hold for transformers' Llama, Qwen2 and Qwen3 layers with fused attention (sdpa without a mask, or flash
attention), which saves no attention weights. A test compares them with a real layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from breviary.backbones.shape import BackboneShape
from breviary.backbones.trainable import LINEAR

FLOAT32 = 4  # bytes
ATTENTION = ("q_proj", "k_proj", "v_proj")  # projections of the first norm's output
MLP = ("gate_proj", "up_proj")  # projections of the second norm's output


@dataclass(frozen=True)
class Training:
    """Which weights of a stack are trained, as in section `decoder`.

    mode     lora | attention | qkv | frozen | full
    rank     of the adapters
    targets  matrices with an adapter
    dropout  of the adapters' input
    on_cpu   whether dropout masks have the stream's dtype (on a GPU they take one byte per element)
    """

    mode: str
    rank: int = 0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    on_cpu: bool = False

    @classmethod
    def of(
        cls, mode: str | None, rank: int, targets: str | Sequence[str], dropout: float = 0.0, on_cpu: bool = False
    ) -> Training:
        """From the values of configuration keys; None = frozen."""
        if mode != "lora":
            return cls(mode or "frozen")
        return cls("lora", rank, LINEAR if targets == "all-linear" else tuple(targets), dropout, on_cpu)

    def share(self, shape: BackboneShape) -> float:
        """Trained share of a layer's own weights, without adapters."""
        if self.mode == "full":
            return 1.0
        if self.mode not in ("attention", "qkv"):
            return 0.0
        share = shape.attention_weights / shape.layer_weights
        return share if self.mode == "attention" else share * (1 - shape.heads / (2 * (shape.heads + shape.kv_heads)))

    def adapter_weights(self, shape: BackboneShape) -> int:
        """Weights of the adapters of one layer."""
        return sum(self.rank * sum(matrix_shape(name, shape)) for name in self.targets)


def matrix_shape(name: str, shape: BackboneShape) -> tuple[int, int]:
    """(input width, output width) of a layer's matrix."""
    q, kv, wide, inner = shape.heads * shape.head, shape.kv_heads * shape.head, shape.width, shape.inner
    return {
        "q_proj": (wide, q),
        "k_proj": (wide, kv),
        "v_proj": (wide, kv),
        "o_proj": (q, wide),
        "gate_proj": (wide, inner),
        "up_proj": (wide, inner),
        "down_proj": (inner, wide),
    }[name]


def saved_bytes(shape: BackboneShape, training: Training, size: int) -> int:
    """Bytes that a layer saves per token. size: bytes per element of the residual stream.

    Always saved: both norms' inputs and scales in float32; queries, keys, values and attention output, with one float32
    per head; the MLP's three inner tensors. A matrix that is trained, or has an adapter, also saves its input.
    """
    q, kv, wide = shape.heads * shape.head, shape.kv_heads * shape.head, max(size, FLOAT32)
    saved = 2 * (shape.width + 1) * wide + (2 * q + 2 * kv + 3 * shape.inner) * size + shape.heads * FLOAT32
    if shape.qk_norm:
        saved += (q + kv + shape.heads + shape.kv_heads) * wide
    if training.mode == "full":  # trained norms save their normalised input too
        saved += (4 * shape.width + shape.inner + (q + kv if shape.qk_norm else 0)) * size
    elif training.mode in ("attention", "qkv"):
        saved += shape.width * size
    elif training.dropout:  # each adapter has a dropped input of its own, and its mask
        mask = size if training.on_cpu else 1
        saved += sum(matrix_shape(name, shape)[0] * (size + mask) for name in training.targets)
    else:
        reads = [any(name in training.targets for name in group) for group in (ATTENTION, MLP)]
        saved += (sum(reads) * shape.width + ("down_proj" in training.targets) * shape.inner) * size
    return saved + len(training.targets) * training.rank * size


def transient_bytes(shape: BackboneShape, training: Training, size: int) -> int:
    """Bytes per token that the backward pass of a layer allocates in addition to the saved tensors.

    The gradient of the layer's output and the gradients of the MLP's inner tensors.
    """
    freed = shape.inner if training.mode == "full" or "down_proj" in training.targets else 0
    return (shape.width + 3 * shape.inner - freed) * size
