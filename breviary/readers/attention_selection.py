"""Reading by attention: the question's own attention at a middle layer chooses what the layers above see. Ours.

Shape letters: B contexts, S columns of [prefix ; context], T context tokens, U units, K kept columns, J key/value
heads, G query heads of one key/value head, W window layers, Q prompt tokens, D width, L decoder layers; n the selecting
layer.

    1. encode    layers 0..n-1 read [prefix ; context] once, for all questions
    2. observe   the prompt runs through the same layers behind their whole cache; in the last W of them each head's
                 attention mass on a context token is the mean over the prompt's tokens
    3. select    units are ranked by that mass, and fill the budget
    4. keep      layers n..L-1 read prefix and kept tokens alone, at their own positions; below n their columns are kept
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
from breviary.contract import Batch, Context, Encoded, KeyValueMemory, Question, Tokens
from breviary.memory.assembly import Layout, take_columns
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget
from breviary.memory.columns import Columns
from breviary.memory.kept_keys import KeptKeys
from breviary.scorers.base import pool, select
from breviary.scorers.views import Observers, run_behind
from breviary.selection.relevance import fill_budget
from breviary.selection.units import fixed_segments

UNITS, HEADS = ("segments", "tokens"), ("mean", "max", "linear")
SMALL = 1e-9


class AttentionSelection(BudgetedCompressor):
    """Keeps the context tokens that the prompt attends to in layers n-W..n-1; upper layers see these alone.

    layer               n, the first layer that sees kept tokens only; null = three fifths of the decoder's layers
    window              W, layers whose attention counts, the last ones below n; at most n
    heads               how their heads are combined: mean | max (over heads, then the mean over layers) | linear: a
                        learned read-out of the log mean and log largest mass of each head in a segment
    units               segments, the last one cut at the budget | tokens, smoothed over `kernel` neighbours
    segment_size        tokens of a segment; kernel: odd width of the smoothing
    contrastive_weight  of the loss that raises the gold tokens' share of the attention mass; 0 = off. It needs marked
                        evidence, and is the only gradient that reaches the choice: the answer's loss reaches kept
                        states alone
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
        units: str = "segments",
        segment_size: int = 50,
        kernel: int = 7,
        contrastive_weight: float = 0.0,
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
    ):
        super().__init__()
        assert heads in HEADS and units in UNITS, (heads, units)
        self.budget = Budget(ratio, slots, ratio_choices)
        self.select_layer = selecting_layer(layer, len(decoder))
        self.window, self.heads, self.units = min(window, self.select_layer), heads, units
        self.segment_size, self.kernel, self.contrastive_weight = segment_size, kernel, contrastive_weight
        self._decoder = (decoder,)
        if heads == "linear":
            number = self.window * decoder.config.num_attention_heads
            # At first the geometric mean of all heads' mean mass.
            self.readout = nn.Parameter(torch.cat([torch.full((number,), 1 / number), torch.zeros(number)]))

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
        columns = Columns.of(encoded.mask[:, 0], encoded.ids[:, 0])
        keys_values = encoded.keys_values
        pairs = LazyLayers(self.select_layer, lambda i: (keys_values[i][0][:, 0], keys_values[i][1][:, 0]))
        budget = self.budget.slots_per_row(columns.context(encoded.ids[:, 0]), columns.mask, self.training)
        learns = self.training and self.contrastive_weight > 0 and question.labels is not None
        with torch.set_grad_enabled(learns):
            mass_BTWH = self._mass(question, columns, pairs)
            scores = self._scores(mass_BTWH, columns.mask)
        with torch.no_grad():
            kept_BT = self._select(scores.detach(), columns.mask, budget)
            kept_BS = columns.with_prefix(kept_BT[:, None])[:, 0]
        layers = [
            KeptKeys.select(keys, values, kept_BS[:, None].expand(-1, keys.shape[1], -1)) for keys, values in pairs
        ]
        layers += self._read_kept(encoded.states[:, 0], kept_BS)
        memory = KeyValueMemory(layers, kept_BT.sum(1), trace={"kept_share": kept_BT.float()})
        if learns:
            memory.losses["contrastive"] = self._contrastive(scores, question.labels, columns.mask)
        return memory

    def _mass(self, question: Question, columns: Columns, pairs: LazyLayers) -> Tensor:
        """Attention mass of each context token, mean over the prompt's tokens: (B, T, W, H) float32."""
        prompt = Tokens(question.ids.new_zeros(question.states_mask.shape), question.states_mask)
        first = self.select_layer - self.window
        states = question.states if torch.is_grad_enabled() else question.states.detach()
        masses = []
        for index, seen in enumerate(run_behind(self._decoder[0], states, prompt, columns, pairs, first=first)):
            if seen is not None:
                masses.append(self._layer_mass(seen, columns, pairs[index][0]))
        return torch.stack(masses, 2)

    @staticmethod
    def _layer_mass(seen: Observers, columns: Columns, keys: Tensor) -> Tensor:
        """The mass in one layer, (B, T, H)."""
        prefix_keys, context_keys = columns.split(keys)
        visible = columns.mask[:, None].expand(-1, seen.mask.shape[1], -1)
        with torch.autocast(keys.device.type, enabled=False):
            weights = seen.attention(context_keys, visible, prefix_keys, columns.prefix_mask)  # (B, J, G, Q, T)
        return (weights.sum(3) / seen.mask.sum(1).clamp(min=1)[:, None, None, None]).flatten(1, 2).transpose(1, 2)

    def _scores(self, mass: Tensor, mask: Tensor) -> Tensor:
        """Positive score of each token (B, T) or of each segment (B, U), from mass (B, T, W, H)."""
        if self.heads == "linear":
            return self._read_out(mass, mask)
        of_tokens = mass.mean((2, 3)) if self.heads == "mean" else mass.amax(3).mean(2)
        if self.units == "tokens":
            return pool(of_tokens[:, None], mask, self.kernel, "avg")[:, 0]
        return _segment_means(of_tokens[..., None], mask, self.segment_size)[0][..., 0]

    def _read_out(self, mass: Tensor, mask: Tensor) -> Tensor:
        """exp of the linear read-out of centred log masses of each head in a segment: (B, U)."""
        flat = mass.flatten(2)
        means, valid = _segment_means(flat, mask, self.segment_size)
        largest = _segment_view(flat.masked_fill(~mask[..., None], 0), self.segment_size).amax(2)
        features = torch.cat([means, largest], -1).clamp(min=SMALL).log()
        number = valid.sum(1, keepdim=True).clamp(min=1)[..., None]
        centred = features - features.masked_fill(~valid[..., None], 0).sum(1, keepdim=True) / number
        return (centred @ self.readout.float()).clamp(-30, 30).exp()

    def _select(self, scores: Tensor, mask: Tensor, budget: Tensor) -> Tensor:
        """Kept context tokens, (B, T) bool, exactly the budget (B,) in each row."""
        if self.units == "tokens" and self.heads != "linear":
            return select(scores[:, None], budget[:, None], mask)[:, 0]
        return fill_budget(scores, fixed_segments(mask, self.segment_size), budget) >= 0

    def _read_kept(self, states: Tensor, kept: Tensor) -> list[KeptKeys]:
        """Layers n..L-1 on the kept columns (B, S) of states (B, S, D) alone: what each of them keeps."""
        decoder, n = self._decoder[0], self.select_layer
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(int(kept.sum(1).max()), 1)]
        mask = kept.gather(1, order)
        stream, positions = take_columns(states, order), order.masked_fill(~mask, 0)  # rows are left-packed
        cache, last = CapturingCache(), len(decoder) - 1
        stream = decoder.run(stream, range(n, last), positions, cache=cache)
        pairs = [cache.layers[i] for i in range(n, last)] + [decoder.keys_values(last, stream, positions)]
        return [KeptKeys.select(keys, values, mask[:, None].expand(-1, keys.shape[1], -1)) for keys, values in pairs]

    # -------------------------------------------------------------- contrastive loss

    def labels(self, batch: Batch) -> Tensor | None:
        """Marked evidence (B, T), left-packed; None where the loss is off or nothing is marked."""
        if not self.contrastive_weight or batch.evidence is None:
            return None
        return Layout.of([batch.context.mask], round_to=1).pack([batch.evidence])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of contexts with marked evidence."""
        if not self.contrastive_weight:
            return {}
        if batch.evidence is None:
            return {"contrastive": batch.context.ids.new_zeros(())}
        return {"contrastive": (batch.evidence & batch.context.mask).any(1).sum()}

    def _contrastive(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over gold units of -log of its score's share among itself and all other units that are not gold.

        Each gold unit competes with the rest, so that one gold unit alone does not satisfy the loss.
        """
        gold = nn.functional.pad(labels, (0, mask.shape[1]))[:, : mask.shape[1]] & mask
        valid = mask
        if scores.shape != mask.shape or self.units == "segments" or self.heads == "linear":
            sums, valid = _segment_means(gold[..., None].float(), mask, self.segment_size)
            gold = sums[..., 0] > 0
        scores = scores.masked_fill(~valid, 0) + SMALL
        others = (scores * (valid & ~gold)).sum(1, keepdim=True)
        losses = -(scores / (scores + others)).log().masked_fill(~gold, 0).sum(1) / gold.sum(1).clamp(min=1)
        return self.contrastive_weight * losses.sum(), gold.any(1).sum()

    # -------------------------------------------------------------- checks

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the budget, the layers and the scoring."""
        problems, layers = check_budget(settings), backbone.config.num_hidden_layers
        layer = settings["layer"]
        if layer is not None and not 1 <= layer < layers:
            problems.append(f"compressor.layer={layer}: must be from 1 to {layers - 1} of this backbone, or null")
        if settings["window"] < 1:
            problems.append(f"compressor.window={settings['window']}: must be at least 1 layer, e.g. 4")
        for key, allowed in (("heads", HEADS), ("units", UNITS)):
            if settings[key] not in allowed:
                problems.append(f"compressor.{key}={settings[key]}: allowed are {', '.join(allowed)}")
        if settings["heads"] == "linear" and settings["units"] == "tokens":
            problems.append("compressor.heads=linear reads segments; set compressor.units=segments")
        if settings["kernel"] < 1 or settings["kernel"] % 2 == 0:
            problems.append(f"compressor.kernel={settings['kernel']}: must be an odd number of tokens, e.g. 7")
        if settings["segment_size"] < 1:
            problems.append(f"compressor.segment_size={settings['segment_size']}: must be at least 1 token, e.g. 50")
        if settings["contrastive_weight"] < 0:
            problems.append(f"compressor.contrastive_weight={settings['contrastive_weight']}: must be 0 (off) or more")
        return problems

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`: all tokens take positions."""
        return max(positions - others, 0)


def selecting_layer(layer: int | None, layers: int) -> int:
    """Layer n of a decoder of `layers` layers."""
    return max(layers * 3 // 5, 1) if layer is None else layer


def _segment_view(x: Tensor, size: int) -> Tensor:
    """(B, T, F) in segments: (B, U, size, F), padded with zeros."""
    return nn.functional.pad(x, (0, 0, 0, -x.shape[1] % size)).unflatten(1, (-1, size))


def _segment_means(x: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means of (B, T, F) over the tokens of each segment, (B, U, F), and which segments have a token, (B, U)."""
    counts = _segment_view(mask[..., None].float(), size).sum(2)
    return _segment_view(x.masked_fill(~mask[..., None], 0), size).sum(2) / counts.clamp(min=1), counts[..., 0] > 0
