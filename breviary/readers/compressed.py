"""CompressedReader: any compressor and a decoder become a reader.

Shape letters: B examples, P prefix, T context, Q prompt, A answer tokens, M slots, D width, S assembled width.

One batch's way:
    1. compressor.encode(context)                       -> states, independent of the question
    2. decoder layers 0..n-1 read [prefix ; prompt ; answer], the prompt at positions after the context
    3. compressor.compress(encoded, question)           -> memory that joins at layer n
    4. decoder layers n..L-1 read [prefix ; memory ; prompt ; answer]; where contexts are kept and the memory needs no question,
       [prefix ; memory] once for all questions (breviary/decoding/state.py)
    5. final norm and head on the rows that predict an answer token
n = 0 is the papers' form: step 2 is only the embedding, and positions are consecutive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.stack import CapturingCache, ReadOnlyCache, Stack
from breviary.contract import (
    Batch,
    Compressor,
    Context,
    Decoded,
    Encoded,
    EncodedContext,
    Footprint,
    Generation,
    LossOutput,
    Memory,
    Question,
    Reader,
    Tokens,
)
from breviary.decoding.loop import decode_batch, decode_stream
from breviary.decoding.state import DecodingState, PrefilledMemory
from breviary.memory.assembly import Layout, take_columns
from breviary.memory.encoded import split_contexts
from breviary.objectives.answer import Answer, token_nll
from breviary.readers.cache import ContextCache
from breviary.readers.documents import EncodedDocument, load_saved
from breviary.runtime.timing import phase


class CompressedReader(Reader):
    """A compressor in front of a decoder.

    tokenizer is used for decoding answers only. `all_steps` makes every answer take max_new_tokens steps (ZeRO-3: equal
    calls on all ranks).
    """

    context_cache_class = ContextCache

    def __init__(self, compressor: Compressor, decoder: Stack, objective: Answer, tokenizer: Any):
        super().__init__()
        self.compressor, self.decoder = compressor, decoder
        self.objective, self.tokenizer = objective, tokenizer
        self.all_steps = False

    # -------------------------------------------------------------- the contract

    def loss(self, batch: Batch) -> LossOutput:
        """The objective's loss of answers, in evaluation their negative log likelihood, and in training what else the
        objective asks."""
        main = self.objective.primary(batch)
        with self.mixed_precision():
            if self._reads_memory_once(main):
                prefilled = self._prefilled(main)
                logits_BAV, slots_B, parts = self._logits_behind(main, prefilled), prefilled.slots, {}
            else:
                encoded = self._encoded(main)
                logits_BAV, memory = self._logits(
                    main, encoded, self.compressor.labels(main) if self.training else None
                )
                slots_B, parts = memory.mask.sum(1), dict(memory.losses)
            if not self.training:
                return _told(main, logits_BAV, slots_B)
            losses_BA = self.objective.token_losses(main, logits_BAV, self.decoder).masked_fill(~main.answer.mask, 0)
            for name, (weight, other) in self.objective.auxiliary(batch).items():
                read = encoded if other.context is main.context else self._encoded(other)
                nll_BA = token_nll(self._logits(other, read)[0], other.answer.ids).masked_fill(~other.answer.mask, 0)
                parts[name] = (weight * nll_BA.sum(), other.answer.mask.sum())
        return LossOutput(losses_BA.sum(1), main.answer.lengths, parts, slots_B, main.context.lengths)

    @torch.no_grad()
    def answer_with_loss(self, batch: Batch, generation: Generation) -> tuple[list[Decoded], LossOutput]:
        """What is written, and the reference's likelihood; the decoder reads memory and question once for both."""
        main = self.objective.primary(batch)
        with self.mixed_precision():
            stream, first_BV = self.open(batch)
            layout = Layout.of([main.answer.mask], round_to=1)
            further_BAV = stream.teacher_forced_logits(layout.pack([main.answer.ids]), layout.mask)
            logits_BAV = layout.unpack(torch.cat([first_BV[:, None], further_BAV[:, :-1]], 1), 0).float()
            with phase("decode"):
                written = decode_batch(first_BV, stream.step, generation, self.tokenizer, self.all_steps, self.decoder.end_ids)
        return written, _told(main, logits_BAV, stream.slots)

    @torch.no_grad()
    def decode(
        self,
        batch: Batch,
        generation: Generation,
        encoded: Encoded | None = None,
        memory: Memory | None = None,
        prefilled: PrefilledMemory | None = None,
    ) -> list[Decoded]:
        """Greedy or sampled answers, decoded with a per-layer cache; encoded, memory, prefilled as in `open`."""
        with self.mixed_precision():
            stream, logits = self.open(batch, encoded, memory, prefilled)
            with phase("decode"):
                return decode_batch(logits, stream.step, generation, self.tokenizer, self.all_steps, self.decoder.end_ids)

    @torch.no_grad()
    def stream(
        self,
        batch: Batch,
        generation: Generation,
        encoded: Encoded | None = None,
        memory: Memory | None = None,
        prefilled: PrefilledMemory | None = None,
    ) -> Iterator[str]:
        """The answer of a batch of one, its text given as it is decoded; otherwise as `answer`."""
        with self.mixed_precision():
            stream, logits = self.open(batch, encoded, memory, prefilled)

        def step(ids: Tensor) -> Tensor:
            with self.mixed_precision():  # not around the loop: between two pieces the caller computes
                return stream.step(ids)

        yield from decode_stream(logits, step, generation, self.tokenizer, self.decoder.end_ids)

    def open(
        self,
        batch: Batch,
        encoded: Encoded | None = None,
        memory: Memory | None = None,
        prefilled: PrefilledMemory | None = None,
    ) -> tuple[DecodingState, Tensor]:
        """Reads contexts and questions; gives the stream to decode from and the first logits (B, V).

        encoded  the contexts where they are read already; memory  where they are compressed already; prefilled  where the
        decoder has read the memory already (`prefill`). Of the batch's contexts only the lengths count then.
        """
        n, batch = self.compressor.layer, self.objective.primary(batch)
        parts = [batch.prefix, batch.prompt]
        stream = DecodingState(self.decoder, n)
        with phase("prefill"):
            lower = Layout.of([p.mask for p in parts], side="left")
            positions = self._lower_positions(batch, lower)
            embeds = self.decoder.embed(lower.pack([p.ids for p in parts]))
            states = stream.prefill_lower(embeds, positions, lower.mask) if n else embeds
        if encoded is None and memory is None and prefilled is None and self._reads_memory_once(batch):
            prefilled = self._prefilled(batch)
        if prefilled is not None:
            with phase("prefill"):
                upper, states, positions = self._behind(parts[1:], prefilled, lower, states, positions, "left")
                stream.slots = prefilled.slots
                return stream, stream.prefill_upper(
                    states, positions, torch.cat([prefilled.mask, upper.mask], 1), prefilled
                )
        if memory is None:
            memory = self._memory(batch, self._encoded(batch) if encoded is None else encoded, lower, states)
        with phase("prefill"):
            upper, states, positions = self._upper(parts, memory, lower, states, positions, "left")
            stream.slots = memory.mask.sum(1)
            return stream, stream.prefill_upper(states, positions, upper.mask)

    @torch.no_grad()
    def memory(self, batch: Batch, encoded: Encoded | None = None) -> Memory:
        """What is kept of each context for its question; `trace` says why. encoded as in `open`."""
        batch = self.objective.primary(batch)
        with self.mixed_precision():
            parts = [batch.prefix, batch.prompt]
            lower = Layout.of([p.mask for p in parts])
            embeds = self.decoder.embed(lower.pack([p.ids for p in parts]))
            states = self.decoder.run(embeds, range(self.compressor.layer), self._lower_positions(batch, lower))
            return self._memory(batch, self._encoded(batch) if encoded is None else encoded, lower, states)

    @torch.no_grad()
    def encode_contexts(self, batch: Batch) -> list[EncodedContext]:
        """Each context encoded, whatever will be asked."""
        with self.mixed_precision():
            encoded = self._encoded(batch)
        return [EncodedDocument(self, one) for one in split_contexts(encoded)]

    def load_saved(self, file: str | Path) -> EncodedContext:
        """As `kept.load_saved`."""
        return load_saved(self, file)

    @torch.no_grad()
    def footprint(self, batch: Batch) -> Footprint:
        """Slots and the decoder keys and values they take, layers below the joining one holding none."""
        return self.footprint_from_slots(batch, self.memory(batch).mask.sum(1))

    def footprint_from_slots(self, batch: Batch, slots: Tensor) -> Footprint:
        """The footprint for a known number of slots (B,), without computing the memory again."""
        per_slot = self.decoder.key_value_bytes(len(self.decoder) - self.compressor.layer)
        lengths = self.objective.primary(batch).context.lengths
        return Footprint(lengths, slots, slots * per_slot, self.compressor.requested_ratio)

    @property
    def requested_ratio(self) -> float | None:
        """The compressor's."""
        return self.compressor.requested_ratio

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Supervised tokens, and the counts of the compressor's own losses."""
        others = self.objective.auxiliary(batch) if self.training else {}
        return {
            "answer": self.objective.primary(batch).answer.mask.sum(),
            **self.compressor.counts(batch),
            **{name: other.answer.mask.sum() for name, (_, other) in others.items()},
        }

    def begin_step(self, step: int, seed: int) -> None:
        """Handed on to compressor and objective."""
        self.compressor.begin_step(step, seed)
        self.objective.begin_step(step, seed)

    # -------------------------------------------------------------- pieces

    @torch.no_grad()
    def prefill(self, batch: Batch, encoded: Encoded) -> PrefilledMemory:
        """What the decoder holds of each context's memory, where that needs no question; batch's questions are not looked at."""
        assert not self.compressor.needs_question, type(self.compressor).__name__
        n, cache, nobody = self.compressor.layer, CapturingCache(), batch.prefix.ids[:, :0]
        with self.mixed_precision():
            lower = Layout.of([batch.prefix.mask])
            positions, embeds = lower.positions(), self.decoder.embed(lower.pack([batch.prefix.ids]))
            states = self.decoder.run(embeds, range(n), positions)
            question = Question(nobody, nobody.bool(), embeds[:, :0], nobody.bool(), None, batch.task)
            with phase("compress"):
                memory = self.compressor.compress(encoded, question)
            with phase("prefill"):
                upper, states, positions = self._upper([batch.prefix], memory, lower, states, positions, "right")
                short = max(1 - upper.mask.shape[1], 0)  # neither prefix nor memory: one masked column
                states = torch.nn.functional.pad(states, (0, 0, 0, short))
                positions, mask = (torch.nn.functional.pad(x, (0, short)) for x in (positions, upper.mask))
                self.decoder.run(states, range(n, len(self.decoder)), positions, cache=cache)
        return PrefilledMemory(cache.layers, mask, memory.mask.sum(1))

    def _reads_memory_once(self, batch: Batch) -> bool:
        """Whether contexts are kept, and what the decoder holds of them with them: the first answer token is then predicted by the
        prompt, of which there must be some."""
        return bool(self.context_cache and not self.compressor.needs_question and batch.prompt.mask.any(1).all())

    def _prefilled(self, batch: Batch) -> PrefilledMemory:
        """`prefill` of every row, reading only contexts that are not kept yet."""

        def read(missing: list[int]) -> list[PrefilledMemory]:
            rows = batch.rows(missing)
            return self.prefill(rows, self._encoded(rows)).split()

        return self.context_cache.prefilled(batch, read)

    def _logits_behind(self, batch: Batch, prefilled: PrefilledMemory) -> Tensor:
        """As `_logits`, where the decoder has read the memory already."""
        n, parts = self.compressor.layer, [batch.prefix, batch.prompt, batch.answer]
        lower = Layout.of([p.mask for p in parts])
        positions = self._lower_positions(batch, lower)
        states = self.decoder.run(self.decoder.embed(lower.pack([p.ids for p in parts])), range(n), positions)
        upper, states, positions = self._behind(parts[1:], prefilled, lower, states, positions, "right")
        states = self.decoder.run(
            states,
            range(n, len(self.decoder)),
            positions,
            torch.cat([prefilled.mask, upper.mask], 1),
            ReadOnlyCache(prefilled.keys_values),
        )
        return self.decoder.head(
            self.decoder.norm(take_columns(states, (upper.columns_of(1) - 1).clamp(min=0)))
        ).float()

    def _behind(
        self,
        tail: list[Tokens],
        prefilled: PrefilledMemory,
        lower: Layout,
        states: Tensor,
        positions: Tensor,
        side: str,
    ) -> tuple[Layout, Tensor, Tensor]:
        """`tail`, all parts of `lower` but the prefix, to be read behind a memory that was read: as `_upper` gives it."""
        upper, numbers = Layout.of([part.mask for part in tail], side), range(1, len(tail) + 1)
        stream = upper.pack([lower.unpack(states, part) for part in numbers])
        if not self.compressor.layer:
            return upper, stream, (upper.positions() + prefilled.mask.sum(1, keepdim=True)).masked_fill(~upper.mask, 0)
        return upper, stream, upper.pack([positions.gather(1, lower.columns_of(part)) for part in numbers])

    def _logits(self, batch: Batch, encoded: Encoded, labels: Any = None) -> tuple[Tensor, Memory]:
        """What is predicted for each answer token (B, A, V), float32, and the memory it was read from; logits of supervised
        rows only."""
        n, parts = self.compressor.layer, [batch.prefix, batch.prompt, batch.answer]
        lower = Layout.of([p.mask for p in parts])
        positions = self._lower_positions(batch, lower)
        states = self.decoder.run(self.decoder.embed(lower.pack([p.ids for p in parts])), range(n), positions)
        memory = self._memory(batch, encoded, lower, states, labels)
        upper, states, positions = self._upper(parts, memory, lower, states, positions, "right")
        states = self.decoder.run(states, range(n, len(self.decoder)), positions)
        # The row before an answer token predicts it; where there is one, a prompt is before it.
        predicting_BA = (upper.columns_of(3) - 1).clamp(min=0)
        rows_BAD = self.decoder.norm(take_columns(states, predicting_BA))
        return self.decoder.head(rows_BAD).float(), memory

    def _encoded(self, batch: Batch) -> Encoded:
        context = Context(batch.context.ids, batch.context.mask, batch.prefix)
        with phase("encode"):
            return (
                self.context_cache.encode(self.compressor, context)
                if self.context_cache
                else self.compressor.encode(context)
            )

    def _memory(self, batch: Batch, encoded: Encoded, lower: Layout, states: Tensor, labels: Any = None) -> Memory:
        question = Question(
            batch.query.ids, batch.query.mask, lower.unpack(states, 1), batch.prompt.mask, labels, batch.task
        )
        with phase("compress"):
            memory = self.compressor.compress(encoded, question)
        assert memory.layer == self.compressor.layer, (memory.layer, self.compressor.layer)
        return memory

    def _lower_positions(self, batch: Batch, lower: Layout) -> Tensor:
        """Positions (B, S): the prefix from 0, then, after the context's place, prompt and answer."""
        positions = lower.positions()
        prefix, context = batch.prefix.lengths[:, None], batch.context.lengths[:, None]
        return torch.where(positions >= prefix, positions + context, positions).masked_fill(~lower.mask, 0)

    def _upper(
        self, parts: list[Tokens], memory: Memory, lower: Layout, states: Tensor, positions: Tensor, side: str
    ) -> tuple[Layout, Tensor, Tensor]:
        """Puts the memory behind the prefix, the first of `parts`: layout, stream (B, S, D), positions (B, S)."""
        prefix, *tail = parts
        upper = Layout.of([prefix.mask, memory.mask, *(part.mask for part in tail)], side)
        own = [lower.unpack(states, part) for part in range(len(parts))]
        stream = upper.pack([own[0], memory.embeds.to(states.dtype), *own[1:]])
        if not memory.layer:
            return upper, stream, upper.positions()
        places = [positions.gather(1, lower.columns_of(part)) for part in range(len(parts))]
        slots = memory.positions + prefix.lengths[:, None]
        return upper, stream, upper.pack([places[0], slots, *places[1:]])

    def mixed_precision(self) -> contextlib.AbstractContextManager:
        """As Stack.precision."""
        return self.decoder.mixed_precision()


def _told(main: Batch, logits: Tensor, slots: Tensor) -> LossOutput:
    """The negative log likelihood of what is asked, in evaluation; logits (B, A, V) float32, slots (B,)."""
    nll_BA = token_nll(logits, main.answer.ids).masked_fill(~main.answer.mask, 0)
    hits_BA = (logits.argmax(-1) == main.answer.ids) & main.answer.mask
    return LossOutput(nll_BA.sum(1), main.answer.lengths, {}, slots, main.context.lengths, main.answer, nll_BA, hits_BA)
