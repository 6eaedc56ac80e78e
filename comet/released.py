"""The names of CoMeT's released checkpoints (a Hugging Face folder), and where each key goes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from breviary.runs.released import OTHER_BACKBONE, Names, ReleasedFormat, Taken

LAYER = "model.layers.{n}."
MEMORY = "memory.layers.{n}."
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Of config.json -> of our configuration.
SIZES = {
    "chunk_size": "compressor.chunk_size",
    "temp_beacon_stride": "compressor.stride",
    "temp_mem_budget": "compressor.queue_budget",
}
# What no shape tells and yet changes every number.
BACKBONE = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_parameters")


class ReleasedCoMeT(ReleasedFormat):
    """New tokens are rows of the one table: readouts and compression token by the ids of config.json. Rows behind the
    backbone's vocabulary, the placeholder's and padding among them, also count in the loss as logits."""

    title = "CoMeT"
    experiment = "comet_nq"
    decoder = ""

    def pairs(self, given: Mapping[str, Any]) -> Names:
        """As ReleasedFormat says."""
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

    def apart(self, given: Mapping[str, Any]) -> Names:
        """As ReleasedFormat says; every key is a weight."""
        return ()

    def settings(self, given: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """As ReleasedFormat says; sizes are those of config.json."""
        down = self.file.shapes.get("model.layers.0.temp_memory_net.1.down_proj.weight", (8,))
        return {
            **{name: self.file.config[key] for key, name in SIZES.items()},
            "compressor.global_slots": len(self.file.config["global_beacon_ids"]),
            "compressor.adapter_rank": down[0],
            "compressor.new_token_logits": self.new_tokens(backbone),
            "prompt.chat": bool(backbone.tokenizer().chat_template),
        }  # published: its template, where it has one

    def new_tokens(self, backbone: Any) -> int:
        """Rows of the table behind the backbone's vocabulary."""
        return self.file.shapes[TABLE][0] - backbone.config.vocab_size

    def problems(self, backbone: Any) -> list[str]:
        """As ReleasedFormat says; and what is wrong with config.json."""
        config, place = self.file.config, self.file.folder / "config.json"
        if config is None:
            return [f"{place}: no such file; it holds sizes and the new tokens' ids: give the released folder whole"]
        found = [
            f"{place}: {key} must be a whole number"
            for key in (*SIZES, "temp_beacon_id")
            if not isinstance(config.get(key), int)
        ]
        readouts = config.get("global_beacon_ids")
        if not isinstance(readouts, list) or not all(isinstance(id, int) for id in readouts):
            found.append(f"{place}: global_beacon_ids must be a list of whole numbers")
        found = found or super().problems(backbone)
        if found:
            return found
        outside = [id for id in (config["temp_beacon_id"], *readouts) if not 0 <= id < self.file.shapes[TABLE][0]]
        if outside:
            return [
                f"{place}: temp_beacon_id and global_beacon_ids name row {outside[0]} of a table of "
                f"{self.file.shapes[TABLE][0]} rows"
            ]
        theirs, own = type(backbone.config).from_dict(dict(config)), backbone.config
        return [
            f"{place}: {key}={getattr(theirs, key)}, of {backbone.path} {getattr(own, key)}; {OTHER_BACKBONE}"
            for key in BACKBONE
            if getattr(theirs, key) != getattr(own, key)
        ]

    def fits(self, theirs: tuple[int, int, int], own: tuple[int, int, int]) -> bool:
        """As ReleasedFormat says; its table may have further rows."""
        return theirs[0] >= own[0] and theirs[1:] == own[1:]

    def trained(self) -> tuple[str, ...]:
        """Everything, as published."""
        return ("full",)

    def parts(self, backbone: Any) -> dict[str, Taken]:
        """As ReleasedFormat says."""
        old, config = backbone.config.vocab_size, self.file.config
        head = TABLE if backbone.config.tie_word_embeddings and HEAD not in self.file.shapes else HEAD
        parts = {
            "decoder.embed_tokens.weight": Taken(TABLE, slice(old)),
            "decoder.lm_head.weight": Taken(head, slice(old)),
            "memory.tokens.weight": Taken(TABLE, (config["temp_beacon_id"], *config["global_beacon_ids"])),
        }
        if self.new_tokens(backbone):
            parts["memory.new_token_head.weight"] = Taken(head, slice(old, None))
        return parts
