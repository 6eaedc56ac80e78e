"""Names in RAM's released checkpoints (one file, safetensors or PyTorch), and what each key becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.runs.released import NameMap, ReleasedFormat, stack_names

ENCODER, LSA, LINEAR = (f"compressor.context_encoder.{part}." for part in ("encoder", "lsa", "linear"))
FUSION = "memory_fusion_layer."
SCALARS = ("alpha_merge", "alpha_select", "beta_merge", "beta_select", "adaptive_temperature")
UNUSED = "the released code stores it and never uses it"


class ReleasedRAM(ReleasedFormat):
    """Defaults of the inference code. The training code uses --alignment transformer_linear --segment-size 16."""

    title = "RAM"
    experiment = "ram_nq"
    defaults = {"ratio": 4, "segment_size": 50, "alignment": "linear"}

    @property
    def decoder_prefix(self) -> str:
        """As in ReleasedFormat."""
        return "llm."

    def weight_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """As in ReleasedFormat."""
        alignment = arguments["alignment"]
        names = stack_names("llm.", "decoder.") + stack_names("llm_encoder.", ENCODER, head=False)
        if alignment in ("lsa", "transformer_linear"):
            names += stack_names(FUSION, LSA, embedding=False, head=False)
        if alignment in ("linear", "transformer_linear"):
            names += (("semantic_alignment_layer.{rest}", LINEAR + "{rest}"),)
        return names

    def unused_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """As in ReleasedFormat."""
        other_alignment = f"not part of --alignment {arguments['alignment']}"
        return (
            ("llm_encoder.lm_head.weight", "the encoder has no LM head"),
            (FUSION + "lm_head.weight", "the alignment has no LM head"),
            (FUSION + "model.embed_tokens.weight", "the input of the alignment is vectors, not tokens"),
            (FUSION + "{rest}", other_alignment),
            ("semantic_alignment_layer.{rest}", other_alignment),
            *((name, UNUSED) for name in SCALARS),
        )

    def settings(self, arguments: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """As in ReleasedFormat."""
        return {
            "compressor.ratio": arguments["ratio"],
            "compressor.segment_size": arguments["segment_size"],
            "compressor.alignment": arguments["alignment"],
            "compressor.encoder_layers": self.file.layer_count("llm_encoder.model.layers.{n}.{rest}"),
            "compressor.lsa_layers": max(self.file.layer_count(FUSION + "model.layers.{n}.{rest}"), 1),
        }

    def train_modes(self) -> tuple[str, ...]:
        """The decoder's query, key and value projections (inference code), then all weights (training code)."""
        return "qkv", "full"
