"""CoMeT, collaborative memory transformer (arXiv 2602.01766): text of any length with a memory of constant size.

Shape letters: B rows, N columns, n text tokens and W supervised tokens of a chunk, D width.

    1. Prefix, context, prompt (and answer) are one running text, cut into chunks              chunking.py, batching.py
    2. A compression token follows every `stride` text tokens; readout tokens end a chunk      layout.py
    3. Every layer attends to its memory slots before the chunk and updates them at its end    layers.py, memory.py
    4. Head and loss of the positions that predict a supervised token, in chunks of rows (breviary/backbones/head.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from breviary.backbones.attention import BLOCKWISE
from breviary.backbones.head import token_nll
from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Batch, Decoded, Footprint, Generation, LossOutput, Reader
from breviary.decoding.loop import decode_batch
from breviary.memory.assembly import Layout, take_columns, token_index
from breviary.objectives.answer import Answer
from breviary.readers.chunked import ChunkedReader
from breviary.runtime.timing import phase
from breviary.training.pipeline import PipelineGroup
from comet.batching import ChunkedBatch, Chunker
from comet.checks import SUPERVISED, check_settings
from comet.chunked_text import Chunk, ChunkedText, Step, join_parts
from comet.chunking import ChunkPlanner
from comet.inference.context_cache import StreamCache
from comet.inference.session import Session, hash_session_weights
from comet.inference.stream import Stream
from comet.layers import MemoryLayers
from comet.layout import TEXT, chunk_layout, compression_token_count
from comet.memory import MemoryState, at_least_float32
from comet.pipeline.chunk_pipeline import ChunkPipeline
from comet.pipeline.cost import training_cost
from comet.pipeline.schedule import SCHEDULES
from comet.pipeline.transfer import LocalTransport, PipelineTransport

# Of the published norms: the global one leaves eps to PyTorch's default, the queue's has 1e-12.
PUBLISHED_EPS = torch.finfo(torch.float32).eps, 1e-12


class Comet(ChunkedReader, Reader):
    """A decoder whose layers each have a memory of constant size of the whole text so far.

    chunk_size       text tokens of a chunk (c)
    stride           text tokens per compression token (s), which becomes a slot of the queue
    global_slots     readout tokens, and slots of the gated global memory (G); 0 = none
    queue_budget     slots of the FIFO queue (B); 0 = none, and no compression tokens
    adapter_rank, adapter_init  of the residual low-rank adapters; normal (published) | zero: the identity at first
    gate, gate_bias  false = new readouts replace old ones; constant on the gate's logit
    eps              of both memory norms
    backend          kv_prefix: memory as keys and values | scatter: slots in the sequence (published); equal numbers
    strategy         how training cuts texts, see chunking.py; evaluation uses full chunks, the remainder last
    most_chunks, smallest_chunk, widest_stride  see ChunkPlanner
    supervise        answer: the answer and its end token | text: every token
    truncate_every   gradients end at every k-th chunk of a text; null = they pass through all chunks
    memory_rate      learning rate of the memory networks (norms, gates, adapters) relative to all other weights, which
                     include the rows of new tokens (published: 5)
    new_token_logits  logits behind the backbone's vocabulary: the published head has rows for the new tokens. They are
                      never decoded; with quirks they count in the loss
    quirks           the published numerics: eps of the norms is float32's machine epsilon (global) and 1e-12 (queue),
                     and new_token_logits

    decoder.train selects the trained weights of the backbone: full (as published), lora, or frozen (memory alone).
    Cost: time linear in the length; memory (G + B) D numbers per layer, and keys and values of one chunk.
    Deviations: README.md of this folder.
    """

    schedules, supervises_context = SCHEDULES, True
    training_cost = staticmethod(training_cost)  # of the estimate of a run
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
        planner = ChunkPlanner(chunk_size, stride, strategy, most_chunks, smallest_chunk, widest_stride)
        self.chunker = Chunker(planner, tokenizer, supervise, global_slots, queue_budget)
        self.pipeline: ChunkPipeline | None = None  # set by `join_pipeline`
        if decoder.config._attn_implementation == "sdpa":
            decoder.config._attn_implementation = BLOCKWISE

    # -------------------------------------------------------------- the contract

    def loss(self, batch: Batch) -> LossOutput:
        """Negative log likelihood of the supervised tokens; in training also the objective's auxiliary losses."""
        main = self.objective.primary(batch)
        with self.decoder.mixed_precision():
            chunked = self.chunk_batch(main)
            use_cache = self.context_cache is not None and not self.training and self.supervise == "answer"
            nll_B = self._nll_from_cached_contexts(main) if use_cache else self.nll(chunked.text)
            parts = {}
            for name, (weight, other) in (self.objective.auxiliary(batch) if self.training else {}).items():
                chunked_other = self.chunk_batch(other)
                nll = self.nll(chunked_other.text).sum()
                parts[name] = (weight * nll, self._count_once(chunked_other.supervised_B.sum()))
        tokens_B, slots_B, context_B = map(
            self._count_once, (chunked.supervised_B, chunked.slots_B, main.context.lengths)
        )
        return LossOutput(nll_B, tokens_B, parts, slots_B, context_B)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Supervised tokens; in a pipeline on one rank only."""
        counts = {"answer": self.chunker.count_supervised(self.objective.primary(batch), self.training)}
        auxiliary = self.objective.auxiliary(batch) if self.training else {}
        counts |= {name: self.chunker.count_supervised(other, self.training) for name, (_, other) in auxiliary.items()}
        return {name: self._count_once(count) for name, count in counts.items()}

    @torch.no_grad()
    def decode(self, batch: Batch, generation: Generation) -> list[Decoded]:
        """Greedy or sampled answers. Decoding starts new chunks as reading does, so memory stays constant."""
        main = self.objective.primary(batch)
        decoded: dict[int, Decoded] = {}  # by row
        with self.decoder.mixed_precision():
            for rows, stream in self._encoded_contexts(main):
                part = main.rows(rows)
                prompt, ids = part.prompt, [example.id for example in part.examples]
                with phase("prefill"):
                    logits = stream.read(join_parts([prompt])[1], prompt.lengths)
                if logits is None:  # no row has a token: as in rows without tokens beside others
                    logits = self.decoder.embed_tokens.weight.new_zeros(len(rows), self.decoder.config.vocab_size)
                with phase("decode"):
                    answers = decode_batch(
                        logits,
                        stream.step,
                        generation,
                        self.tokenizer,
                        False,
                        self.decoder.end_ids,
                        ids,
                        stream.keep_rows,
                    )
                decoded |= zip(rows, answers)
        return [decoded[row] for row in range(len(main))]

    @torch.no_grad()
    def footprint(self, batch: Batch) -> Footprint:
        """Slots that the answer attends to: memory slots, and context tokens of the open chunk."""
        return self.footprint_from_slots(batch, self.chunk_batch(self.objective.primary(batch)).slots_B)

    def footprint_from_slots(self, batch: Batch, slots: Tensor) -> Footprint:
        """The footprint for a known number of slots (B,)."""
        per_slot = self.decoder.key_value_bytes(len(self.decoder))
        main = self.objective.primary(batch)
        return Footprint(main.context.lengths, slots, slots * per_slot, None, self.document_bytes(main))

    def begin_step(self, step: int, seed: int) -> None:
        """Selects the random chunk plans and strides of this step."""
        self.chunker.begin_step(step, seed)
        self.objective.begin_step(step, seed)

    def join_pipeline(self, rank: PipelineGroup, schedule: str) -> None:
        """As in ChunkedReader; schedules distribute contiguous or cyclic chunks of every text, see comet.pipeline."""
        transport = PipelineTransport(rank) if rank.ranks > 1 else LocalTransport()
        self.pipeline = ChunkPipeline(transport, schedule, rank.reports_counts)

    @property
    def learning_rate_factors(self) -> dict[str, float]:
        """The factor of the memory networks. Rows of new tokens have the backbone's rate, as published."""
        return {"memory.layers.": self.memory_rate}

    def open(self, **settings: Any) -> Session:
        """A session for one text, see Session."""
        return Session(self.eval(), **settings)

    def encode_contexts(self, batch: Batch) -> list[Session]:
        """For each row a session that has read prefix and context."""
        sessions = [self.open() for _ in range(len(batch))]
        for row, session in enumerate(sessions):
            for part in (batch.prefix, batch.context):
                session.read(part.ids[row][part.mask[row]].tolist())
        return sessions

    def hash_weights(self) -> str:
        """As `session.hash_session_weights`."""
        return hash_session_weights(self)

    def load_saved(self, file: str | Path) -> Session:
        """As Session.load."""
        return Session.load(self, file)

    # -------------------------------------------------------------- texts

    def chunk_batch(self, batch: Batch) -> ChunkedBatch:
        """The batch as chunked text, planned for training or evaluation."""
        return self.chunker.chunk_batch(batch, self.training)

    def pack_texts(self, ids: Tensor, lengths: Sequence[Sequence[int]], shared: bool = False) -> ChunkedText:
        """Rows of several texts, as in Chunker."""
        return self.chunker.pack_texts(ids, lengths, self.training, shared)

    def nll(self, text: ChunkedText) -> Tensor:
        """Negative log likelihood of the supervised tokens in nats, (num_nlls,) float32 or wider.

        In a pipeline the share of this process's chunks: the ranks' shares, and their gradients, sum to the whole.
        """
        nll = self._zero_loss().expand(len(text.ids) if text.num_nlls is None else text.num_nlls)
        if self._active_pipeline is not None:
            return self._active_pipeline.nll(self, text, nll)
        for (step, layout, states), max_supervised in zip(self.forward_chunks(text), text.max_supervised()):
            if max_supervised:
                nll = text.add_nll(nll, step, self.chunk_nll(text, step, layout, states, max_supervised))
        return nll

    def chunk_nll(self, text: ChunkedText, step: Step, layout: Layout, states: Tensor, max_supervised: int) -> Tensor:
        """Nats of the supervised tokens in one chunk of each row, (B,), from its last hidden states (B, N, D).

        max_supervised  W, the largest number of supervised tokens in a row
        """
        columns_Bn, mask_Bn = text.columns_of(step)
        supervised_Bn = text.supervised.gather(1, columns_Bn) & mask_Bn
        order_BW = (~supervised_Bn).to(torch.uint8).argsort(dim=1, stable=True)[:, :max_supervised]
        targets_BW = text.ids.gather(1, (columns_Bn.gather(1, order_BW) + 1).clamp(max=text.ids.shape[1] - 1))
        states_BWD = take_columns(states, layout.columns_of(TEXT).gather(1, order_BW))
        nll_BW = self._token_nll(states_BWD, targets_BW)
        return nll_BW.masked_fill(~supervised_Bn.gather(1, order_BW), 0).sum(1)

    def forward_chunks(self, text: ChunkedText) -> Iterator[tuple[Step, Layout, Tensor]]:
        """Runs a text chunk by chunk: each step with its layout and last hidden states (B, N, D)."""
        memory = MemoryState.empty(len(text.ids), text.ids.device)
        for chunk in self.prepare_chunks(text):
            memory = chunk.initial_memory(memory)
            embeds = self.embed_chunk(text, chunk)
            states, memory, _ = self.memory.run(self.decoder, embeds, chunk.layout, memory, chunk.updates)
            yield chunk.step, chunk.layout, states

    def prepare_chunks(self, text: ChunkedText) -> Iterator[Chunk]:
        """The chunks of a text, with their columns, masks and layouts."""
        device, every = text.ids.device, self.truncate_every
        strides = torch.tensor(text.strides, device=device)
        for number, step in enumerate(text.steps):
            is_first, updates = (torch.tensor(flags, device=device) for flags in (step.is_first, step.updates))
            columns, mask = text.columns_of(step)
            no_tokens = [0] * len(step.sizes)
            compression = max(map(compression_token_count, no_tokens, step.sizes, step.updates, text.strides))
            layout = chunk_layout(
                mask,
                torch.zeros_like(strides),
                updates,
                strides,
                compression if self.memory.queue_budget else 0,
                self.memory.global_slots if any(step.updates) else 0,
            )
            detaches = torch.tensor([i % every == 0 for i in step.chunk_index], device=device) if every else None
            yield Chunk(
                step,
                layout,
                columns,
                mask,
                is_first if number and any(step.is_first) else None,
                updates if any(step.updates) else None,
                detaches,
            )

    def embed_chunk(self, text: ChunkedText, chunk: Chunk) -> Tensor:
        """Hidden states before the first layer, (B, N, D)."""
        embeds = self.decoder.embed(text.ids.gather(1, chunk.columns).masked_fill(~chunk.mask, 0))
        return self.memory.embed(embeds, chunk.layout)

    def _token_nll(self, states_BWD: Tensor, targets_BW: Tensor) -> Tensor:
        """Nats of each target (B, W), from the last hidden states at the previous token (B, W, D)."""
        new_tokens = [self.memory.new_token_head] if self.quirks and self.memory.new_token_head is not None else []
        return token_nll(self.decoder.lm_head, self.decoder.norm(states_BWD), targets_BW, *new_tokens)

    def _encoded_contexts(self, batch: Batch) -> list[tuple[list[int], Stream]]:
        """Row indices, each group with a stream that has read their prefixes and contexts; as StreamCache.streams."""
        with phase("prefill"):  # copying streams of the cache; what it reads counts as "read"
            return (self.context_cache or StreamCache(len(batch))).streams(self, batch)

    @torch.no_grad()
    def _nll_from_cached_contexts(self, batch: Batch) -> Tensor:
        """As `nll` of the answers, (B,), with each distinct context encoded once."""
        nll_B = at_least_float32(torch.zeros(len(batch), dtype=self.decoder.dtype, device=batch.answer.ids.device))
        for rows, stream in self._encoded_contexts(batch):
            part = batch.rows(rows)
            layout, ids = join_parts([part.prompt, part.answer])
            states = stream.read_shifted(ids, part.prompt.lengths + part.answer.lengths)
            states_BAD = take_columns(states, layout.columns_of(1))
            earlier_B = part.prefix.lengths + part.context.lengths + part.prompt.lengths
            # As in `nll`, a text's first token is predicted by nothing.
            is_predicted_BA = part.answer.mask & ((earlier_B > 0)[:, None] | (token_index(part.answer.mask) > 0))
            nll_BA = self._token_nll(states_BAD, part.answer.ids).masked_fill(~is_predicted_BA, 0)
            nll_B[rows] = nll_BA.sum(1)
        return nll_B

    def _zero_loss(self) -> Tensor:
        """Zero, (1,), whose gradient is zero for weights that the batch may not use: DDP and ZeRO wait for each weight.

        Short texts do not use the memory; a process of a pipeline without a chunk uses no weight.
        """
        if not self.training:
            return torch.zeros(1, device=self.memory.tokens.weight.device)
        weights = self.memory.parameters() if self._active_pipeline is None else self.parameters()
        return sum(weight.flatten()[:1].float() * 0 for weight in weights if weight.requires_grad)

    @property
    def _active_pipeline(self) -> ChunkPipeline | None:
        """The pipeline in training, where its processes have the same batch; None otherwise."""
        return self.pipeline if self.training else None

    def _count_once(self, count: Tensor) -> Tensor:
        """A count of the batch; 0 on all ranks of a pipeline but one."""
        pipeline = self._active_pipeline
        return count if pipeline is None or pipeline.reports_counts else count * 0

    # -------------------------------------------------------------- checks

    @classmethod
    def problems(cls, settings: Mapping[str, Any], backbone: Any) -> list[str]:
        """As comet.checks.check_settings."""
        return check_settings(settings, backbone)

    @classmethod
    def longest_context(cls, settings: Mapping[str, Any], positions: int, others: int) -> int | None:
        """None: positions bound the layout of a chunk, not the length of the text."""
        return None
