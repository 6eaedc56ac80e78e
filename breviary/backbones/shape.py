"""Sizes of a backbone, for plans and estimates that load nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone.

    layers L, width D, inner width of the MLP, heads and kv_heads of width `head`, vocabulary size; tied embeddings;
    qk_norm: queries and keys have norms of their own (Qwen3)
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    qk_norm: bool = False

    @classmethod
    def from_config(cls, config: Any) -> BackboneShape:
        """The shape of a Hugging Face configuration."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
            bool(config.tie_word_embeddings),
            config.model_type == "qwen3",
        )

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's q, k, v and o."""
        return 2 * self.width * self.head * (self.heads + self.kv_heads)

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices = multiplications per row of its input."""
        return self.attention_weights + 3 * self.width * self.inner

    @property
    def embedding_weights(self) -> int:
        """Weights of the token embeddings = multiplications per row of the head."""
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """All weights of the backbone, without norms."""
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.embedding_weights


# Shapes of the papers' backbones, by hub name: a plan needs no network. From their published config.json.
KNOWN_SHAPES = {
    "meta-llama/Llama-2-7b-chat-hf": BackboneShape(32, 4096, 11008, 32, 32, 128, 32000, False),
    "meta-llama/Llama-3.1-8B-Instruct": BackboneShape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "meta-llama/Llama-3.2-1B-Instruct": BackboneShape(16, 2048, 8192, 32, 8, 64, 128256, True),
    "meta-llama/Llama-3.2-3B-Instruct": BackboneShape(28, 3072, 8192, 24, 8, 128, 128256, True),
    "Qwen/Qwen2-7B-Instruct": BackboneShape(28, 3584, 18944, 28, 4, 128, 152064, False),
    "Qwen/Qwen2.5-7B-Instruct": BackboneShape(28, 3584, 18944, 28, 4, 128, 152064, False),
    "Qwen/Qwen3-4B-Instruct-2507": BackboneShape(36, 2560, 9728, 32, 8, 128, 151936, True, True),
    "smollm2_135m": BackboneShape(30, 576, 1536, 9, 3, 64, 49152, True),  # by folder, as configs/backbone names it
    "qwen25_0_5b": BackboneShape(24, 896, 4864, 14, 2, 64, 151936, True),
    "qwen25_coder_0_5b": BackboneShape(24, 896, 4864, 14, 2, 64, 151936, True),
}


def known_shape(path: str) -> BackboneShape:
    """The shape of a hub name, or of a folder with such a name or with a config.json; nothing is downloaded.

    Raises: ValueError for others.
    """
    shapes = {name.rpartition("/")[2].lower(): shape for name, shape in KNOWN_SHAPES.items()}
    name = path.rstrip("/").rpartition("/")[2].lower()
    if name in shapes:
        return shapes[name]
    if (Path(path) / "config.json").is_file():
        return BackboneShape.from_config(AutoConfig.from_pretrained(path, local_files_only=True))
    raise ValueError(f"{path}: no backbone of known sizes; there are {', '.join(KNOWN_SHAPES)}")
