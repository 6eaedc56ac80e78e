"""The names of COMI's released checkpoints (one file, the decoder with or without LoRA), and where each key goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.runs.released import Names, ReleasedFile, ReleasedFormat, stack_pairs

ENCODER, LSA, LINEAR = (f"compressor.context_encoder.{part}." for part in ("encoder", "lsa", "linear"))
FUSION = "memory_fusion_layer."
SCALARS, STAGES = ("alpha", "beta"), ("select", "merge")  # coarse, fine


class ReleasedCOMI(ReleasedFormat):
    """alpha_select, beta_select weigh the coarse gain, alpha_merge, beta_merge the fine one, whether learned or not."""

    title = "COMI"
    experiment = "comi_nq"
    defaults = {"ratio": 16, "segment_size": 10000, "alignment": "lsa", "lora_alpha": 32}

    def __init__(self, file: ReleasedFile):
        super().__init__(file)
        self.lora = file.starts("decoder.base_model.")
        if not self.lora:
            self.defaults = {key: value for key, value in self.defaults.items() if key != "lora_alpha"}
        self.encoder = "icae." if file.starts("icae.") else "encoder."  # icae.: older files

    @property
    def decoder(self) -> str:
        """As ReleasedFormat says."""
        return "decoder.base_model.model." if self.lora else "decoder."

    def pairs(self, given: Mapping[str, Any]) -> Names:
        """As ReleasedFormat says."""
        aligned = given["alignment"]
        pairs = stack_pairs(self.decoder, "decoder.") + stack_pairs(self.encoder, ENCODER, head=False)
        if aligned in ("lsa", "transformer_linear"):
            pairs += stack_pairs(FUSION, LSA, embedding=False, head=False)
        if aligned in ("linear", "transformer_linear"):
            pairs += (("semantic_alignment_layer.{rest}", LINEAR + "{rest}"),)
        if self.learned:
            pairs += tuple((f"{name}_merge", f"compressor.gain.merge_{name}") for name in SCALARS)
        return pairs

    def apart(self, given: Mapping[str, Any]) -> Names:
        """As ReleasedFormat says."""
        return (
            *((f"{name}_select", f"kept as compressor.{name}") for name in SCALARS),
            *((f"{name}_merge", f"equal to {name}_select: kept as compressor.{name}") for name in SCALARS),
            (self.encoder + "lm_head.weight", "the encoder's logits are never read"),
            (FUSION + "lm_head.weight", "the alignment's logits are never read"),
            (FUSION + "model.embed_tokens.weight", "the alignment reads vectors, no tokens"),
            (FUSION + "{rest}", f"not part of --alignment {given['alignment']}"),
            ("semantic_alignment_layer.{rest}", f"not part of --alignment {given['alignment']}"),
        )

    def settings(self, given: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """As ReleasedFormat says."""
        found = {
            "compressor.ratio": given["ratio"],
            "compressor.segment_size": given["segment_size"],
            "compressor.alignment": given["alignment"],
            "compressor.encoder_layers": self.file.layers(self.encoder + "model.layers.{n}.{rest}"),
            "compressor.lsa_layers": max(self.file.layers(FUSION + "model.layers.{n}.{rest}"), 1),
            "compressor.learned_weights": "merge" if self.learned else "none",
        }
        keys = [f"{name}_{stage}" for stage in STAGES for name in SCALARS]
        weights = {key: float(self.file.tensor(key)) for key in keys}
        found |= {f"compressor.{name}": weights[f"{name}_select"] for name in SCALARS}
        if self.lora:
            down = {key: shape for key, shape in self.file.shapes.items() if key.endswith(".lora_A.default.weight")}
            found |= {
                "decoder.lora_alpha": given["lora_alpha"],
                "decoder.lora_rank": min(shape[0] for shape in down.values()),
                "decoder.lora_targets": sorted({key.split(".")[-4] for key in down}),
            }
        return found

    def trained(self) -> tuple[str, ...]:
        """Adapters; without them the attention's four projections, as the paper's figure has it, or else everything."""
        return ("lora",) if self.lora else ("attention", "full")

    @property
    def learned(self) -> bool:
        """Whether the fine stage has weights of its own."""
        stored = [name for name in SCALARS if all(f"{name}_{stage}" in self.file.shapes for stage in STAGES)]
        return any(len({float(self.file.tensor(f"{name}_{stage}")) for stage in STAGES}) > 1 for name in stored)
