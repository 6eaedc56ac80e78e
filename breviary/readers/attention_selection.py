"""Reading by attention: the question's own attention at a middle layer chooses what the layers above see. Ours.

Shape letters: B contexts, S columns of [prefix ; context], T context tokens, U units, K kept columns, J key/value
heads, G query heads of one key/value head, W window layers, Q prompt tokens, D width, L decoder layers; n the selecting
layer.

    1. encode    layers 0..n-1 read [prefix ; context] once, for all questions
    2. observe   the prompt runs through the same layers behind their whole cache; in the last W of them each head's
                 attention mass on a context token is the mean over the prompt's tokens
    3. select    units are ranked by that mass, and fill the budget
    4. keep      layers n..L-1 read prefix and kept tokens alone, at their own positions; below n their columns are kept
    4a. skim     optional: in layers n..L-1 what a segment drops is one more column, its mean state
    5. the reader runs prompt and answer behind what every layer keeps
Cost of the prefill, relative to full context: n / L + (1 - n / L) / ratio, and the prompt's pass of step 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import CapturingCache, LazyLayers, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Batch, Context, Encoded, KeyValueMemory, Question
from breviary.memory.assembly import Layout, take_columns
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget
from breviary.memory.columns import Columns
from breviary.memory.kept_keys import KeptKeys
from breviary.scorers.base import pool, select
from breviary.selection.head_scores import SMALL, HeadScores, attention_mass, head_problems, selecting_layer, unit_means
from breviary.selection.named import build_relevance, evidence_problems, relevance_class, relevance_problems
from breviary.selection.relevance import Candidates, Relevance, fill_budget
from breviary.selection.units import fixed_segments

UNITS, SKIMS, GATES = ("segments", "tokens"), ("none", "mean"), ("none", "straight_through")


class AttentionSelection(BudgetedCompressor):
    """Keeps the context tokens that the prompt attends to in layers n-W..n-1; upper layers see these alone.

    layer               n, the first layer that sees kept tokens only; null = three fifths of the decoder's layers
    window              W, layers whose attention counts, the last ones below n; at most n
    heads               mean | max | linear, as in HeadScores; linear ranks segments
    relevance           None = the attention of the window; another relevance of breviary/selection in its place, for
                        comparison (bm25, gold, random): no prompt runs behind the context then
    units               segments, the last one cut at the budget | tokens, smoothed over `kernel` neighbours
    segment_size        tokens of a segment; kernel: odd width of the smoothing
    skim                none | mean: in layers n.. what is dropped of a segment leaves its mean state, at its last
                        dropped token's position. Skims count towards the budget, and whole segments are kept
    contrastive_weight  of the loss that raises the gold tokens' share of the attention mass; 0 = off. It needs marked
                        evidence
    gate                none: the answer's loss reaches kept states alone, not the choice | straight_through: the kept
                        values of layers n.. carry the gradient of their score in training, unchanged in value
    ratio, slots, ratio_choices  as in Budget
    Relatives: GemFilter (2409.17422) reads chosen tokens again from layer 0; FastKV (2502.01068) passes chosen states
    on and keeps another choice in each layer's cache.
    """

    keeps_cache = True

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        *,
        layer: int | None = None,
        window: int = 4,
        heads: str = "mean",
        relevance: Relevance | dict | str | None = None,
        units: str = "segments",
        segment_size: int = 50,
        kernel: int = 7,
        skim: str = "none",
        contrastive_weight: float = 0.0,
        gate: str = "none",
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
    ):
        super().__init__()
        assert units in UNITS and skim in SKIMS and gate in GATES, (units, skim, gate)
        assert not isinstance(relevance, dict), relevance  # a dict in the configuration only, from which it is built
        self.budget = Budget(ratio, slots, ratio_choices)
        self.select_layer = selecting_layer(layer, len(decoder))
        self.window, self.units, self.skim, self.gate = min(window, self.select_layer), units, skim, gate
        self.segment_size, self.kernel, self.contrastive_weight = segment_size, kernel, contrastive_weight
        self._decoder = (decoder,)
        self.head_scores = HeadScores(heads, self.window * decoder.config.num_attention_heads)
        self.relevance = None if relevance is None else build_relevance(relevance)
        if self.relevance is not None:
            self.relevance.prepare(backbone, decoder)
            self.needs_evidence = self.relevance.needs_evidence

    # -------------------------------------------------------------- encode

    def encode(self, context: Context) -> Encoded:
        """Keys and values of the layers below n, and the states that enter n; ids are -1 on the prefix."""
        decoder, n = self._decoder[0], self.select_layer
        layout, cache = Layout.of([context.prefix.mask, context.mask]), CapturingCache()
        states = decoder.embed(layout.pack([context.prefix.ids, context.ids]))
        ids = layout.pack([torch.full_like(context.prefix.ids, -1), context.ids])
        states = decoder.run(states, range(n), layout.positions(), cache=cache)
        pairs = [(cache.layers[i][0][:, None], cache.layers[i][1][:, None]) for i in range(n)]
        states = states.masked_fill(~layout.mask[..., None], 0)
        return Encoded(states[:, None], layout.mask[:, None], ids[:, None], pairs)

    # -------------------------------------------------------------- compress

    def compress(self, encoded: Encoded, question: Question) -> KeyValueMemory:
        """The kept columns of every layer for this question."""
        decoder, n = self._decoder[0], self.select_layer
        columns = Columns.of(encoded.mask[:, 0], encoded.ids[:, 0])
        keys_values = encoded.keys_values
        pairs = LazyLayers(n, lambda i: (keys_values[i][0][:, 0], keys_values[i][1][:, 0]))
        ids = columns.context(encoded.ids[:, 0])
        budget = self.budget.slots_per_row(ids, columns.mask, self.training)
        teaches = self.contrastive_weight > 0 and question.labels is not None
        learns = self.training and (teaches or self.gate != "none")
        with torch.set_grad_enabled(learns):
            scores, numbers = self._scores(question, columns, pairs, ids, learns)
        with torch.no_grad():
            kept_BT = self._select(scores.detach(), numbers, columns.mask, budget)
            skims_BT = self._skims(kept_BT, numbers, columns.mask, budget)
            kept_BS, upper_BS = (columns.with_prefix(x[:, None])[:, 0] for x in (kept_BT, kept_BT | skims_BT))
        layers = [
            KeptKeys.select(keys, values, kept_BS[:, None].expand(-1, keys.shape[1], -1)) for keys, values in pairs
        ]
        states = encoded.states[:, 0]
        if self.skim == "mean":
            states = self._with_skims(states, columns, kept_BT, skims_BT, numbers)
        gate = None
        if learns and self.gate == "straight_through":
            log_BT = scores.clamp(min=SMALL).log().gather(1, numbers.clamp(min=0)) * kept_BT
            gate = columns.replace(states.new_zeros(len(states), 1, states.shape[1]), log_BT[:, None].to(states.dtype))
            gate = gate[:, 0] - gate[:, 0].detach()
        layers += self._read_kept(states, upper_BS, gate)
        total = len(decoder) * kept_BT.sum(1) + (len(decoder) - n) * skims_BT.sum(1)
        slots = torch.div(total + len(decoder) - 1, len(decoder), rounding_mode="floor")
        trace = {"kept_share": kept_BT.float()}
        if self.units == "segments":
            trace["relevance"] = scores.detach()
        memory = KeyValueMemory(layers, slots, trace=trace)
        if learns and teaches:
            memory.losses["contrastive"] = self._contrastive(scores, numbers, question.labels, columns.mask)
        return memory

    def _scores(
        self, question: Question, columns: Columns, pairs: LazyLayers, ids: Tensor, learns: bool
    ) -> tuple[Tensor, Tensor]:
        """Score of each unit (B, U), and the unit of each context token (B, T), -1 on padding. Tokens are units too."""
        mask = columns.mask
        if self.relevance is not None:
            seen = self.relevance
            candidates = Candidates(ids, mask, question, "segments", self.segment_size, lambda: seen.tokenizer)
            return seen.scores(candidates), candidates.numbers
        states = question.states if learns else question.states.detach()
        mass = attention_mass(self._decoder[0], states, question.states_mask, columns, pairs, self.window)
        if self.units == "tokens":
            scores = pool(self.head_scores.of_tokens(mass)[:, None], mask, self.kernel, "avg")[:, 0]
            return scores, torch.arange(mask.shape[1], device=mask.device).expand(mask.shape).masked_fill(~mask, -1)
        numbers = fixed_segments(mask, self.segment_size)
        return self.head_scores(mass, numbers, max(-(-mask.shape[1] // self.segment_size), 1)), numbers

    def _select(self, scores: Tensor, numbers: Tensor, mask: Tensor, budget: Tensor) -> Tensor:
        """Kept context tokens, (B, T) bool: the budget (B,) exactly, or with skims whole segments and these."""
        if self.units == "tokens":
            return select(scores[:, None], budget[:, None], mask)[:, 0]
        if self.skim == "mean":
            units = numbers.amax(1) + 1
            whole = (budget - units).clamp(min=0) // max(self.segment_size - 1, 1)
            budget = torch.where(budget < mask.sum(1), whole * self.segment_size, budget)
        return fill_budget(scores, numbers, budget) >= 0

    def _skims(self, kept: Tensor, numbers: Tensor, mask: Tensor, budget: Tensor) -> Tensor:
        """Tokens (B, T) in whose place a skim stands: the last dropped one of each segment, as the budget admits."""
        if self.skim == "none":
            return torch.zeros_like(kept)
        dropped = mask & ~kept
        later = nn.functional.pad(dropped.to(torch.long).flip(1).cumsum(1).flip(1), (0, 1))[:, 1:]
        # The last dropped token of a segment: none of the dropped ones behind it belongs to the segment.
        last = torch.zeros_like(numbers).scatter_reduce(
            1,
            numbers.clamp(min=0),
            later.masked_fill(~dropped, torch.iinfo(torch.int64).max),
            "amin",
            include_self=False,
        )
        skims = dropped & (later == last.gather(1, numbers.clamp(min=0)))
        return skims & (skims.cumsum(1) <= (budget - kept.sum(1))[:, None])

    def _with_skims(self, states: Tensor, columns: Columns, kept: Tensor, skims: Tensor, numbers: Tensor) -> Tensor:
        """States (B, S, D) with the mean of each segment's dropped ones in the columns of its skim."""
        dropped = numbers.masked_fill(kept, -1)
        context = take_columns(states, columns.context_columns)
        means, _ = unit_means(context.float(), dropped, max(int(numbers.max()) + 1, 1))
        index = numbers.clamp(min=0)[..., None].expand_as(context)
        skimmed = torch.where(skims[..., None], means.gather(1, index).to(states.dtype), context)
        return columns.replace(states[:, None], skimmed[:, None])[:, 0]

    def _read_kept(self, states: Tensor, kept: Tensor, gate: Tensor | None = None) -> list[KeptKeys]:
        """Layers n..L-1 on the kept columns (B, S) of states (B, S, D) alone: what each of them keeps.

        gate  (B, S), zero in value, whose gradient the kept values carry
        """
        decoder, n = self._decoder[0], self.select_layer
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(int(kept.sum(1).max()), 1)]
        mask = kept.gather(1, order)
        stream, positions = take_columns(states, order), order.masked_fill(~mask, 0)  # rows are left-packed
        cache, last = CapturingCache(), len(decoder) - 1
        stream = decoder.run(stream, range(n, last), positions, cache=cache)
        pairs = [cache.layers[i] for i in range(n, last)] + [decoder.keys_values(last, stream, positions)]
        if gate is not None:
            factor = 1 + gate.gather(1, order)[:, None, :, None]
            pairs = [(keys, values * factor) for keys, values in pairs]
        return [KeptKeys.select(keys, values, mask[:, None].expand(-1, keys.shape[1], -1)) for keys, values in pairs]

    # -------------------------------------------------------------- contrastive loss

    def labels(self, batch: Batch) -> Tensor | None:
        """Marked evidence (B, T), left-packed; None where the loss is off or nothing is marked."""
        return self.evidence(batch) if self.contrastive_weight else None

    @staticmethod
    def evidence(batch: Batch) -> Tensor | None:
        """Marked evidence (B, T), left-packed; None where nothing is marked."""
        if batch.evidence is None:
            return None
        return Layout.of([batch.context.mask], round_to=1).pack([batch.evidence])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of contexts with marked evidence."""
        if not self.contrastive_weight:
            return {}
        if batch.evidence is None:
            return {"contrastive": batch.context.ids.new_zeros(())}
        return {"contrastive": (batch.evidence & batch.context.mask).any(1).sum()}

    def _contrastive(self, scores: Tensor, numbers: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over gold units of -log of its score's share among itself and all other units that are not gold.

        Each gold unit competes with the rest, so that one gold unit alone does not satisfy the loss.
        """
        labels = nn.functional.pad(labels, (0, mask.shape[1]))[:, : mask.shape[1]] & mask
        shares, valid = unit_means(labels[..., None].float(), numbers, scores.shape[1])
        gold = shares[..., 0] > 0
        scores = scores.masked_fill(~valid, 0) + SMALL
        others = (scores * (valid & ~gold)).sum(1, keepdim=True)
        losses = -(scores / (scores + others)).log().masked_fill(~gold, 0).sum(1) / gold.sum(1).clamp(min=1)
        return self.contrastive_weight * losses.sum(), gold.any(1).sum()

    # -------------------------------------------------------------- checks

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the budget, the layers and the scoring."""
        problems = check_budget(settings)
        problems += head_problems(settings, backbone.config.num_hidden_layers, "compressor")
        for key, allowed in (("units", UNITS), ("skim", SKIMS), ("gate", GATES)):
            if settings[key] not in allowed:
                problems.append(f"compressor.{key}={settings[key]}: allowed are {', '.join(allowed)}")
        for key, value in (("heads", "linear"), ("skim", "mean")):
            if settings[key] == value and settings["units"] == "tokens":
                problems.append(f"compressor.{key}={value} reads segments; set compressor.units=segments")
        problems += cls._relevance_problems(settings, backbone)
        if settings["kernel"] < 1 or settings["kernel"] % 2 == 0:
            problems.append(f"compressor.kernel={settings['kernel']}: must be an odd number of tokens, e.g. 7")
        if settings["segment_size"] < 1:
            problems.append(f"compressor.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 50")
        if settings["contrastive_weight"] < 0:
            problems.append(f"compressor.contrastive_weight={settings['contrastive_weight']}: must be 0 (off) or more")
        return problems

    @classmethod
    def _relevance_problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for a relevance in place of the attention."""
        relevance = settings["relevance"]
        if relevance is None:
            return []
        problems = relevance_problems(relevance, backbone)
        if not problems and relevance_class(relevance).needs_states:
            problems.append(
                f"compressor.relevance={relevance}: compares encoder states; use null, bm25, gold or random"
            )
        taught = [
            f"compressor.{key}={settings[key]}"
            for key in ("contrastive_weight", "gate")
            if settings[key] not in (0, "none")
        ]
        taught += ["compressor.units=tokens"] if settings["units"] == "tokens" else []
        if taught:
            problems.append(
                f"compressor.relevance={relevance}: {', '.join(taught)} needs attention; set relevance=null"
            )
        return problems

    @classmethod
    def data_problems(cls, settings: Mapping[str, Any], name: str, items: Any, positions: int) -> list[str]:
        """Examples without marked evidence, where the relevance reads it."""
        return [] if settings["relevance"] is None else evidence_problems(settings["relevance"], name, items)

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`: all tokens take positions."""
        return max(positions - others, 0)
