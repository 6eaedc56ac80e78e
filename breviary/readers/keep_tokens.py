"""Text selection: readers that keep all, none or some of the context's tokens, uncompressed.

They are compressors whose slots are the decoder's own input embeddings, so that they share assembly, loss, decoding and
evaluation with all methods. With every token kept, the reader is exactly the plain backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context, Encoded, Memory, Question
from breviary.memory.assembly import Layout
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget, max_context_for_slots

KEEP = ("all", "none", "head", "tail", "middle")


def embedded_context(decoder: Stack, context: Context) -> Encoded:
    """The context's input embeddings (B, 1, T, D), for compressors whose slots are such embeddings."""
    layout = Layout.of([context.mask])
    ids, mask = layout.pack([context.ids]), layout.mask
    states = decoder.embed(ids).masked_fill(~mask[..., None], 0)
    return Encoded(states[:, None], mask[:, None], ids[:, None])


class KeepTokens(BudgetedCompressor):
    """Keeps some of the context's tokens, selected by position alone.

    keep    all: full context | none: closed book | head, tail: the first or last tokens | middle: both ends, with the
            middle removed
    ratio, slots, ratio_choices  as in Budget; head, tail and middle keep ceil(T / ratio) tokens, the number of slots of
            any other compressor at that ratio
    Costs the embedding only. Kept tokens have consecutive positions.
    """

    needs_question = False

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        keep: str = "all",
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
    ):
        super().__init__()
        assert keep in KEEP, keep
        self.keep, self.budget = keep, Budget(ratio, slots, ratio_choices)
        self._decoder = (decoder,)

    def encode(self, context: Context) -> Encoded:
        """Token embeddings (B, 1, T, D)."""
        return embedded_context(self._decoder[0], context)

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Embeddings of the kept tokens, in order."""
        states, mask = encoded.states[:, 0], encoded.mask[:, 0]
        kept = mask & self._selection(mask)
        # Columns that no row can use are removed: the decoder would process them.
        layout, width = Layout.of([kept], round_to=1), self._max_slots(mask.shape[1])
        return Memory(layout.pack([states])[:, :width], layout.mask[:, :width], trace={"kept": kept})

    def _max_slots(self, tokens: int) -> int:
        """Upper bound on the tokens kept of a context of at most `tokens` tokens, known without the tokens."""
        if self.keep in ("all", "none"):
            return tokens if self.keep == "all" else 0
        return self.budget.max_slots(tokens, self.training)

    def _selection(self, mask: Tensor) -> Tensor:
        """Columns of right-padded rows to keep, (B, T) bool."""
        if self.keep in ("all", "none"):
            return torch.full_like(mask, self.keep == "all")
        lengths = mask.sum(1, keepdim=True)
        ratio = self.budget.ratio_per_row(mask.long(), mask, self.training)
        ratio = ratio if isinstance(ratio, int) else ratio[:, None]
        slots = torch.div(lengths + ratio - 1, ratio, rounding_mode="floor")
        column = torch.arange(mask.shape[1], device=mask.device)
        head = {"head": slots, "tail": 0 * slots, "middle": slots - slots // 2}[self.keep]
        return (column < head) | (column >= lengths - (slots - head))

    @property
    def requested_ratio(self) -> float | None:
        """1 with keep=all, None with keep=none; otherwise the budget's."""
        if self.keep in ("all", "none"):
            return 1.0 if self.keep == "all" else None
        return super().requested_ratio

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the budget, and for `keep`."""
        problems = check_budget(settings) if settings["keep"] not in ("all", "none") else []
        if settings["keep"] not in KEEP:
            problems.append(f"compressor.keep={settings['keep']}: allowed are {', '.join(KEEP)}")
        return problems

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`: every slot takes one position of the decoder."""
        if settings["keep"] == "none":
            return None
        return positions - others if settings["keep"] == "all" else max_context_for_slots(settings, positions - others)
