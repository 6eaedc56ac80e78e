"""A dense ranker: cosine of embeddings of unit and question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from breviary.backbones.pretrained import DTYPES, Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context
from breviary.memory.assembly import Layout
from breviary.selection.cosine import cosine_with
from breviary.selection.likelihood import run_packed
from breviary.selection.relevance import Candidates, Relevance
from breviary.selection.units import pad_lists

POOLINGS = ("mean", "first", "last")
TEXTS_PER_PASS = 32


class Embedding(Relevance):
    """Cosine of each unit's embedding with the question's.

    model    folder or hub name of an embedding model that AutoModel loads (BERT's family, decoders); each unit is read
             as a text of its own. None = the decoder: the context passes its first `layers` layers once, after the
             prefix, and a unit is the mean of its normed states; the question passes them behind a start token
    layers   of the decoder, where model is None
    pooling  of an embedding model's last states: mean | first (BERT's [CLS]) | last token
    question_prefix, unit_prefix  text before each, as the model's card states (E5: "query: " and "passage: ")
    """

    def __init__(
        self,
        model: str | None = None,
        layers: int = 8,
        pooling: str = "mean",
        question_prefix: str = "",
        unit_prefix: str = "",
    ):
        super().__init__()
        self.model, self.layers, self.pooling = model, layers, pooling
        self.question_prefix, self.unit_prefix = question_prefix, unit_prefix
        self.own: Any = None

    def prepare(self, backbone: Backbone | TinyBackbone, decoder: Stack) -> None:
        """As Relevance.prepare; loads the embedding model, frozen."""
        super().prepare(backbone, decoder)
        if self.model is not None:
            self.own = AutoModel.from_pretrained(self.model, dtype=DTYPES[backbone.dtype]).requires_grad_(False)
            self.own_tokenizer = AutoTokenizer.from_pretrained(self.model)

    @torch.no_grad()
    def encode(self, context: Context) -> Tensor | None:
        """Normed states (B, T, D) of the context after the decoder's first layers; None with another model."""
        if self.own is not None:
            return None
        layout = Layout.of([context.prefix.mask, context.mask])
        embeds = self.decoder.embed(layout.pack([context.prefix.ids, context.ids]))
        states = self.decoder.run(embeds, range(self.layers), layout.positions())
        own = Layout.of([context.mask], round_to=1)
        return own.pack([layout.unpack(self.decoder.norm(states), 1)])

    @torch.no_grad()
    def scores(self, candidates: Candidates) -> Tensor:
        """(B, U) float32."""
        if self.own is None:
            return cosine_with(self._unit_means(candidates), self._question_means(candidates).float())
        texts = candidates.texts()
        units = self._embed([self.unit_prefix + text for row in texts for text in row])
        questions = self._embed([self.question_prefix + text for text in candidates.questions()])
        scores, start = torch.zeros(len(texts), candidates.count, device=candidates.ids.device), 0
        for b, row in enumerate(texts):
            if row:
                scores[b, : len(row)] = cosine_with(units[None, start : start + len(row)], questions[b : b + 1])[0]
            start += len(row)
        return scores

    def _unit_means(self, candidates: Candidates) -> Tensor:
        """Sum of each unit's states, (B, U, D) float32: a cosine does not depend on the length."""
        assert candidates.states is not None
        states = candidates.states.float().masked_fill(~candidates.mask[..., None], 0)
        index = candidates.numbers.clamp(min=0)[..., None].expand_as(states)
        return states.new_zeros(len(states), candidates.count, states.shape[-1]).scatter_add(1, index, states)

    def _question_means(self, candidates: Candidates) -> Tensor:
        """Mean normed state of each question, (B, D); zero for an empty one."""
        rows = [[self.start_id, *ids] for ids in candidates.question_rows()]
        ids = pad_lists(rows).to(candidates.ids.device)
        lengths = torch.tensor([[len(row)] for row in rows], device=ids.device)
        columns = torch.arange(ids.shape[1], device=ids.device)
        states = self.decoder.norm(run_packed(self.decoder, ids, columns < lengths, self.layers))
        inside = (columns >= 1) & (columns < lengths)
        return states.masked_fill(~inside[..., None], 0).sum(1) / inside.sum(1, keepdim=True).clamp(min=1)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts by the own model, (number of texts, D) float32."""
        rows = [torch.zeros(0, self.own.config.hidden_size, device=self.own.device)]
        for start in range(0, len(texts), TEXTS_PER_PASS):
            inputs = self.own_tokenizer(
                list(texts[start : start + TEXTS_PER_PASS]), padding=True, truncation=True, return_tensors="pt"
            ).to(self.own.device)
            states, mask = self.own(**inputs).last_hidden_state.float(), inputs["attention_mask"].bool()
            if self.pooling == "mean":
                pooled = states.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            else:
                index = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
                last = index.masked_fill(~mask, -1).amax(1) if self.pooling == "last" else mask.long().argmax(1)
                pooled = states[torch.arange(len(states), device=states.device), last]
            rows.append(pooled)
        return torch.cat(rows)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As Relevance.problems."""
        problems, model = [], settings["model"]
        if settings["pooling"] not in POOLINGS:
            problems.append(f"compressor.relevance.pooling={settings['pooling']}: allowed are {', '.join(POOLINGS)}")
        depth = backbone.config.num_hidden_layers
        if model is None and not 1 <= settings["layers"] <= depth:
            problems.append(
                f"compressor.relevance.layers={settings['layers']}: must be in 1..{depth}, the decoder's layers, e.g. "
                f"{min(8, depth)}"
            )
        if model is not None:
            problems += _model_problems(model)
        return problems


def _model_problems(model: str) -> list[str]:
    """Error messages for an embedding model that cannot be read; loads no weights."""
    wanted = "give a folder in Hugging Face format, or a hub name that is in the cache or can be reached"
    if (Path(model).is_absolute() or model.startswith(".")) and not Path(model).is_dir():
        return [f"compressor.relevance.model={model}: no such folder; {wanted}"]
    for loader, what in ((AutoConfig, "configuration"), (AutoTokenizer, "tokenizer")):
        try:
            loader.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            return [f"compressor.relevance.model={model}: no {what} can be read ({reason}); {wanted}"]
    return []
