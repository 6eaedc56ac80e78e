"""From batches of token ids to chunked texts: chunk sizes, strides, rows, supervised tokens, memory slots.

Shape letters: B examples, N tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from breviary.contract import Batch
from breviary.memory.assembly import Layout
from comet.chunked_text import ChunkedText, align_steps, join_parts, pack_rows, supervise_all, supervise_answer
from comet.chunking import BOUNDARIES, ChunkPlanner, fixed


class ChunkedBatch(NamedTuple):
    """A batch as chunked text.

    text          with one negative log likelihood per example
    supervised_B  (B,) int64, supervised tokens
    slots_B       (B,) int64, slots that the answer attends to: see `Chunker.answer_slots`
    """

    text: ChunkedText
    supervised_B: Tensor
    slots_B: Tensor


class Chunker:
    """Cuts batches into chunks: in training by `planner`, in evaluation into full chunks with the remainder last.

    Random plans and strides depend on seed, step and example id alone.

    supervise  answer: the answer and its end token, in training of a chat all messages of the assistant | text: every
               token
    """

    def __init__(self, planner: ChunkPlanner, tokenizer: Any, supervise: str, global_slots: int, queue_budget: int):
        self.planner, self.supervise = planner, supervise
        self.global_slots, self.queue_budget = global_slots, queue_budget
        self._boundary_ids = torch.tensor(_single_tokens(tokenizer, BOUNDARIES), dtype=torch.int64)
        self._step_seed = "none"

    def begin_step(self, step: int, seed: int) -> None:
        """Random plans and strides of the following batches depend on `seed` and `step`."""
        self._step_seed = f"{seed}-{step}"

    def chunk_batch(self, batch: Batch, training: bool) -> ChunkedBatch:
        """Prefix, context, prompt and answer of each example as one text, in chunks."""
        parts = [batch.prefix, batch.context, batch.prompt, batch.answer]
        layout, ids = join_parts(parts)
        supervised = self._supervised(batch, layout, training)
        lengths = torch.stack([part.lengths for part in parts], 1).tolist()
        names = [example.id for example in batch.examples]
        plans = [self._plan(row, sum(n), name, training) for row, n, name in zip(ids, lengths, names)]
        strides = [
            self.planner.sample_stride(f"{self._step_seed}-{name}") if training else self.planner.stride
            for name in names
        ]
        slots = [self.answer_slots(plan, stride, *n[:3]) for plan, stride, n in zip(plans, strides, lengths)]
        text = _pack_into_rows(ids, supervised, plans, strides)
        return ChunkedBatch(text, supervised.sum(1), torch.tensor(slots, device=ids.device))

    def count_supervised(self, batch: Batch, training: bool) -> Tensor:
        """Number of supervised tokens of the batch, scalar int64."""
        layout, _ = join_parts([batch.prefix, batch.context, batch.prompt, batch.answer])
        return self._supervised(batch, layout, training).sum()

    def pack_texts(
        self, ids: Tensor, lengths: Sequence[Sequence[int]], training: bool, shared: bool = False
    ) -> ChunkedText:
        """Rows of several texts, with every token but each text's first supervised.

        ids      (B, N) right-padded
        lengths  of the texts of each row
        shared   False: every text has a memory of its own and equals the text alone; True: a row is one text, whose
                 memory and attention cross the borders (as published)
        """
        texts = [[sum(row)] for row in lengths] if shared else lengths
        plans = [
            [self._plan(ids[b], length, f"{b}-{i}", training) for i, length in enumerate(row)]
            for b, row in enumerate(texts)
        ]
        supervised = torch.zeros_like(ids, dtype=torch.bool)
        for b, row in enumerate(lengths):
            ends = torch.tensor(row).cumsum(0)
            supervised[b, : ends[-1] - 1] = True
            supervised[b, ends[:-1] - 1] = False
        return ChunkedText(ids, supervised, align_steps(plans), [self.planner.stride] * len(ids))

    def answer_slots(self, plan: list[int], stride: int, prefix: int, context: int, prompt: int) -> int:
        """Memory slots of the chunk in which the prompt ends, plus its context tokens; 0 without a context."""
        start, queue = 0, 0
        if not context:
            return 0
        for number, size in enumerate(plan):
            if start + size >= prefix + context + prompt:
                tokens = max(min(prefix + context, start + size) - max(prefix, start), 0)
                return tokens + min(queue, self.queue_budget) + (self.global_slots if number else 0)
            start, queue = start + size, queue - -size // stride
        return 0

    def _supervised(self, batch: Batch, layout: Layout, training: bool) -> Tensor:
        return supervise_all(layout) if self.supervise == "text" else supervise_answer(batch, layout, training)

    def _plan(self, ids: Tensor, tokens: int, name: str, training: bool) -> list[int]:
        """Chunk sizes of the first `tokens` ids of a row (N,)."""
        if not training:
            return fixed(tokens, self.planner.chunk_size)
        boundaries: list[int] = []
        if self.planner.strategy in ("semantic", "mixture"):
            is_boundary = torch.isin(ids[:tokens], self._boundary_ids.to(ids.device))
            boundaries = (is_boundary.nonzero()[:, 0] + 1).tolist()
        return self.planner.plan(tokens, boundaries, f"{self._step_seed}-{name}")


def _pack_into_rows(ids: Tensor, supervised: Tensor, plans: list[list[int]], strides: list[int]) -> ChunkedText:
    """Texts (B, N) packed into rows: the same negative log likelihood for each text, with fewer idle rows."""
    rows = pack_rows([len(plan) for plan in plans], strides)
    ids, supervised = (
        pad_sequence([torch.cat([x[b, : sum(plans[b])] for b in row]) for row in rows], batch_first=True)
        for x in (ids, supervised)
    )
    steps = align_steps([[plans[b] for b in row] for row in rows], rows)
    return ChunkedText(ids, supervised, steps, [strides[row[0]] for row in rows], len(plans))


def _single_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Ids of the texts that are a single token."""
    ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return [one[0] for one in ids if len(one) == 1]
