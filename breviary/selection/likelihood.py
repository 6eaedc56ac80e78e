"""Negative log likelihood of text under a causal language model, for selections by perplexity.

The model is the reader's decoder as it is (adapters included), or another backbone with the same tokenizer. Dropout is
off and no gradient is computed. Shape letters: R rows, N tokens of a row, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.head import token_nll
from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import ReadOnlyCache, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.translation import same_tokenizer
from breviary.contract import Tokens
from breviary.memory.assembly import Layout, take_columns
from breviary.selection.relevance import Relevance
from breviary.selection.units import pad_lists

TOKENS_PER_PASS = 8192  # rows of a pass, padding included: bounds the memory of long contexts with many documents


class LikelihoodRelevance(Relevance):
    """A relevance that reads text with a language model.

    model  folder or hub name of a backbone with the decoder's tokenizer, such as a smaller model of its family; None =
           the decoder
    """

    def __init__(self, model: str | None = None):
        super().__init__()
        self.model = model
        self.own: Stack | None = None

    def prepare(self, backbone: Backbone | TinyBackbone, decoder: Stack) -> None:
        """As Relevance.prepare; loads the model, frozen."""
        super().prepare(backbone, decoder)
        if self.model is not None:
            own = Backbone(self.model, backbone.dtype, backbone.device, backbone.attn_implementation)
            self.own = Stack(own.load())
            self.own.requires_grad_(False)

    @property
    def stack(self) -> Stack:
        """The language model."""
        return self.decoder if self.own is None else self.own

    @contextlib.contextmanager
    def reading(self) -> Iterator[Stack]:
        """The model in evaluation mode, without gradients, in its own precision."""
        stack, training = self.stack, self.stack.training
        stack.eval()
        try:
            with torch.no_grad(), stack.mixed_precision():
                yield stack
        finally:
            stack.train(training)

    def nll_rows(self, rows: Sequence[Sequence[int]], ends: Sequence[int] | None = None) -> list[Tensor]:
        """Nats of each token given those before it in its row, (N,) float32 for each row; 0 for the first token.

        ends  number of last tokens of each row that are wanted, others have 0; None = all. Logits cost most of a pass
              of a small model
        """
        order = sorted(range(len(rows)), key=lambda r: len(rows[r]))
        result: list[Tensor] = [torch.zeros(0)] * len(rows)
        with self.reading() as stack:
            device = stack.embed_tokens.weight.device
            for batch in _passes(order, [len(row) for row in rows]):
                ids = pad_lists([rows[r] for r in batch]).to(device)
                lengths = torch.tensor([len(rows[r]) for r in batch], device=device)
                columns = torch.arange(ids.shape[1], device=device)
                mask = columns < lengths[:, None]
                states = run_packed(stack, ids, mask)
                if ends is not None:
                    mask = mask & (
                        columns >= lengths[:, None] - torch.tensor([[ends[r]] for r in batch], device=device)
                    )
                nll = nll_after(stack, states[:, :-1], ids[:, 1:], mask[:, 1:])
                nll = torch.nn.functional.pad(nll, (1, 0))[:, : ids.shape[1]]
                for row, r in enumerate(batch):
                    result[r] = nll[row, : len(rows[r])]
        return result

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for a model that cannot be read, or whose tokens are not the decoder's."""
        if settings["model"] is None:
            return []
        own = Backbone(settings["model"], device=backbone.device, attn_implementation=backbone.attn_implementation)
        problems = [text.replace("backbone.path", "compressor.relevance.model") for text in own.problems()]
        if not problems and not same_tokenizer(backbone.tokenizer(), own.tokenizer()):
            problems.append(
                f"compressor.relevance.model={settings['model']}: its tokenizer differs from the decoder's, whose "
                "tokens are kept or dropped; give a model of the decoder's family, or null for the decoder itself"
            )
        return problems


