"""Rows of running text in chunks: the order of processing and the supervised tokens (CoMeT, spec 1.2, 3.3).

Shape letters: B rows, N tokens of a row, n text tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from breviary.contract import Batch, Tokens
from breviary.memory.assembly import Layout
from comet.memory import MemoryState


@dataclass(frozen=True)
class Step:
    """One chunk of each row: lists of B plain values.

    starts       first text token
    sizes        text tokens; 0 = the row has no chunk in this step
    updates      the chunk is followed by another chunk of its text: its end updates the memory
    is_first     the chunk is the first of its text
    chunk_index  index of the chunk in its text
    nll_index    index of the negative log likelihood that the chunk counts for: that of the text where a row holds
                 several texts, else that of the row
    """

    starts: list[int]
    sizes: list[int]
    updates: list[bool]
    is_first: list[bool]
    chunk_index: list[int]
    nll_index: list[int]


@dataclass(frozen=True)
class Chunk:
    """One step with its columns and masks.

    columns, mask  (B, n) as from `ChunkedText.columns_of`
    layout         of the chunk's sequence
    resets         (B,) bool, rows where another text starts; None = no row, or the memory is empty
    updates        (B,) bool, rows whose chunk updates the memory; None = no row
    detaches       (B,) bool, rows where gradients end before the chunk; None = no row
    """

    step: Step
    layout: Layout
    columns: Tensor
    mask: Tensor
    resets: Tensor | None
    updates: Tensor | None
    detaches: Tensor | None

    def initial_memory(self, memory: MemoryState) -> MemoryState:
        """The memory that the chunk starts with, from the memory after the earlier chunks."""
        if self.resets is not None:
            memory = memory.reset_where(self.resets)
        return memory.detach_where(self.detaches) if self.detaches is not None and memory.layers else memory


@dataclass
class ChunkedText:
    """Rows of text, in chunks.

    ids         (B, N) int64, right-padded, without holes
    supervised  (B, N) bool, the next token is supervised
    steps       the chunks; rows are aligned at their ends: every row's last chunk is in the last step
    strides     text tokens per compression token, one number per row
    num_nlls    number of negative log likelihoods; None = one per row
    """

    ids: Tensor
    supervised: Tensor
    steps: list[Step]
    strides: list[int]
    num_nlls: int | None = None

    def add_nll(self, nll: Tensor, step: Step, step_nll: Tensor) -> Tensor:
        """`nll` (num_nlls,) plus the nats of one step's rows, `step_nll` (B,)."""
        index = torch.tensor(step.nll_index, device=nll.device)
        return nll.to(torch.promote_types(nll.dtype, step_nll.dtype)).index_add(0, index, step_nll)

    def columns_of(self, step: Step) -> tuple[Tensor, Tensor]:
        """Text columns of a step, (B, n) int64, and their validity, (B, n) bool."""
        device, width = self.ids.device, max(*step.sizes, 1)
        starts = torch.tensor(step.starts, device=device)
        offsets = torch.arange(width, device=device)
        mask = offsets < torch.tensor(step.sizes, device=device)[:, None]
        return (starts[:, None] + offsets).clamp(max=self.ids.shape[1] - 1), mask

    def max_supervised(self) -> list[int]:
        """For each step, the largest number of supervised tokens in a row; one host sync."""
        counts = torch.nn.functional.pad(self.supervised.long().cumsum(1), (1, 0)).tolist()
        return [
            max(row[start + size] - row[start] for row, start, size in zip(counts, step.starts, step.sizes))
            for step in self.steps
        ]


def align_steps(plans: Sequence[Sequence[Sequence[int]]], indices: Sequence[Sequence[int]] | None = None) -> list[Step]:
    """The chunks of every row in order, as steps; rows are aligned at their ends.

    plans    for each row its texts, each as the sizes of its chunks
    indices  for each row the `nll_index` of each of its texts; None = the row's index
    """
    rows = []
    for row, texts in enumerate(plans):
        start, chunks = 0, []
        for number, sizes in enumerate(texts):
            nll_index = row if indices is None else indices[row][number]
            for index, size in enumerate(sizes):
                chunks.append((start, size, index + 1 < len(sizes), index == 0, index, nll_index))
                start += size
        rows.append(chunks)
    count = max((len(chunks) for chunks in rows), default=0)
    no_chunk = (0, 0, False, False, 0, 0)
    aligned = [[no_chunk] * (count - len(chunks)) + chunks for chunks in rows]
    return [Step(*(list(values) for values in zip(*(chunks[i] for chunks in aligned)))) for i in range(count)]


def pack_rows(chunks: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Texts packed into rows (first fit decreasing), so that few rows idle while the longest text is processed.

    chunks   number of chunks of each text; no row has more chunks than the longest text
    strides  stride of each text; texts of one row share their stride
    Returns the indices of the texts of each row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(chunks)), key=lambda text: -chunks[text]):
        fitting = (
            row for row, free in enumerate(room) if free >= chunks[text] and strides[rows[row][0]] == strides[text]
        )
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(chunks))
        rows[row].append(text)
        room[row] -= chunks[text]
    return [sorted(row) for row in rows]


def join_parts(parts: Sequence[Tokens]) -> tuple[Layout, Tensor]:
    """Padded parts as running text without holes: the layout, and ids (B, N)."""
    layout = Layout.of([part.mask for part in parts], round_to=1)
    return layout, layout.pack([part.ids for part in parts])


def supervise_answer(batch: Batch, layout: Layout, training: bool = False) -> Tensor:
    """Supervised mask (B, N) of the answer, in training also of `targets`.

    Parts of `layout`: prefix, context, prompt, answer.
    """
    prefix, context, prompt = (torch.zeros_like(part.mask) for part in (batch.prefix, batch.context, batch.prompt))
    if training and batch.targets is not None:
        context = batch.targets & batch.context.mask
    return _shift_left(layout.pack([prefix, context, prompt, batch.answer.mask]))


def supervise_all(layout: Layout) -> Tensor:
    """Supervised mask (B, N) of every token that follows another one."""
    return _shift_left(layout.mask)


def _shift_left(mask: Tensor) -> Tensor:
    return torch.nn.functional.pad(mask[:, 1:], (0, 1))
