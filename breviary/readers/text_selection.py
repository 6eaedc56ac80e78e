"""Text selection by relevance: the tokens that a ranker keeps, read again as text by the plain decoder.

Compressors whose slots are the decoder's own input embeddings, as in readers/keep_tokens.py: BM25, dense retrieval,
LLMLingua, gold passages and the like stand beside trained compressors with the same assembly, loss and budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context, Encoded, Memory, Question
from breviary.memory.assembly import Layout
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget, max_context_for_slots
from breviary.selection.named import build_relevance, evidence_problems, relevance_class, relevance_problems
from breviary.selection.relevance import Candidates, Relevance
from breviary.selection.units import UNITS


class TextSelection(BudgetedCompressor):
    """Keeps exactly ceil(T / ratio) tokens of a context: the units that `relevance` ranks first, the last one cut.

    relevance     what ranks, and where it cuts inside units, what selects (breviary/selection): a name or an object
    units         segments | sentences | passages | words (selection/units.py)
    segment_size  tokens of a segment, with units: segments
    ratio, slots, ratio_choices  as in Budget
    Kept tokens have consecutive positions, in the document's order unless the relevance reorders passages. A context
    within its budget is kept whole, in its order. Nothing is trained through the selection. Costs what the relevance
    costs, once per context where it needs no question.
    """

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        relevance: Relevance | dict | str,
        units: str = "segments",
        segment_size: int = 50,
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
    ):
        super().__init__()
        assert not isinstance(relevance, dict), relevance  # a dict in the configuration only, from which it is built
        self.relevance, self.budget = build_relevance(relevance), Budget(ratio, slots, ratio_choices)
        self.relevance.prepare(backbone, decoder)
        self.units, self.segment_size = units, segment_size
        self.needs_question = self.relevance.needs_question
        self.needs_evidence = self.relevance.needs_evidence
        self._decoder = (decoder,)

    def encode(self, context: Context) -> Encoded:
        """Token ids, with the states (B, 1, T, D) that the relevance compares; of width 0 where it compares none."""
        layout = Layout.of([context.mask])
        ids, mask = layout.pack([context.ids])[:, None], layout.mask[:, None]
        own = self.relevance.encode(context)
        if own is None:
            return Encoded(torch.empty(*mask.shape, 0, dtype=self._decoder[0].dtype, device=ids.device), mask, ids)
        assert own.shape[1] <= mask.shape[2], (own.shape, mask.shape)
        return Encoded(pad(own, (0, 0, 0, mask.shape[2] - own.shape[1]))[:, None], mask, ids)

    def compress(self, encoded: Encoded, question: Question) -> Memory:
        """Embeddings of the kept tokens."""
        ids, mask, states = encoded.ids[:, 0], encoded.mask[:, 0], encoded.states[:, 0]
        slots = self.budget.slots_per_row(ids, mask, self.training)
        places = self._places(ids, mask, states, question, slots)
        kept = places >= 0
        embeds = self._decoder[0].embed(ids)
        layout = Layout.of([kept], round_to=1, keys=[places.clamp(min=0)])
        # Columns that no row can use are removed: the decoder would process them.
        width = self.budget.max_slots(mask.shape[1], self.training)
        return Memory(layout.pack([embeds])[:, :width], layout.mask[:, :width], trace={"kept": kept})

    def _places(self, ids: Tensor, mask: Tensor, states: Tensor, question: Question, slots: Tensor) -> Tensor:
        """Place of each token in the memory, (B, T) int64, -1 = dropped."""
        columns = mask.long().cumsum(1) - 1
        is_whole = (slots >= mask.sum(1))[:, None]
        everything = columns.masked_fill(~mask, -1)
        if bool(is_whole.all()):
            return everything
        candidates = Candidates(
            ids, mask, question, self.units, self.segment_size, lambda: self.relevance.tokenizer, states
        )
        return everything.where(is_whole, self.relevance.select(candidates, slots))

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the budget, the units and the relevance."""
        problems = check_budget(settings) + relevance_problems(settings["relevance"], backbone)
        if settings["units"] not in UNITS:
            problems.append(f"compressor.units={settings['units']}: allowed are {', '.join(UNITS)}")
        if settings["segment_size"] < 1:
            problems.append(f"compressor.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 50")
        if not problems and relevance_class(settings["relevance"]).needs_states:
            problems.append(
                f"compressor.relevance={settings['relevance']}: compares states of a compressor's own encoder; text "
                "selection has none, use compressor=dense"
            )
        return problems

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """Examples without marked evidence, where the relevance reads it."""
        return evidence_problems(settings["relevance"], name, items)

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`: every slot takes one position of the decoder."""
        return max_context_for_slots(settings, max(positions - others, 0))
