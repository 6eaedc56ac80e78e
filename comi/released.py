"""Names in COMI's released checkpoints (one file, decoder with or without LoRA), and what each key becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.runs.released import NameMap, ReleasedFile, ReleasedFormat, stack_names

ENCODER, LSA, LINEAR = (f"compressor.context_encoder.{part}." for part in ("encoder", "lsa", "linear"))
FUSION = "memory_fusion_layer."
SCALARS, STAGES = ("alpha", "beta"), ("select", "merge")  # coarse, fine


class ReleasedCOMI(ReleasedFormat):
    """alpha_select and beta_select weight the coarse gain, alpha_merge and beta_merge the fine gain, learned or not."""

    title = "COMI"
    experiment = "comi_nq"
    defaults = {"ratio": 16, "segment_size": 10000, "alignment": "lsa", "lora_alpha": 32}

    def __init__(self, file: ReleasedFile):
        super().__init__(file)
        self.has_lora = file.has_prefix("decoder.base_model.")
        if not self.has_lora:
            self.defaults = {key: value for key, value in self.defaults.items() if key != "lora_alpha"}
        self.encoder_prefix = "icae." if file.has_prefix("icae.") else "encoder."  # icae.: older files

    @property
    def decoder_prefix(self) -> str:
        """As in ReleasedFormat."""
        return "decoder.base_model.model." if self.has_lora else "decoder."

    def weight_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """As in ReleasedFormat."""
        alignment = arguments["alignment"]
        names = stack_names(self.decoder_prefix, "decoder.") + stack_names(self.encoder_prefix, ENCODER, head=False)
        if alignment in ("lsa", "transformer_linear"):
            names += stack_names(FUSION, LSA, embedding=False, head=False)
        if alignment in ("linear", "transformer_linear"):
            names += (("semantic_alignment_layer.{rest}", LINEAR + "{rest}"),)
        if self.has_merge_weights:
            names += tuple((f"{name}_merge", f"compressor.gain.merge_{name}") for name in SCALARS)
        return names

    def unused_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """As in ReleasedFormat."""
        other_alignment = f"not part of --alignment {arguments['alignment']}"
        return (
            *((f"{name}_select", f"stored as compressor.{name}") for name in SCALARS),
            *((f"{name}_merge", f"equal to {name}_select, stored as compressor.{name}") for name in SCALARS),
            (self.encoder_prefix + "lm_head.weight", "the encoder has no LM head"),
            (FUSION + "lm_head.weight", "the alignment has no LM head"),
            (FUSION + "model.embed_tokens.weight", "the input of the alignment is vectors, not tokens"),
            (FUSION + "{rest}", other_alignment),
            ("semantic_alignment_layer.{rest}", other_alignment),
        )

    def settings(self, arguments: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """As in ReleasedFormat."""
        settings = {
            "compressor.ratio": arguments["ratio"],
            "compressor.segment_size": arguments["segment_size"],
            "compressor.alignment": arguments["alignment"],
            "compressor.encoder_layers": self.file.layer_count(self.encoder_prefix + "model.layers.{n}.{rest}"),
            "compressor.lsa_layers": max(self.file.layer_count(FUSION + "model.layers.{n}.{rest}"), 1),
            "compressor.learned_weights": "merge" if self.has_merge_weights else "none",
        }
        keys = [f"{name}_{stage}" for stage in STAGES for name in SCALARS]
        weights = {key: float(self.file.tensor(key)) for key in keys}
        settings |= {f"compressor.{name}": weights[f"{name}_select"] for name in SCALARS}
        if self.has_lora:
            down = {key: shape for key, shape in self.file.shapes.items() if key.endswith(".lora_A.default.weight")}
            settings |= {
                "decoder.lora_alpha": arguments["lora_alpha"],
                "decoder.lora_rank": min(shape[0] for shape in down.values()),
                "decoder.lora_targets": sorted({key.split(".")[-4] for key in down}),
            }
        return settings

    def train_modes(self) -> tuple[str, ...]:
        """LoRA where the file has adapters; else attention projections, as in the paper's figure, then all weights."""
        return ("lora",) if self.has_lora else ("attention", "full")

    @property
    def has_merge_weights(self) -> bool:
        """Whether the fine stage has learned weights: values that differ from those of the coarse stage."""
        stored = [name for name in SCALARS if all(f"{name}_{stage}" in self.file.shapes for stage in STAGES)]
        return any(len({float(self.file.tensor(f"{name}_{stage}")) for stage in STAGES}) > 1 for name in stored)
