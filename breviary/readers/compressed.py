"""CompressedReader: turns any compressor and a decoder into a reader.

Shape letters: B examples, P prefix, T context, Q prompt, A answer tokens, M slots, D width, S width of an assembled
sequence. n is the joining layer (`Compressor.layer`), L the number of decoder layers.

Forward pass of one batch:
    1. compressor.encode(context) -> states, independent of the question
    2. decoder layers 0..n-1 on [prefix ; prompt ; answer], with the prompt at positions after the context
    3. compressor.compress(encoded, question) -> memory that joins at layer n
    4. decoder layers n..L-1 on [prefix ; memory ; prompt ; answer]. Where contexts are cached and the memory does not
       depend on the question, keys and values of [prefix ; memory] are computed once (breviary/decoding/state.py)
    5. final norm on the rows that predict an answer token; head and loss on chunks of them (breviary/backbones/head.py)
n = 0 is the papers' form: step 2 is only the embedding, and positions are consecutive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.head import nll_and_hits, token_nll
from breviary.backbones.stack import CapturingCache, LazyLayers, ReadOnlyCache, Stack
from breviary.contract import (
    Batch,
    Compressor,
    Context,
    Decoded,
    Encoded,
    EncodedContext,
    Footprint,
    Generation,
    KeyValueMemory,
    LossOutput,
    Memory,
    Question,
    Reader,
    Tokens,
)
from breviary.decoding.loop import decode_batch, decode_stream
from breviary.decoding.shared_keys import KeptCache, PrefilledMemory, SharedKeys
from breviary.decoding.state import DecodingState
from breviary.memory.assembly import Layout, take_columns
from breviary.memory.encoded_batches import split_contexts
from breviary.objectives.answer import Answer
from breviary.readers.cache import ContextCache
from breviary.readers.documents import EncodedDocument, load_saved
from breviary.readers.keep_tokens import KeepTokens
from breviary.readers.key_value_documents import split_key_values
from breviary.readers.slot_reader import ContextState, hash_trained
from breviary.runtime.timing import READ, phase


class CompressedReader(Reader):
    """A compressor in front of a decoder.

    tokenizer  decodes answers; used for nothing else
    all_steps  attribute; True: every answer takes max_new_tokens steps, so that all ranks make equal calls (ZeRO-3)
    """

    context_cache_class = ContextCache

    def __init__(self, compressor: Compressor, decoder: Stack, objective: Answer, tokenizer: Any):
        super().__init__()
        self.compressor, self.decoder = compressor, decoder
        self.objective, self.tokenizer = objective, tokenizer
        self.all_steps = False

    # -------------------------------------------------------------- the contract

    def loss(self, batch: Batch) -> LossOutput:
        """Loss of the answers: in training the objective's losses, in evaluation the negative log likelihood."""
        main = self._primary(batch)
        with self.mixed_precision():
            if self._can_prefill(main):
                prefilled = self._cached_prefill(main)
                rows_BAD, slots_B, parts = self._rows_after_shared(main, prefilled), prefilled.slots, {}
            else:
                encoded = self._encode(main)
                labels = self.compressor.labels(main) if self.training else None
                rows_BAD, memory = self._rows(main, encoded, labels)
                slots_B, parts = memory.slots, dict(memory.losses)
            if not self.training:
                return _loss_output(main, nll_and_hits(self.decoder.lm_head, rows_BAD, main.answer.ids), slots_B)
            losses_BA = self.objective.token_losses(main, rows_BAD, self.decoder).masked_fill(~main.answer.mask, 0)
            for name, (weight, other) in self.objective.auxiliary(batch).items():
                other_encoded = encoded if other.context is main.context else self._encode(other)
                rows, _ = self._rows(other, other_encoded)
                nll_BA = token_nll(self.decoder.lm_head, rows, other.answer.ids).masked_fill(~other.answer.mask, 0)
                parts[name] = (weight * nll_BA.sum(), other.answer.mask.sum())
        return LossOutput(losses_BA.sum(1), main.answer.lengths, parts, slots_B, main.context.lengths)

    @torch.no_grad()
    def answer_with_loss(self, batch: Batch, generation: Generation) -> tuple[list[Decoded], LossOutput]:
        """Decoded answers, and the likelihood of the references from the same prefill of memory and question."""
        main = self._primary(batch)
        with self.mixed_precision():
            state, first_BV = self.start_decoding(batch)
            layout = Layout.of([main.answer.mask], round_to=1)
            ids_BA = layout.pack([main.answer.ids])
            later = state.teacher_forced_rows(ids_BA, layout.mask)[:, :-1]
            first = _first_token(first_BV, ids_BA)
            others = nll_and_hits(self.decoder.lm_head, later, ids_BA[:, 1:])
            measured = [torch.cat(x, 1).gather(1, layout.columns_of(0)) for x in zip(first, others)]
            return self._decode(batch, state, first_BV, generation), _loss_output(main, measured, state.slots)

    @torch.no_grad()
    def decode(self, batch: Batch, generation: Generation, contexts: ContextState | None = None) -> list[Decoded]:
        """Greedy or sampled answers; `contexts` as in `start_decoding`."""
        with self.mixed_precision():
            return self._decode(batch, *self.start_decoding(batch, contexts), generation)

    @torch.no_grad()
    def stream(self, batch: Batch, generation: Generation, contexts: ContextState | None = None) -> Iterator[str]:
        """The answer to a batch of one, as pieces of text while it is decoded; `contexts` as in `start_decoding`."""
        with self.mixed_precision():
            state, logits = self.start_decoding(batch, contexts)

        def step(ids: Tensor) -> Tensor:
            with self.mixed_precision():  # entered per step: between two pieces the caller's own code runs
                return state.step(ids)

        yield from decode_stream(
            logits, step, generation, self.tokenizer, self.decoder.end_ids, [example.id for example in batch.examples]
        )

    def start_decoding(self, batch: Batch, contexts: ContextState | None = None) -> tuple[DecodingState, Tensor]:
        """Prefills memory and prompt. Returns the state to decode from and the first logits (B, V).

        contexts  the contexts, already encoded, compressed or prefilled; only the lengths of `batch.context` are used
                  then. None = computed here from `batch.context`
        """
        n, batch = self.compressor.layer, self._primary(batch)
        parts = [batch.prefix, batch.prompt]
        state = DecodingState(self.decoder, n)
        with phase("prefill"):
            lower = Layout.of([part.mask for part in parts])
            positions = self._lower_positions(batch, lower)
            embeds = self.decoder.embed(lower.pack([part.ids for part in parts]))
            states = state.prefill_lower(embeds, positions, lower.mask) if n else embeds
        if contexts is None:
            contexts = self._cached_prefill(batch) if self._can_prefill(batch) else self._encode(batch)
        if isinstance(contexts, Encoded):
            memory = self._compress(batch, contexts, lower, states)
            contexts = memory if isinstance(memory, Memory) else KeptCache(memory.layers, memory.slots)
        state.slots = contexts.slots
        with phase("prefill"):
            if isinstance(contexts, Memory):
                upper, states, positions = self._assemble(parts, contexts, lower, states, positions)
                return state, state.prefill_upper(states, positions, upper.mask)
            upper, states, positions = self._assemble_after_shared(parts, contexts, lower, states, positions)
            logits = state.prefill_upper(states, positions, upper.mask, contexts)
            # Behind a row without prompt the answer starts after the context.
            first = batch.prefix.lengths + batch.context.lengths
            state.next_position = torch.where(upper.mask.any(1), state.next_position, first)
            return state, logits

    @torch.no_grad()
    def memory(self, batch: Batch, encoded: Encoded | None = None) -> Memory | KeyValueMemory:
        """Memory of each context for its question. encoded: the contexts, if they are encoded already."""
        batch = self._primary(batch)
        with self.mixed_precision():
            lower, _, states = self._run_lower(batch, [batch.prefix, batch.prompt])
            return self._compress(batch, self._encode(batch) if encoded is None else encoded, lower, states)

    @torch.no_grad()
    def encode_contexts(self, batch: Batch) -> Sequence[EncodedContext]:
        """As `Reader.encode_contexts`."""
        if self.compressor.keeps_cache and not self.compressor.needs_question:
            return split_key_values(self, self.memory(batch), batch.context.lengths.tolist())
        with self.mixed_precision():
            encoded = self._encode(batch)
        return [EncodedDocument(self, one) for one in split_contexts(encoded)]

    def load_saved(self, file: str | Path) -> EncodedContext:
        """As `documents.load_saved`."""
        return load_saved(self, file)

    def hash_weights(self) -> str:
        """As `slot_reader.hash_trained`."""
        return hash_trained(self)

    @torch.no_grad()
    def footprint(self, batch: Batch) -> Footprint:
        """Slots and their decoder keys and values; layers below the joining one hold none."""
        return self.footprint_from_slots(batch, self.memory(batch).slots)

    def footprint_from_slots(self, batch: Batch, slots: Tensor) -> Footprint:
        """The footprint for a known number of slots (B,), without computing the memory again."""
        per_slot = self.compressor.slot_bytes(self.decoder)
        main = self._primary(batch)
        held = self.document_bytes(main)
        return Footprint(main.context.lengths, slots, slots * per_slot, self.compressor.requested_ratio, held)

    @property
    def requested_ratio(self) -> float | None:
        """The compressor's."""
        return self.compressor.requested_ratio

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of supervised tokens, and the counts of the compressor's own and the objective's auxiliary losses."""
        main, others = self._primary(batch), self.objective.auxiliary(batch) if self.training else {}
        return {
            "answer": main.answer.mask.sum(),
            **self.compressor.counts(main),
            **{name: other.answer.mask.sum() for name, (_, other) in others.items()},
        }

    def begin_step(self, step: int, seed: int) -> None:
        """Calls `begin_step` of compressor and objective."""
        self.compressor.begin_step(step, seed)
        self.objective.begin_step(step, seed)

    def _primary(self, batch: Batch) -> Batch:
        """The objective's primary batch; without memory, prefix and prompt, answers follow the start token alone."""
        main = self.objective.primary(batch)
        has_memory = not isinstance(self.compressor, KeepTokens) or self.compressor.keep != "none"
        if has_memory or main.prefix.ids.shape[1] or main.prompt.ids.shape[1]:
            return main
        start = self.tokenizer.bos_token_id  # None: of a tokenizer whose texts are separated by the end token
        ids_B1 = main.answer.ids.new_full((len(main), 1), self.decoder.end_ids[0] if start is None else start)
        return replace(main, prefix=Tokens(ids_B1, torch.ones_like(ids_B1, dtype=torch.bool)))

    def mixed_precision(self) -> contextlib.AbstractContextManager:
        """As `Stack.mixed_precision`."""
        return self.decoder.mixed_precision()

    # -------------------------------------------------------------- contexts and memory

    def _encode(self, batch: Batch, keep: bool = True) -> Encoded:
        """The batch's contexts, encoded; keep: in the context cache, if there is one."""
        context = Context(batch.context.ids, batch.context.mask, batch.prefix)
        if self.context_cache:
            with phase("compress"):  # joining the rows of the cache; what it encodes counts as "read"
                return self.context_cache.encode(self.compressor, context, keep)
        with phase(READ):
            return self.compressor.encode(context)

    def _compress(
        self, batch: Batch, encoded: Encoded, lower: Layout, states: Tensor, labels: Any = None
    ) -> Memory | KeyValueMemory:
        """Memory for the batch's questions; states (B, S, D) of `lower`, whose part 1 is the prompt."""
        question = Question(
            batch.query.ids, batch.query.mask, lower.unpack(states, 1), batch.prompt.mask, labels, batch.task
        )
        question.compressed = batch.compressed
        if self.compressor.needs_evidence and batch.evidence is not None:
            question.evidence = Layout.of([batch.context.mask], round_to=1).pack([batch.evidence])
        with phase("compress"):
            memory = self.compressor.compress(encoded, question)
        assert isinstance(memory, KeyValueMemory) == self.compressor.keeps_cache, type(memory)
        assert isinstance(memory, KeyValueMemory) or memory.layer == self.compressor.layer, memory.layer
        return memory

    @torch.no_grad()
    def prefill(self, batch: Batch, contexts: Encoded | Memory) -> SharedKeys:
        """The decoder's keys and values of [prefix ; memory], one row for each row of `batch`.

        The questions of `batch` are not used: `contexts` are encoded contexts where the compressor does not need the
        question, or memories.
        """
        assert isinstance(contexts, Memory) or not self.compressor.needs_question, type(self.compressor).__name__
        n, cache = self.compressor.layer, CapturingCache()
        with self.mixed_precision():
            lower, positions, states = self._run_lower(batch, [batch.prefix])
            no_ids = batch.prefix.ids[:, :0]
            question = Question(no_ids, no_ids.bool(), states[:, :0], no_ids.bool(), None, batch.task)
            with phase("compress"):
                memory = contexts if isinstance(contexts, Memory) else self.compressor.compress(contexts, question)
            if isinstance(memory, KeyValueMemory):
                return KeptCache(memory.layers, memory.slots)
            with phase("prefill"):
                upper, states, positions = self._assemble([batch.prefix], memory, lower, states, positions)
                self.decoder.run(states, range(n, len(self.decoder)), positions, cache=cache)
        return PrefilledMemory(cache.layers, upper.mask, memory.mask.sum(1))

    def _can_prefill(self, batch: Batch) -> bool:
        """True where keys and values of [prefix ; memory] can be cached and reused.

        That requires a prompt in every row: the row before the first answer token predicts it.
        """
        return bool(self.context_cache and not self.compressor.needs_question and batch.prompt.mask.any(1).all())

    def _cached_prefill(self, batch: Batch) -> SharedKeys:
        """`prefill` of every row; contexts in the cache are not computed again."""

        def compute(missing: list[int]) -> Sequence[SharedKeys]:
            rows = batch.rows(missing)
            with phase(READ):
                return self.prefill(rows, self._encode(rows, keep=False)).split()

        with phase("prefill"):  # joining the rows of the cache
            return self.context_cache.prefilled(batch, compute)

    # -------------------------------------------------------------- sequences

    def _lower_positions(self, batch: Batch, lower: Layout) -> Tensor:
        """Positions (B, S) of [prefix ; prompt ; answer]: the prefix from 0, the rest after the context's positions."""
        positions = lower.positions()
        prefix, context = batch.prefix.lengths[:, None], batch.context.lengths[:, None]
        return torch.where(positions >= prefix, positions + context, positions).masked_fill(~lower.mask, 0)

    def _run_lower(self, batch: Batch, parts: list[Tokens]) -> tuple[Layout, Tensor, Tensor]:
        """`parts` through the layers below the joining one: layout, positions (B, S), states (B, S, D)."""
        lower = Layout.of([part.mask for part in parts])
        positions = self._lower_positions(batch, lower)
        embeds = self.decoder.embed(lower.pack([part.ids for part in parts]))
        return lower, positions, self.decoder.run(embeds, range(self.compressor.layer), positions)

    def _assemble(
        self, parts: list[Tokens], memory: Memory, lower: Layout, states: Tensor, positions: Tensor
    ) -> tuple[Layout, Tensor, Tensor]:
        """Inserts the memory after the prefix, the first of `parts`: layout, states (B, S, D), positions (B, S)."""
        prefix, *tail = parts
        upper = Layout.of([prefix.mask, memory.mask, *(part.mask for part in tail)])
        prefix_states, *tail_states = (lower.unpack(states, part) for part in range(len(parts)))
        stream = upper.pack([prefix_states, memory.embeds.to(states.dtype), *tail_states])
        if not memory.layer:
            return upper, stream, upper.positions()
        prefix_places, *tail_places = (positions.gather(1, lower.columns_of(part)) for part in range(len(parts)))
        slots = memory.positions + prefix.lengths[:, None]
        return upper, stream, upper.pack([prefix_places, slots, *tail_places])

    def _assemble_after_shared(
        self, parts: list[Tokens], shared: SharedKeys, lower: Layout, states: Tensor, positions: Tensor
    ) -> tuple[Layout, Tensor, Tensor]:
        """As `_assemble`, for the parts that follow the shared keys of [prefix ; memory]."""
        tail = range(1, len(parts))
        upper = Layout.of([parts[part].mask for part in tail])
        stream = upper.pack([lower.unpack(states, part) for part in tail])
        if not self.compressor.layer and isinstance(shared, PrefilledMemory):
            after_memory = upper.positions() + shared.mask.sum(1, keepdim=True)
            return upper, stream, after_memory.masked_fill(~upper.mask, 0)
        return upper, stream, upper.pack([positions.gather(1, lower.columns_of(part)) for part in tail])

    # -------------------------------------------------------------- states that predict an answer

    def _rows(self, batch: Batch, encoded: Encoded, labels: Any = None) -> tuple[Tensor, Memory | KeyValueMemory]:
        """Normed states that predict each answer token (B, A, D), and the memory that they were computed with."""
        parts = [batch.prefix, batch.prompt, batch.answer]
        lower, positions, states = self._run_lower(batch, parts)
        memory = self._compress(batch, encoded, lower, states, labels)
        if isinstance(memory, KeyValueMemory):
            return self._rows_after_shared(batch, KeptCache(memory.layers, memory.slots)), memory
        upper, states, positions = self._assemble(parts, memory, lower, states, positions)
        states = self.decoder.run(states, range(self.compressor.layer, len(self.decoder)), positions)
        return self._predicting(states, upper.columns_of(3)), memory

    def _rows_after_shared(self, batch: Batch, shared: SharedKeys) -> Tensor:
        """As `_rows`, from the keys and values of [prefix ; memory]."""
        parts = [batch.prefix, batch.prompt, batch.answer]
        lower, positions, states = self._run_lower(batch, parts)
        upper, states, positions = self._assemble_after_shared(parts, shared, lower, states, positions)
        states = self.decoder.run(
            states,
            range(self.compressor.layer, len(self.decoder)),
            positions,
            shared.key_mask(upper.mask),
            ReadOnlyCache(LazyLayers(len(self.decoder), shared.by_row)),
        )
        return self._predicting(states, upper.columns_of(1))

    def _predicting(self, states: Tensor, answer_columns: Tensor) -> Tensor:
        """Normed states (B, A, D), of the states (B, S, D), that predict the answer tokens in columns (B, A)."""
        # The row before an answer token predicts it. Where neither prefix, memory nor prompt holds a token, zeros do.
        rows_BAD = take_columns(states, (answer_columns - 1).clamp(min=0))
        rows_BAD = rows_BAD.masked_fill((answer_columns == 0)[..., None], 0)
        return self.decoder.norm(rows_BAD)

    def _decode(self, batch: Batch, state: DecodingState, logits: Tensor, generation: Generation) -> list[Decoded]:
        ids, ends = [example.id for example in batch.examples], self.decoder.end_ids
        step, keep, all_steps = state.step, state.keep_rows, self.all_steps
        with phase("decode"):
            return decode_batch(logits, step, generation, self.tokenizer, all_steps, ends, ids, keep)


def _first_token(logits_BV: Tensor, ids_BA: Tensor) -> tuple[Tensor, Tensor]:
    """As `nll_and_hits` of the first answer tokens, (B, 1) or (B, 0), from the logits of decoding's first step."""
    logits_BV, ids_B1 = logits_BV.float(), ids_BA[:, :1]
    nll_B1 = logits_BV.logsumexp(1, keepdim=True) - logits_BV.gather(1, ids_B1)
    return nll_B1, logits_BV.argmax(1, keepdim=True) == ids_B1


def _loss_output(batch: Batch, measured: Sequence[Tensor], slots: Tensor) -> LossOutput:
    """The output in evaluation. measured: `nll_and_hits` of each answer token, (B, A) each; slots (B,)."""
    nll_BA = measured[0].masked_fill(~batch.answer.mask, 0)
    hits_BA = measured[1] & batch.answer.mask
    return LossOutput(
        nll_BA.sum(1), batch.answer.lengths, {}, slots, batch.context.lengths, batch.answer, nll_BA, hits_BA
    )