class CompressedPast:
    """Encodes segments one after another, each after the tokens kept from the earlier ones, for R rows.

    Keys and values of kept text are those of the kept text alone, so each segment is encoded in full, and its
    kept tokens once more together with the next segment.
    """

    def __init__(self, stack: Stack, rows: int, device: torch.device):
        self.stack = stack
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self._last: Tensor | None = None  # (R, D) state of the last kept token

    def nll(self, kept: Tokens, segment: Tokens) -> Tensor:
        """Adds `kept` (R, .) to the text, and returns the nats of each token of `segment` behind it, (R, N) float32.

        Both are right-padded. The first token of a row without any text before is infinitely surprising; padding has 0.
        """
        stack, layout = self.stack, Layout.of([kept.mask, segment.mask])
        positions = (layout.positions() + self._mask.sum(1, keepdim=True)).masked_fill(~layout.mask, 0)
        cache = _AppendingCache(self._pairs)
        embeds = stack.embed(layout.pack([kept.ids, segment.ids]))
        key_mask = torch.cat([self._mask, layout.mask], 1)
        states = stack.run(embeds, range(len(stack)), positions, key_mask, cache)
        had_text = self._mask.any(1) | kept.mask.any(1)
        last = self._append(kept, layout, states, cache)
        before = torch.cat([last[:, None], layout.unpack(states, 1)[:, :-1]], 1)
        nll = nll_after(stack, before, segment.ids, segment.mask)
        surprising = ~had_text[:, None] & segment.mask & (torch.arange(nll.shape[1], device=nll.device) == 0)
        return nll.masked_fill(surprising, torch.inf)

    def _append(self, kept: Tokens, layout: Layout, states: Tensor, cache: _AppendingCache) -> Tensor:
        """Stores the keys and values of `kept`; returns the state of each row's last kept token, (R, D)."""
        last = states.new_zeros(states.shape[0], states.shape[2]) if self._last is None else self._last
        if kept.ids.shape[1]:
            columns = layout.columns_of(0)[:, None, :, None]
            for layer, pair in cache.added.items():
                parts = [x.gather(2, columns.expand(-1, x.shape[1], -1, x.shape[3])) for x in pair]
                if layer in self._pairs:
                    parts = [torch.cat([old, new], 2) for old, new in zip(self._pairs[layer], parts)]
                self._pairs[layer] = (parts[0], parts[1])
            self._mask = torch.cat([self._mask, kept.mask], 1)
            ends = (kept.lengths - 1).clamp(min=0)[:, None]
            newest = take_columns(layout.unpack(states, 0), ends)[:, 0]
            last = torch.where(kept.mask.any(1, keepdim=True), newest, last)
        self._last = last
        return last


class _AppendingCache(ReadOnlyCache):
    """Stored keys and values before the new ones, which it also records."""

    def __init__(self, layers: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__(layers)
        self.added: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As ReadOnlyCache.update."""
        self.added[layer] = (keys, values)
        return super().update(keys, values, layer) if layer in self.layers else (keys, values)


def run_packed(stack: Stack, ids: Tensor, mask: Tensor, layers: int | None = None) -> Tensor:
    """States (R, N, D) of right-padded rows after the first `layers` layers, None = all."""
    layout = Layout.of([mask])
    embeds = stack.embed(layout.pack([ids]))
    states = stack.run(embeds, range(len(stack) if layers is None else layers), layout.positions())
    return states[:, : ids.shape[1]]


def nll_after(stack: Stack, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Nats of each token of ids (R, N) given the state before it, states (R, N, D): (R, N) float32, 0 where masked."""
    values = token_nll(stack.lm_head, stack.norm(states[mask]), ids[mask]).float()
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)


def _passes(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Groups of rows, the shortest rows first, of at most TOKENS_PER_PASS tokens with their padding; no empty rows."""
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * lengths[row] > TOKENS_PER_PASS:
            yield batch
            batch = []
        if lengths[row]:
            batch.append(row)
    if batch:
        yield batch
