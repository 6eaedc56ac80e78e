"""Attention of the question in the decoder's middle layers, as a relevance. Ours; docs/attention_reading.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import CapturingCache, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.memory.assembly import Layout
from breviary.memory.columns import Columns
from breviary.selection.head_scores import HeadScores, attention_mass, head_problems, selecting_layer
from breviary.selection.relevance import Candidates, Relevance


class Attention(Relevance):
    """Mass of the bare question's attention on a unit's tokens, in layers n-W..n-1 of the decoder.

    layer   n; null = three fifths of the decoder's layers
    window  W, the last layers below n
    heads   mean | max, as in HeadScores
    The context is read behind a start token. No gradient reaches the attention: the choice is not trained. Costs n
    layers' pass over context and question for each question; AttentionSelection reads each context once.
    """

    def __init__(self, layer: int | None = None, window: int = 4, heads: str = "mean"):
        super().__init__()
        self.layer, self.window, self.head_scores = layer, window, HeadScores(heads, 1)

    def prepare(self, backbone: Backbone | TinyBackbone, decoder: Stack) -> None:
        """As Relevance, and the layers."""
        super().prepare(backbone, decoder)
        self.select_layer = selecting_layer(self.layer, len(decoder))

    @torch.no_grad()
    def scores(self, candidates: Candidates) -> Tensor:
        """(B, U) float32."""
        decoder, n, ids = self.decoder, self.select_layer, candidates.ids
        start = ids.new_full((len(ids), 1), self.start_id)
        layout = Layout.of([torch.ones_like(start, dtype=torch.bool), candidates.mask], round_to=1)
        tokens, cache = layout.pack([start, ids]), CapturingCache()
        states = decoder.run(decoder.embed(tokens), range(n - 1), layout.positions(), cache=cache)
        pairs = [cache.layers[i] for i in range(n - 1)]
        pairs.append(decoder.keys_values(n - 1, states, layout.positions()))
        columns = Columns.of(layout.mask, layout.pack([torch.full_like(start, -1), ids]))
        question = candidates.question
        mass = attention_mass(decoder, decoder.embed(question.ids), question.mask, columns, pairs, min(self.window, n))
        mass = torch.nn.functional.pad(mass, (0, 0, 0, 0, 0, ids.shape[1]))[:, : ids.shape[1]]
        return self.head_scores(mass, candidates.numbers, candidates.count)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the layers and the heads."""
        settings = {"layer": None, "window": 4, "heads": "mean", **settings}
        problems = head_problems(settings, backbone.config.num_hidden_layers, "compressor.relevance")
        if settings["heads"] == "linear":
            problems.append(
                "compressor.relevance.heads=linear: a read-out is fitted for compressor=attention only; allowed are "
                "mean, max"
            )
        return problems
