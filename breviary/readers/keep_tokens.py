"""Readers that compress nothing: every token, no token, or some tokens as they are.

They are compressors whose slots are the decoder's own input embeddings, so that they share assembly, loss, decoding
and evaluation with every method; with every token kept the reader is exactly the plain backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context, Encoded, Memory, Question
from breviary.memory.assembly import Layout
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget, max_context_for_slots

KEEP = ("all", "none", "head", "tail", "middle")


class KeepTokens(BudgetedCompressor):
    """Keeps some of the context's tokens, chosen by place alone.

    keep    all: full context; none: closed book; head, tail: the first or last tokens; middle: both ends, the
            middle cut out
    ratio, slots, ratio_choices: as in Budget, for head, tail and middle: as many tokens as another compressor has
            slots, ceil(T / ratio)
    Costs nothing beyond the embedding. Position of a kept token: consecutive.
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
        layout = Layout.of([context.mask])
        ids, mask = layout.pack([context.ids]), layout.mask
        if not ids.shape[1]:
            ids, mask = nn.functional.pad(ids, (0, 1)), nn.functional.pad(mask, (0, 1))
        states = self._decoder[0].embed(ids).masked_fill(~mask[..., None], 0)
        return Encoded(states[:, None], mask[:, None], ids[:, None])

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """The kept embeddings, in order."""
        states, mask = encoded.states[:, 0], encoded.mask[:, 0]
        kept = mask & self._kept(mask)
        layout, most = Layout.of([kept], round_to=1), self._most(mask.shape[1])
        # Without the columns that no row fills: the decoder would read them.
        return Memory(layout.pack([states])[:, :most], layout.mask[:, :most], trace={"kept": kept})

    def _most(self, tokens: int) -> int:
        """No context of up to so many tokens keeps more; known without looking at any."""
        if self.keep in ("all", "none"):
            return tokens if self.keep == "all" else 0
        return self.budget.max_slots(tokens, self.training)

    def _kept(self, mask: Tensor) -> Tensor:
        """(B, T) bool: which places are kept of right-padded rows."""
        if self.keep in ("all", "none"):
            return torch.full_like(mask, self.keep == "all")
        lengths = mask.sum(1, keepdim=True)
        ratio = self.budget.ratio_per_row(mask.long(), mask, self.training)
        ratio = ratio if isinstance(ratio, int) else ratio[:, None]
        slots = torch.div(lengths + ratio - 1, ratio, rounding_mode="floor")
        place = torch.arange(mask.shape[1], device=mask.device)
        head = {"head": slots, "tail": 0 * slots, "middle": slots - slots // 2}[self.keep]
        return (place < head) | (place >= lengths - (slots - head))

    @property
    def requested_ratio(self) -> float | None:
        """1 for every token, None for no token."""
        if self.keep in ("all", "none"):
            return 1.0 if self.keep == "all" else None
        return super().requested_ratio

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As Budget.problems, and the allowed places."""
        found = check_budget(settings) if settings["keep"] not in ("all", "none") else []
        if settings["keep"] not in KEEP:
            found.append(f"compressor.keep={settings['keep']}: allowed are {', '.join(KEEP)}")
        return found

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """With every token kept, what is left of the decoder's positions; else a slot each."""
        if settings["keep"] == "none":
            return None
        return positions - others if settings["keep"] == "all" else max_context_for_slots(settings, positions - others)
