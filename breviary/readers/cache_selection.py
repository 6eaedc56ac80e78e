"""Key/value eviction: a memory of some of each decoder layer's own keys and values, chosen by a scorer.

Shape letters: B contexts, S columns of [prefix ; context], T context tokens, P prefix tokens, J key/value heads,
G query heads of one key/value head, W observing tokens, d head width, L decoder layers.

    1. encode    the decoder reads [prefix ; context] once and keeps all keys and values
    2. observe   where the question is known, its prompt is run behind the whole cache; a scorer may run other texts
    3. score     each entry of each layer and key/value head (breviary/scorers)
    4. keep      the prefix and the best entries, at their own positions; the rest is dropped
    5. the reader runs prompt and answer behind what is kept; the prompt starts at position P + T
With every entry kept, the reader is exactly the plain backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import CapturingCache, LazyLayers, Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Context, Encoded, KeyValueMemory, Question, Tokens
from breviary.memory.assembly import Layout, take_columns
from breviary.memory.budget import Budget, BudgetedCompressor, check_budget
from breviary.memory.columns import Columns
from breviary.memory.kept_keys import KeptKeys
from breviary.memory.observers import Observers, run_behind
from breviary.scorers.base import Scorer, select
from breviary.scorers.views import LayerKeys, LayerQueries

QUESTION = ("known", "unknown")
Pair = tuple[Tensor, Tensor]


class CacheSelection(BudgetedCompressor):
    """Keeps ceil(T / ratio) entries per layer and key/value head, or distributes the same total as the scorer decides.

    scorer    ranks the entries, see breviary/scorers
    question  known: the prompt observes, and each question has its own memory | unknown: a memory serves any question
    ratio, slots, ratio_choices  as in Budget. Prefix and prompt stay, outside the budget
    Cost: a full prefill and the scorer's own; while answering, attention over the kept entries. The choice is hard: the
    answer's loss reaches the kept keys and values, not the scores. Fitted values (attention matching) get no gradient.
    """

    keeps_cache, has_weights = True, False
    compress_only_keys = frozenset({"ratio", "slots", "ratio_choices"})

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        scorer: Scorer,
        question: str = "unknown",
        ratio: float | None = 4,
        slots: int | None = None,
        ratio_choices: list[int] | None = None,
    ):
        super().__init__()
        assert question in QUESTION, question
        self.scorer, self.budget = scorer, Budget(ratio, slots, ratio_choices)
        self.needs_question = question == "known"
        self._decoder, self._backbone = (decoder,), backbone

    # -------------------------------------------------------------- encode

    @classmethod
    def encode_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All scorers encode alike but for the features that they store."""
        observes = "none" if settings["question"] == "known" else instantiate(settings["scorer"]).observes
        return {"keeps_cache": True, "observes": observes}

    def encode(self, context: Context) -> Encoded:
        """Keys and values of [prefix ; context] in every layer. Ids are -1 on the prefix; states have width 0."""
        decoder = self._decoder[0]
        layout = Layout.of([context.prefix.mask, context.mask])
        positions = layout.positions()
        states = decoder.embed(layout.pack([context.prefix.ids, context.ids]))
        ids = layout.pack([torch.full_like(context.prefix.ids, -1), context.ids])
        columns = Columns.of(layout.mask, ids)
        cache, observed, pairs = CapturingCache(), [], []
        inputs = decoder.attention_inputs(states, positions)
        last = len(decoder) - 1
        for index in range(len(decoder)):
            entering = states
            if index < last:
                states = decoder.run_layer(index, states, inputs, cache)
                pair = cache.layers[index]
            else:  # of the last layer only keys and values are used
                pair = decoder.keys_values(index, states, positions)
            if self._observes:
                observed.append(self._observe(index, entering, positions, pair[0], columns))
            pairs.append((pair[0][:, None], pair[1][:, None]))
        return Encoded(states.new_zeros(*ids.shape, 0)[:, None], layout.mask[:, None], ids[:, None], pairs, observed)

    @property
    def _observes(self) -> bool:
        """Whether encoding stores features for the scorer."""
        return self.scorer.observes != "none" and not self.needs_question

    @torch.no_grad()
    def _observe(self, index: int, states: Tensor, positions: Tensor, keys: Tensor, columns: Columns) -> Tensor:
        """The scorer's features of layer `index`; states (B, S, D) enter it, keys (B, J, S, d)."""
        decoder = self._decoder[0]
        own = columns.context(positions)
        prefix_keys, context_keys = columns.split(keys)

        def project(tokens: Tensor) -> Tensor:
            taken = take_columns(states, columns.context_columns.gather(1, tokens))
            with decoder.mixed_precision():  # adapters in training are float32
                return decoder.queries(index, taken, None).unflatten(1, (keys.shape[1], -1))

        def rotary(at: Tensor) -> tuple[Tensor, Tensor]:
            return decoder.rotary(states, at)

        layer = LayerQueries(project, context_keys, columns.mask, own, rotary, prefix_keys, columns.prefix_mask)
        with torch.autocast(states.device.type, enabled=False):
            return self.scorer.observe(layer)

    # -------------------------------------------------------------- compress

    def compress(self, encoded: Encoded, question: Question) -> KeyValueMemory:
        """The entries to keep for this question, or for any."""
        columns = Columns.of(encoded.mask[:, 0], encoded.ids[:, 0])
        pairs = LazyLayers(len(self._decoder[0]), lambda layer: _without_segments(encoded.keys_values[layer]))
        budget = self.budget.slots_per_row(columns.context(encoded.ids[:, 0]), columns.mask, self.training)
        with torch.no_grad():
            scores = self._scores(encoded, question, columns, pairs, budget)
            counts = self.scorer.allocate(scores, columns.mask, budget)
            kept = [select(score, count, columns.mask) for score, count in zip(scores, counts)]
        layers, total = [], torch.zeros_like(budget)
        share = torch.zeros_like(columns.mask, dtype=torch.float32)
        for index, kept_BJT in enumerate(kept):
            keys, values = pairs[index]
            bias = None
            if self.scorer.biases:
                view = self._view(index, encoded, columns, pairs[index], budget)
                with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
                    fitted = self.scorer.fit(view, kept_BJT)
                assert fitted is not None, type(self.scorer)
                values, bias = columns.replace(values, fitted[0]), columns.replace(values[..., 0] * 0, fitted[1])
            layers.append(KeptKeys.select(keys, values, columns.with_prefix(kept_BJT), bias))
            total += kept_BJT.sum((1, 2))
            share += kept_BJT.float().mean(1)
        heads = len(layers) * kept[0].shape[1]
        slots = torch.div(total + heads - 1, heads, rounding_mode="floor")
        return KeyValueMemory(layers, slots, trace={"kept_share": share / len(layers)})

    def _scores(
        self, encoded: Encoded, question: Question, columns: Columns, pairs: LazyLayers, budget: Tensor
    ) -> list[Tensor]:
        """Scores (B, J, T) of each layer."""
        decoder = self._decoder[0]
        everything = slice(None)
        observers: list[tuple[Iterator[Observers | None], slice]]
        if self.needs_question:
            prompt = Tokens(question.ids.new_zeros(question.states_mask.shape), question.states_mask)
            observers = [(run_behind(decoder, question.states, prompt, columns, pairs, self.scorer.window), everything)]
        else:
            tokenizer = self._backbone.tokenizer()
            observers = [
                (run_behind(decoder, decoder.embed(fed.ids), fed, columns, pairs), chunk)
                for fed, chunk in self.scorer.probes(columns.context(encoded.ids[:, 0]), columns.mask, tokenizer)
            ] or [(self._tail(encoded), everything)]
        best: list[Tensor] = []
        for of_layers, part in observers:
            for index, seen in enumerate(of_layers):
                view = self._view(index, encoded, columns, pairs[index], budget, part)
                view.observers = seen
                with torch.autocast(view.keys.device.type, enabled=False):
                    score = self.scorer.score(view)
                if part == everything:
                    best.append(score)
                    continue
                if len(best) <= index:
                    best.append(score.new_zeros(*score.shape[:2], columns.mask.shape[1]))
                best[index][..., part] = torch.maximum(best[index][..., part], score)
        return best

    def _view(
        self, index: int, encoded: Encoded, columns: Columns, pair: Pair, budget: Tensor, part: slice = slice(None)
    ) -> LayerKeys:
        """A `part` of the context in layer `index` as scorers see it."""
        prefix_keys, keys = columns.split(pair[0])
        observed = encoded.observed[index] if encoded.observed else None
        return LayerKeys(
            index,
            len(self._decoder[0]),
            keys[:, :, part],
            columns.split(pair[1])[1][:, :, part],
            columns.mask[:, part],
            prefix_keys,
            columns.prefix_mask,
            budget,
            observed,
        )

    def _tail(self, encoded: Encoded) -> Iterator[Observers | None]:
        """For each layer the context's last tokens as observers; None where the scorer reads none."""
        lengths = (encoded.mask[:, 0] & (encoded.ids[:, 0] >= 0)).sum(1, keepdim=True)
        heads = encoded.keys_values[0][0].shape[2]
        for layer in range(len(self._decoder[0])):
            if self.scorer.observes != "tail":
                yield None
                continue
            stored = encoded.observed[layer][:, -self.scorer.window :].unflatten(2, (heads, -1, encoded_width(encoded)))
            queries = stored.permute(0, 2, 3, 1, 4)
            index = lengths - stored.shape[1] + torch.arange(stored.shape[1], device=lengths.device)
            nothing = encoded.mask.new_zeros(*index.shape, 0)
            yield Observers(queries, index >= 0, index, queries[:, :, 0, :0], nothing)

    # -------------------------------------------------------------- checks

    def slot_bytes(self, decoder: Stack) -> int:
        """As Compressor.slot_bytes, and a bias for each layer and head where the scorer fits them."""
        return super().slot_bytes(decoder) + _bias_bytes(self.scorer, decoder.config)

    @classmethod
    def bytes_per_slot(cls, settings: Mapping[str, Any], config: Any, dtype: torch.dtype) -> int:
        """As BudgetedCompressor, and a bias for each layer and head where the scorer fits them."""
        return super().bytes_per_slot(settings, config, dtype) + _bias_bytes(instantiate(settings["scorer"]), config)

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """Error messages for the budget, the question, and the scorer's own arguments."""
        problems = check_budget(settings)
        if settings["question"] not in QUESTION:
            problems.append(f"compressor.question={settings['question']}: allowed are {', '.join(QUESTION)}")
        try:
            scorer = instantiate(settings["scorer"])
        except Exception as error:  # hydra wraps what a constructor raises
            cause = error.__cause__ or error
            return [
                *problems,
                f"compressor.{cause}" if isinstance(cause, ValueError) else f"compressor.scorer: {cause}",
            ]
        if settings["question"] == "known" and not scorer.question_aware:
            problems.append(
                f"compressor.question=known: {type(scorer).__name__} does not read the question; set "
                "compressor.question=unknown"
            )
        return problems

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """As `Compressor.longest_context`: all tokens take positions, and those that a scorer runs behind them."""
        scorer, room = instantiate(settings["scorer"]), max(positions - others, 0)
        least, most = 0, room + 1
        while most - least > 1:  # fitting is monotonic in the length
            middle = (least + most) // 2
            fits = middle + max(scorer.probe_tokens(middle) - others, 0) <= room
            least, most = (middle, most) if fits else (least, middle)
        return least


def _without_segments(pair: Pair) -> Pair:
    """Keys and values (B, 1, J, S, d) of an encoded context as (B, J, S, d)."""
    return pair[0][:, 0], pair[1][:, 0]


def encoded_width(encoded: Encoded) -> int:
    """Head width d."""
    return encoded.keys_values[0][0].shape[-1]


def _bias_bytes(scorer: Scorer, config: Any) -> int:
    """Bytes of a slot's float32 biases, one for each layer and head, where the scorer fits them."""
    return 4 * config.num_key_value_heads * config.num_hidden_layers if scorer.biases else 0
