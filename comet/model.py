"""CoMeT, collaborative memory transformer (arXiv 2602.01766): any text in chunks, a memory of constant size beside it.

Shape letters: B rows, N tokens of a text, n text tokens of a chunk, W supervised places of a chunk, D width, V vocabulary.

    1. Prefix, context, prompt (and answer) are one running text, cut into chunks                          plan.py, text.py
    2. In a chunk a compression token follows every `stride` text tokens, readout tokens close it          layout.py
    3. Every layer seats its memory before the chunk, and takes in what those tokens became                layers.py, memory.py
    4. Head on the rows that predict a supervised token
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from breviary.backbones.attention import BLOCKWISE
from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Batch, Decoded, Footprint, Generation, LossOutput, Reader
from breviary.decoding.loop import decode_batch
from breviary.memory.assembly import Layout, take_columns
from breviary.objectives.answer import Answer, token_nll
from breviary.readers.chunked import ChunkedReader
from breviary.runtime.timing import phase
from breviary.training.pipeline import PipelineGroup
from comet.checks import SUPERVISED, check_settings
from comet.inference.context_cache import StreamCache
from comet.pipeline.transfer import Handoff, PipelineHandoff
from comet.layers import MemoryLayers
from comet.layout import TEXT, beacon_count, chunk_layout
from comet.memory import MemoryState, wide
from comet.pipeline.chunk_pipeline import Pipeline
from comet.chunking import BOUNDARIES, ChunkPlanner, fixed
from comet.pipeline.schedule import SCHEDULES
from comet.inference.session import Session
from comet.inference.stream import Stream
from comet.text import Chunk, Step, Text, answer_asked, every_asked, joined, shared_rows, steps_of

PUBLISHED_EPS = (
    torch.finfo(torch.float32).eps,
    1e-12,
)  # of the global norm, which has none in its configuration; the queue's


class Comet(ChunkedReader, Reader):
    """A decoder whose layers each keep a memory of constant size of all that was read.

    chunk_size       text tokens of a chunk (c)
    stride           text tokens for each compression token (s); it enters the queue
    global_slots     readout tokens, and slots of the gated global memory (G); 0 = none
    queue_budget     slots of the FIFO queue (B); 0 = none, and no compression tokens
    adapter_rank, adapter_init  of the residual low-rank adapters; normal (published) | zero: the identity at first
    gate, gate_bias  false = new readouts replace old ones; a constant on the gate's logit
    eps              of both memory norms
    backend          kv_prefix: memory as keys and values only | scatter: as published, seats in the sequence; equal numbers
    strategy         how training cuts texts, see plan.py; evaluation cuts full chunks, the rest last
    most_chunks, smallest_chunk, widest_stride  of drawn plans, see ChunkPlanner
    supervise        answer: the answer and its end token | text: every token
    truncate_every   gradients end at every k-th chunk of a text; null = they reach all chunks
    memory_rate      learning rate of the memory's weights by that of the others (published: 5)
    new_token_logits  logits behind the backbone's vocabulary: the published head has rows for the new tokens. They are never
                     answers; with quirks they count in the loss
    quirks           the published numerics: norms' eps float32's machine epsilon (global) and 1e-12 (temporary), and
                     new_token_logits

    Which weights of the backbone are trained is decoder.train: full (as published), lora, or frozen (memory alone).
    Cost: linear in the text; kept while reading: (G + B) D numbers a layer, and one chunk's keys and values.
    Deviations: README.md of this folder.
    """

    schedules = SCHEDULES
    context_cache_class = StreamCache

    def __init__(
        self,
        backbone: Backbone | TinyBackbone,
        decoder: Stack,
        objective: Answer,
        tokenizer: Any,
        *,
        chunk_size: int = 2048,
        stride: int = 8,
        global_slots: int = 512,
        queue_budget: int = 2048,
        adapter_rank: int = 8,
        adapter_init: str = "normal",
        gate: bool = True,
        gate_bias: float = 0.0,
        eps: float = 1e-6,
        backend: str = "kv_prefix",
        strategy: str = "mixture",
        most_chunks: int = 16,
        smallest_chunk: int = 4,
        widest_stride: int | None = None,
        supervise: str = "answer",
        truncate_every: int | None = None,
        memory_rate: float = 5.0,
        new_token_logits: int = 0,
        quirks: bool = False,
    ):
        super().__init__()
        assert supervise in SUPERVISED, supervise
        self.decoder, self.objective, self.tokenizer = decoder, objective, tokenizer
        self.chunk_size, self.stride, self.supervise, self.memory_rate = chunk_size, stride, supervise, memory_rate
        self.truncate_every, self.quirks = truncate_every, quirks
        self.fingerprint = backbone.fingerprint
        self.memory = MemoryLayers(
            decoder,
            global_slots,
            queue_budget,
            backend,
            new_token_logits,
            rank=adapter_rank,
            gated=gate,
            gate_bias=gate_bias,
            adapter_init=adapter_init,
            eps=PUBLISHED_EPS if quirks else (eps, eps),
        )
        self.planner = ChunkPlanner(chunk_size, stride, strategy, most_chunks, smallest_chunk, widest_stride)
        self._boundary_ids = torch.tensor(_single_tokens(tokenizer, BOUNDARIES), dtype=torch.int64)
        self._drawn = "none"
        self.pipeline: Pipeline | None = None  # set by `join_pipeline`
        if decoder.config._attn_implementation == "sdpa":
            decoder.config._attn_implementation = BLOCKWISE

    # -------------------------------------------------------------- the contract

    def loss(self, batch: Batch) -> LossOutput:
        """Negative log likelihood of what is supervised, and in training of what else the objective asks."""
        main = self.objective.primary(batch)
        with self.decoder.mixed_precision():
            text, tokens_B, slots_B = self._text(main)
            kept = self.context_cache is not None and not self.training and self.supervise == "answer"
            nll_B = self._nll_of_answers(main) if kept else self.nll(text)
            parts = {}
            for name, (weight, other) in (self.objective.auxiliary(batch) if self.training else {}).items():
                parts[name] = (weight * self.nll(self._text(other)[0]).sum(), self._once(other.answer.mask.sum()))
        return LossOutput(nll_B, self._once(tokens_B), parts, self._once(slots_B), self._once(main.context.lengths))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Supervised tokens; of a pipeline's batch once."""
        main = self.objective.primary(batch)
        layout, _ = joined([main.prefix, main.context, main.prompt, main.answer])
        asked = every_asked(layout) if self.supervise == "text" else answer_asked(main, layout)
        others = self.objective.auxiliary(batch) if self.training else {}
        found = {"answer": asked.sum(), **{name: other.answer.mask.sum() for name, (_, other) in others.items()}}
        return {name: self._once(count) for name, count in found.items()}

    @torch.no_grad()
    def decode(self, batch: Batch, generation: Generation) -> list[Decoded]:
        """Greedy or sampled answers; reading and decoding go on in chunks, so memory never grows."""
        main = self.objective.primary(batch)
        with self.decoder.mixed_precision():
            found: list[Decoded | None] = [None] * len(main)
            for rows, stream in self._read(main):
                prompt = main.rows(rows).prompt
                with phase("prefill"):
                    logits = stream.read(joined([prompt])[1], prompt.lengths)
                with phase("decode"):
                    written = decode_batch(logits, stream.step, generation, self.tokenizer, False, self.decoder.end_ids)
                for row, one in zip(rows, written):
                    found[row] = one
            return found

    @torch.no_grad()
    def footprint(self, batch: Batch) -> Footprint:
        """Slots that the answer is read from: memory seats, and context tokens of the chunk that is still open."""
        return self.footprint_from_slots(batch, self._text(self.objective.primary(batch))[2])

    def footprint_from_slots(self, batch: Batch, slots: Tensor) -> Footprint:
        """The footprint for a known number of slots (B,)."""
        per_slot = self.decoder.key_value_bytes(len(self.decoder))
        return Footprint(self.objective.primary(batch).context.lengths, slots, slots * per_slot, None)

    def begin_step(self, step: int, seed: int) -> None:
        """Other chunks each step."""
        self._drawn = f"{seed}-{step}"
        self.objective.begin_step(step, seed)

    def join_pipeline(self, place: PipelineGroup, schedule: str) -> None:
        """As Reader's, for contiguous or cyclic chunks of every text; see comet.pipeline."""
        self.pipeline = Pipeline(PipelineHandoff(place) if place.ranks > 1 else Handoff(), schedule, place.reports_counts)

    @property
    def learning_rate_factors(self) -> dict[str, float]:
        """The memory learns faster."""
        return {"memory.": self.memory_rate}

    def open(self, **settings: Any) -> Session:
        """A text to be read piece by piece, asked about and written on; see Session."""
        return Session(self.eval(), **settings)

    def encode_contexts(self, batch: Batch) -> list[Session]:
        """A session for each row that read prefix and context."""
        sessions = [self.open() for _ in range(len(batch))]
        for row, session in enumerate(sessions):
            for part in (batch.prefix, batch.context):
                session.read(part.ids[row][part.mask[row]].tolist())
        return sessions

    def load_saved(self, file: str | Path) -> Session:
        """As Session.load."""
        return Session.load(self, file)

    # -------------------------------------------------------------- reading

    def _read(self, batch: Batch) -> list[tuple[list[int], Stream]]:
        """Rows of the batch with a stream that has read their prefixes and contexts; as StreamCache.opened."""
        with phase("encode"):
            return (self.context_cache or StreamCache(len(batch))).opened(self, batch)

    @torch.no_grad()
    def _nll_of_answers(self, batch: Batch) -> Tensor:
        """As `nll` of answers, (B,), but that each distinct context is read once."""
        nll_B = wide(torch.zeros(len(batch), dtype=self.decoder.dtype, device=batch.answer.ids.device))
        for rows, stream in self._read(batch):
            part = batch.rows(rows)
            layout, ids = joined([part.prompt, part.answer])
            states = stream.predicting(ids, part.prompt.lengths + part.answer.lengths)
            states_BAD = take_columns(states, layout.columns_of(1))
            nll_BA = self._token_nll(states_BAD, part.answer.ids).masked_fill(~part.answer.mask, 0)
            nll_B[rows] = nll_BA.sum(1)
        return nll_B

    def nll(self, text: Text) -> Tensor:
        """Nats spent on what is asked, a number for each of the text's sums, float32; logits of those places only. In a pipeline
        the share of the chunks that this process reads: the ranks' shares sum to it, and so do their gradients."""
        nll_B = self._untouched().expand(len(text.ids) if text.sums is None else text.sums)
        if self._split:
            return self.pipeline.nll(self, text, nll_B)
        for (step, layout, states), width in zip(self.chunks(text), text.asked_in()):
            if width:
                nll_B = text.added(nll_B, step, self.spent(text, step, layout, states, width))
        return nll_B

    def spent(self, text: Text, step: Step, layout: Layout, states: Tensor, width: int) -> Tensor:
        """Nats spent on what is asked in one chunk of each row, (B,), from its stream (B, N, D); no row has more than `width`
        such places."""
        columns_Bn, real_Bn = text.column(step)
        asked_Bn = text.asked.gather(1, columns_Bn) & real_Bn
        order_BW = (~asked_Bn).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        targets_BW = text.ids.gather(1, (columns_Bn.gather(1, order_BW) + 1).clamp(max=text.ids.shape[1] - 1))
        nll_BW = self._token_nll(take_columns(states, layout.columns_of(TEXT).gather(1, order_BW)), targets_BW)
        return nll_BW.masked_fill(~asked_Bn.gather(1, order_BW), 0).sum(1)

    def _token_nll(self, states_BWD: Tensor, targets_BW: Tensor) -> Tensor:
        """Nats of each target (B, W), from the stream at the token before it (B, W, D)."""
        rows_BWD = self.decoder.norm(states_BWD)
        logits_BWV = wide(self.decoder.head(rows_BWD))
        if self.quirks and self.memory.new_token_head is not None:
            logits_BWV = torch.cat([logits_BWV, wide(self.memory.new_token_head(rows_BWD))], -1)
        return token_nll(logits_BWV, targets_BW)

    def chunks(self, text: Text) -> Iterator[tuple[Step, Layout, Tensor]]:
        """Reads a text chunk by chunk: each step with its layout and the stream after the last layer (B, N, D)."""
        memory = MemoryState.fresh(len(text.ids), text.ids.device)
        for chunk in self.laid_out(text):
            memory = chunk.entered(memory)
            states, memory, _ = self.memory.run(
                self.decoder, self.embeds(text, chunk), chunk.layout, memory, chunk.closes
            )
            yield chunk.step, chunk.layout, states

    def laid_out(self, text: Text) -> Iterator[Chunk]:
        """The chunks of a text as they will be read; nothing is computed but columns and masks."""
        device, G = text.ids.device, self.memory.global_slots
        strides = torch.tensor(text.strides, device=device)
        for number, step in enumerate(text.steps):
            begins, closes = (torch.tensor(flags, device=device) for flags in (step.begins, step.closes))
            columns, real = text.column(step)
            beacons = max(map(beacon_count, [0] * len(step.sizes), step.sizes, step.closes, text.strides))
            layout = chunk_layout(
                real,
                torch.zeros_like(strides),
                closes,
                strides,
                beacons if self.memory.queue_budget else 0,
                G if any(step.closes) else 0,
            )
            every = self.truncate_every
            cut = torch.tensor([i % every == 0 for i in step.chunk], device=device) if every else None
            yield Chunk(
                step,
                layout,
                columns,
                real,
                begins if number and any(step.begins) else None,
                closes if any(step.closes) else None,
                cut,
            )

    def embeds(self, text: Text, chunk: Chunk) -> Tensor:
        """The stream before the first layer, (B, N, D)."""
        words = self.decoder.embed(text.ids.gather(1, chunk.columns).masked_fill(~chunk.real, 0))
        return self.memory.embeds(words, chunk.layout)

    def packed(self, ids: Tensor, lengths: Sequence[Sequence[int]], shared: bool = False) -> Text:
        """Several texts a row, every token but each text's first supervised.

        ids (B, N) right-padded; lengths of the texts of each row. Each text has a memory of its own, exactly as if read
        alone; shared = a row is one text, whose memory and attention cross the borders (as published).
        """
        texts = [[sum(row)] for row in lengths] if shared else lengths
        plans = [
            [self._plan(ids[b], length, f"{b}-{i}") for i, length in enumerate(row)] for b, row in enumerate(texts)
        ]
        asked = torch.zeros_like(ids, dtype=torch.bool)
        for b, row in enumerate(lengths):
            ends = torch.tensor(row).cumsum(0)
            asked[b, : ends[-1] - 1] = True
            asked[b, ends[:-1] - 1] = False
        return Text(ids, asked, steps_of(plans), [self.stride] * len(ids))

    def _text(self, batch: Batch) -> tuple[Text, Tensor, Tensor]:
        """The batch as text; supervised tokens (B,); slots that each answer is read from (B,)."""
        parts = [batch.prefix, batch.context, batch.prompt, batch.answer]
        layout, ids = joined(parts)
        asked = every_asked(layout) if self.supervise == "text" else answer_asked(batch, layout)
        lengths = torch.stack([part.lengths for part in parts], 1).tolist()
        plans = [
            self._plan(row, sum(n), example and example.id) for row, n, example in zip(ids, lengths, batch.examples)
        ]
        strides = [
            self.planner.text_stride(f"{self._drawn}-{example and example.id}") if self.training else self.stride
            for example in batch.examples
        ]
        slots = [self._slots(plan, stride, *n[:3]) for plan, stride, n in zip(plans, strides, lengths)]
        return self._in_rows(ids, asked, plans, strides), asked.sum(1), torch.tensor(slots, device=ids.device)

    def _in_rows(self, ids: Tensor, asked: Tensor, plans: list[list[int]], strides: list[int]) -> Text:
        """Texts (B, N) as rows that several may share: the same numbers, of each text apart, with fewer rows idle."""
        rows = shared_rows([len(plan) for plan in plans], strides)
        ids, asked = (
            pad_sequence([torch.cat([x[b, : sum(plans[b])] for b in row]) for row in rows], batch_first=True)
            for x in (ids, asked)
        )
        steps = steps_of([[plans[b] for b in row] for row in rows], rows)
        return Text(ids, asked, steps, [strides[row[0]] for row in rows], len(plans))

    def _plan(self, ids: Tensor, tokens: int, name: str) -> list[int]:
        """Chunk sizes of a text (N,) of so many tokens."""
        if not self.training:
            return fixed(tokens, self.chunk_size)
        boundaries: list[int] = []
        if self.planner.strategy in ("semantic", "mixture"):
            found = torch.isin(ids[:tokens], self._boundary_ids.to(ids.device))
            boundaries = (found.nonzero()[:, 0] + 1).tolist()
        return self.planner.plan(tokens, boundaries, f"{self._drawn}-{name}")

    def _slots(self, plan: list[int], stride: int, prefix: int, context: int, prompt: int) -> int:
        """Memory seats of the chunk in which the prompt ends, and context tokens in that chunk; 0 without a context."""
        start, slots = 0, 0
        if not context:
            return 0
        for number, size in enumerate(plan):
            if start + size >= prefix + context + prompt:
                here = max(min(prefix + context, start + size) - max(prefix, start), 0)
                return here + min(slots, self.memory.queue_budget) + (self.memory.global_slots if number else 0)
            start, slots = start + size, slots - -size // stride
        return 0

    def _untouched(self) -> Tensor:
        """0, with a gradient of 0 for weights that a batch of short texts, or a process without any chunk, does not use: DDP
        and ZeRO wait for each."""
        if not self.training:
            return torch.zeros(1, device=self.memory.tokens.weight.device)
        weights = self.parameters() if self._split else self.memory.parameters()
        return sum(weight.flatten()[:1].float() * 0 for weight in weights if weight.requires_grad)

    @property
    def _split(self) -> bool:
        """Whether texts are read together with other processes: in training, where these have the same batch."""
        return self.pipeline is not None and self.training

    def _once(self, count: Tensor) -> Tensor:
        """A count of the batch, 0 on all ranks of a pipeline but one."""
        return count * 0 if self._split and not self.pipeline.reports_counts else count

    # -------------------------------------------------------------- checks

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As comet.checks.check_settings."""
        return check_settings(settings, backbone)

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """Any: only a chunk's columns take positions."""
        return None


def _single_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Ids of those texts that are one token each."""
    ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return [one[0] for one in ids if len(one) == 1]
