"""The names of RAM's released checkpoints (one file, safetensors or PyTorch), and where each key goes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.runs.released import Names, ReleasedFormat, stack_pairs

ENCODER, LSA, LINEAR = (f"compressor.context_encoder.{part}." for part in ("encoder", "lsa", "linear"))
FUSION = "memory_fusion_layer."
SCALARS = ("alpha_merge", "alpha_select", "beta_merge", "beta_select", "adaptive_temperature")
UNUSED = "stored by the released code, read by no part of it"


class ReleasedRAM(ReleasedFormat):
    """The inference code's form; --alignment transformer_linear --segment-size 16 is the training code's."""

    title = "RAM"
    experiment = "ram_nq"
    defaults = {"ratio": 4, "segment_size": 50, "alignment": "linear"}

    @property
    def decoder(self) -> str:
        """As ReleasedFormat says."""
        return "llm."

    def pairs(self, given: Mapping[str, Any]) -> Names:
        """As ReleasedFormat says."""
        aligned = given["alignment"]
        pairs = stack_pairs("llm.", "decoder.") + stack_pairs("llm_encoder.", ENCODER, head=False)
        if aligned in ("lsa", "transformer_linear"):
            pairs += stack_pairs(FUSION, LSA, embedding=False, head=False)
        if aligned in ("linear", "transformer_linear"):
            pairs += (("semantic_alignment_layer.{rest}", LINEAR + "{rest}"),)
        return pairs

    def apart(self, given: Mapping[str, Any]) -> Names:
        """As ReleasedFormat says."""
        return (
            ("llm_encoder.lm_head.weight", "the encoder's logits are never read"),
            (FUSION + "lm_head.weight", "the alignment's logits are never read"),
            (FUSION + "model.embed_tokens.weight", "the alignment reads vectors, no tokens"),
            (FUSION + "{rest}", f"not part of --alignment {given['alignment']}"),
            ("semantic_alignment_layer.{rest}", f"not part of --alignment {given['alignment']}"),
            *((name, UNUSED) for name in SCALARS),
        )

    def settings(self, given: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """As ReleasedFormat says."""
        return {
            "compressor.ratio": given["ratio"],
            "compressor.segment_size": given["segment_size"],
            "compressor.alignment": given["alignment"],
            "compressor.encoder_layers": self.file.layers("llm_encoder.model.layers.{n}.{rest}"),
            "compressor.lsa_layers": max(self.file.layers(FUSION + "model.layers.{n}.{rest}"), 1),
        }

    def trained(self) -> tuple[str, ...]:
        """The decoder's query, key and value projections (inference code), or else everything (training code)."""
        return "qkv", "full"
