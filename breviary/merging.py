"""What every compressor that merges states has in common: a budget, a reading, one merge.

A method says only which tokens belong together and with what weights.
Shape letters: R segment rows, L tokens of a segment, G slots of a segment, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from breviary.assemble import ranks
from breviary.backbone import TRAIN_MODES, Backbone, TinyBackbone
from breviary.budget import Budget, BudgetedCompressor, budget_problems, fitting_context
from breviary.contract import Context, Encoded, Memory, Question
from breviary.merge import consecutive_groups, last_position, merge_slots
from breviary.reading import ALIGNMENTS, FINAL_NORMS, JOINS, LSA_INITS, QUESTIONS, SLOT_POSITIONS, Reading
from breviary.stack import Stack
from breviary.translation import Translation, between


class MergingCompressor(BudgetedCompressor):
    """Groups of context states, each merged into one slot.

    ratio, slots, ratio_choices, ratio_draw  as in Budget
    **reading                    as in Reading: join, encoder_layers, encoder_train, lsa_layers, segment_size, ...
    A subclass gives `grouping`; where that does not look at the question, `needs_question` is False.
    """

    after_reading = frozenset({"ratio", "slots", "ratio_choices", "ratio_draw", "slot_positions"})

    def __init__(self, backbone: Backbone | TinyBackbone, decoder: Stack, *, ratio: int | None = 4,
                 slots: int | None = None, ratio_choices: list[int] | None = None, ratio_draw: str = "step",
                 **reading: Any):
        super().__init__()
        self.budget = Budget(ratio, slots, ratio_choices, ratio_draw=ratio_draw)
        self.reading = Reading(backbone, decoder, **reading)

    def grouping(self, states: Tensor, mask: Tensor, query: Tensor | None, ratio: int | Tensor,
                 slots: int) -> tuple[Tensor, Tensor | None]:
        """Which tokens make which slot.

        states  (R, L, D) to compare, mask (R, L) right-padded, query (R, D) or None
        ratio   tokens per slot, an int or (R,); slots: the most groups a row can have
        Gives groups (R, L) int64, -1 on padding, and weights (R, L) that sum to 1 in each group, or None for means.
        """
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """As Compressor.tokenizer."""
        return self.reading.translation and self.reading.translation.target

    @property
    def layer(self) -> int:
        """The decoder layer that slots enter."""
        return self.reading.layer

    def encode(self, context: Context) -> Encoded:
        """As Reading.encode; never depends on the question."""
        return self.reading.encode(context)

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Groups, weights, one merge, alignment where there is one."""
        values_RLD, mask_RL = encoded.states.flatten(0, 1), encoded.mask.flatten(0, 1)
        ratio = self.budget.segment_ratios(encoded.ids, encoded.mask, self.training)
        G = self.budget.width(mask_RL.shape[1], self.training)
        query_RD = self.reading.query(encoded, question).flatten(0, 1) if self.needs_question else None
        if isinstance(ratio, int) and ratio == 1:
            groups_RL, weights_RL = consecutive_groups(mask_RL, 1), None  # every token is its own slot
        else:
            compared_RLD = self.reading.compared(encoded).flatten(0, 1)
            groups_RL, weights_RL = self.grouping(compared_RLD, mask_RL, query_RD, ratio, G)
        slots_RGD, slot_mask_RG = merge_slots(values_RLD, groups_RL, G, weights_RL)
        last_RG = last_position(ranks(mask_RL), groups_RL, G)
        memory = self.reading.memory(slots_RGD, slot_mask_RG, last_RG, encoded)
        memory.trace |= {"groups": groups_RL, "weights": weights_RL}
        return memory

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Budget, join, layers and widths."""
        found = budget_problems(settings)
        allowed = {"join": JOINS, "slot_positions": SLOT_POSITIONS, "final_norm": FINAL_NORMS, "alignment": ALIGNMENTS,
                   "lsa_init": LSA_INITS, "question": QUESTIONS,
                   "encoder_train": [mode for mode in TRAIN_MODES if mode not in ("attention", "qkv")]}
        for key, values in allowed.items():
            if settings[key] not in values:
                found.append(f"compressor.{key}={settings[key]}: allowed are {', '.join(values)}")
        layers = backbone.config.num_hidden_layers
        most = layers - (settings["join"] == "depth")  # at depth at least one layer must see the slots
        its_own = settings["encoder"] is not None and settings["join"] == "input"  # whose layers are looked at below
        if not its_own and not 1 <= settings["encoder_layers"] <= most:
            found.append(f"compressor.encoder_layers={settings['encoder_layers']}: must be from 1 to {most} "
                         f"for this backbone of {layers} layers, e.g. {min(8, most)}")
        if settings["join"] == "input" and not 1 <= settings["lsa_layers"] <= layers:
            found.append(f"compressor.lsa_layers={settings['lsa_layers']}: must be from 1 to {layers}, e.g. 1; "
                         "compressor.alignment=none switches the alignment off")
        if settings["lsa_init"] == "random" and settings["alignment"] in ("linear", "none"):
            found.append(f"compressor.lsa_init=random: compressor.alignment={settings['alignment']} has no decoder blocks to "
                         "draw anew; set compressor.lsa_init=pretrained, or compressor.alignment=lsa")
        if settings["encoder_lora_rank"] < 1:
            found.append(f"compressor.encoder_lora_rank={settings['encoder_lora_rank']}: must be at least 1, e.g. 16")
        if not 0 <= settings["encoder_lora_dropout"] < 1:
            found.append(f"compressor.encoder_lora_dropout={settings['encoder_lora_dropout']}: must be from 0 to below 1, "
                         "e.g. 0.05")
        if settings["frozen"] and settings["join"] == "depth":
            found.append("compressor.frozen=true: with compressor.join=depth the decoder's own layers read, there is "
                         "nothing of the compressor's to freeze; set compressor.frozen=false, or compressor.join=input")
        if settings["segment_size"] < 1:
            found.append(f"compressor.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 4096")
        return found + cls._encoder_problems(settings, backbone)

    @staticmethod
    def _encoder_problems(settings: Mapping[str, Any], backbone: Any) -> list[str]:
        if settings["encoder"] is None:
            return []
        if settings["join"] == "depth":
            return [f"compressor.encoder={settings['encoder']}: with compressor.join=depth the decoder's own layers "
                    "read the context; set compressor.encoder=null or compressor.join=input"]
        encoder = Backbone(settings["encoder"])
        found = encoder.problems()
        if found:
            return [problem.replace("backbone.path", "compressor.encoder") for problem in found]
        if not 1 <= settings["encoder_layers"] <= encoder.config.num_hidden_layers:
            found.append(f"compressor.encoder_layers={settings['encoder_layers']}: must be from 1 to "
                         f"{encoder.config.num_hidden_layers}, the layers of compressor.encoder={settings['encoder']}")
        widths = encoder.config.hidden_size, backbone.config.hidden_size
        if widths[0] != widths[1] and settings["alignment"] not in ("linear", "linear_lsa"):
            found.append(f"compressor.encoder={settings['encoder']}: its width {widths[0]} differs from the decoder's "
                         f"{widths[1]}, which compressor.alignment={settings['alignment']} cannot bridge; give an encoder "
                         "of the same width, or compressor.alignment=linear_lsa (or linear)")
        try:
            tokens = len(encoder.tokenizer())
        except ValueError as error:
            return found + [str(error).replace("backbone.path", "compressor.encoder")]
        if encoder.config.vocab_size < tokens:
            found.append(f"compressor.encoder={settings['encoder']}: embeds {encoder.config.vocab_size} tokens, and its tokenizer has "
                         f"{tokens}; give the folder the tokenizer that the model was trained with")
        return found

    @classmethod
    def translation(cls, settings: Mapping[str, Any], backbone: Any) -> Translation | None:
        """As Compressor.translation: of an encoder that has another tokenizer than the decoder."""
        return between(backbone, Backbone(settings["encoder"])) if settings["encoder"] else None

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """At depth context and everything else share the positions; at the input only the slots take them."""
        if settings["join"] == "depth":
            return max(positions - others, 0)
        by_slots = fitting_context(settings, max(positions - others, 0))
        if settings["encoder"] is not None:  # it reads a segment and the question
            positions = min(positions, Backbone(settings["encoder"]).config.max_position_embeddings)
        by_segment = None if settings["segment_size"] + others <= positions else max(positions - others, 0)
        limits = [limit for limit in (by_slots, by_segment) if limit is not None]
        return min(limits) if limits else None
