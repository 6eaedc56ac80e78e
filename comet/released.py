"""Names in CoMeT's released checkpoints (a Hugging Face folder), and what each key becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.runs.released import BACKBONE_HINT, NameMap, ReleasedFormat, TensorSource

LAYER = "model.layers.{n}."
MEMORY = "memory.layers.{n}."
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Key of config.json -> key of the configuration.
SIZES = {
    "chunk_size": "compressor.chunk_size",
    "temp_beacon_stride": "compressor.stride",
    "temp_mem_budget": "compressor.queue_budget",
}
# Settings of the backbone that change its outputs and do not follow from shapes.
BACKBONE_KEYS = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_parameters")


class ReleasedCoMeT(ReleasedFormat):
    """New tokens are rows of the embedding matrix: readout and compression tokens, with their ids in config.json.

    Rows beyond the backbone's vocabulary, including the placeholder's and padding, also count as logits in the loss.
    """

    title = "CoMeT"
    experiment = "comet_nq"
    decoder_prefix = ""

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json, which `problems` has checked."""
        assert self.file.config is not None, self.file.folder
        return self.file.config

    def weight_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """As in ReleasedFormat."""
        memory = {
            "global_memory_net.norm.weight": "global_norm.weight",
            "global_memory_net.g_proj.weight": "gate.weight",
            "global_memory_net.o_proj.down_proj.weight": "global_adapter.down.weight",
            "global_memory_net.o_proj.up_proj.weight": "global_adapter.up.weight",
            "temp_memory_net.0.weight": "temporary_norm.weight",
            "temp_memory_net.1.down_proj.weight": "temporary_adapter.down.weight",
            "temp_memory_net.1.up_proj.weight": "temporary_adapter.up.weight",
        }
        return (
            (LAYER + "inner_layer.{rest}", "decoder.layers.{n}.{rest}"),
            ("model.norm.weight", "decoder.final_norm.weight"),
            (TABLE, "decoder.embed_tokens.weight"),
            (HEAD, "decoder.lm_head.weight"),
            *((LAYER + theirs, MEMORY + ours) for theirs, ours in memory.items()),
        )

    def unused_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """None: every key is a weight."""
        return ()

    def settings(self, arguments: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """As in ReleasedFormat; sizes come from config.json."""
        down = self.file.shapes.get("model.layers.0.temp_memory_net.1.down_proj.weight", (8,))
        return {
            **{name: self.config[key] for key, name in SIZES.items()},
            "compressor.global_slots": len(self.config["global_beacon_ids"]),
            "compressor.adapter_rank": down[0],
            "compressor.new_token_logits": self.new_tokens(backbone),
            "prompt.chat": bool(backbone.tokenizer().chat_template),  # as published
        }

    def new_tokens(self, backbone: Any) -> int:
        """Number of rows of the embedding matrix beyond the backbone's vocabulary."""
        return self.file.shapes[TABLE][0] - backbone.config.vocab_size

    def problems(self, backbone: Any) -> list[str]:
        """As in ReleasedFormat, and errors of config.json."""
        config, file = self.file.config, self.file.folder / "config.json"
        if config is None:
            return [
                f"{file}: no such file; it contains sizes and the new tokens' ids: give the complete released folder"
            ]
        problems = [
            f"{file}: {key} must be an integer"
            for key in (*SIZES, "temp_beacon_id")
            if not isinstance(config.get(key), int)
        ]
        readouts = config.get("global_beacon_ids")
        if not isinstance(readouts, list) or not all(isinstance(id, int) for id in readouts):
            problems.append(f"{file}: global_beacon_ids must be a list of integers")
        problems = problems or super().problems(backbone)
        if problems:
            return problems
        token_ids = (config["temp_beacon_id"], *config["global_beacon_ids"])
        outside = [id for id in token_ids if not 0 <= id < self.file.shapes[TABLE][0]]
        if outside:
            return [
                f"{file}: temp_beacon_id and global_beacon_ids name row {outside[0]} of an embedding matrix of "
                f"{self.file.shapes[TABLE][0]} rows"
            ]
        released, own = type(backbone.config).from_dict(dict(config)), backbone.config
        return [
            f"{file}: {key}={getattr(released, key)}, but {backbone.path} has {getattr(own, key)}; {BACKBONE_HINT}"
            for key in BACKBONE_KEYS
            if getattr(released, key) != getattr(own, key)
        ]

    def sizes_match(self, released: tuple[int, int, int], own: tuple[int, int, int]) -> bool:
        """As in ReleasedFormat; the released embedding matrix may have additional rows."""
        return released[0] >= own[0] and released[1:] == own[1:]

    def train_modes(self) -> tuple[str, ...]:
        """All weights, as published."""
        return ("full",)

    def row_sources(self, backbone: Any) -> dict[str, TensorSource]:
        """As in ReleasedFormat."""
        vocabulary, config = backbone.config.vocab_size, self.config
        head = TABLE if backbone.config.tie_word_embeddings and HEAD not in self.file.shapes else HEAD
        sources = {
            "decoder.embed_tokens.weight": TensorSource(TABLE, slice(vocabulary)),
            "decoder.lm_head.weight": TensorSource(head, slice(vocabulary)),
            "memory.tokens.weight": TensorSource(TABLE, (config["temp_beacon_id"], *config["global_beacon_ids"])),
        }
        if self.new_tokens(backbone):
            sources["memory.new_token_head.weight"] = TensorSource(head, slice(vocabulary, None))
        return sources
