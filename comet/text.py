"""A batch as running text in chunks: what is read when, and what is supervised (CoMeT, spec 1.2, 3.3).

Shape letters: B rows, N tokens of a text, n text tokens of a step.
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
    """One chunk of every row, or of those that have one now: lists of B plain values.

    starts  first text token; sizes  text tokens, 0 = no chunk now
    closes  the chunk is followed by another of its text; begins  it is the first of a text
    chunk   its number within its text
    counts_for  in which sum what is spent on it counts: the text's number where rows hold several, else the row's
    """

    starts: list[int]
    sizes: list[int]
    closes: list[bool]
    begins: list[bool]
    chunk: list[int]
    counts_for: list[int]


@dataclass(frozen=True)
class Chunk:
    """One step as it will be read.

    columns, real  (B, n) as `Text.column` gives them; layout  of the chunk's sequence
    begins  (B,) bool, rows where another text begins; None = none, or all is new anyhow
    closes  (B,) bool, rows whose chunk is taken into the memory; None = none
    cut     (B,) bool, rows where gradients end before the chunk; None = none
    """

    step: Step
    layout: Layout
    columns: Tensor
    real: Tensor
    begins: Tensor | None
    closes: Tensor | None
    cut: Tensor | None

    def entered(self, memory: MemoryState) -> MemoryState:
        """The memory as the chunk finds it, from that which the chunks before left."""
        if self.begins is not None:
            memory = memory.fresh_where(self.begins)
        return memory.cut_where(self.cut) if self.cut is not None and memory.layers else memory


@dataclass
class Text:
    """Rows of text, in chunks.

    ids        (B, N) int64, right-padded, without holes
    asked      (B, N) bool, the token after this one is supervised
    steps      the chunks, aligned at the end: every row's last chunk is in the last step
    strides    text tokens for each compression token, a number a row
    sums       how many sums of nats are wanted; None = one a row
    """

    ids: Tensor
    asked: Tensor
    steps: list[Step]
    strides: list[int]
    sums: int | None = None

    def added(self, nll: Tensor, step: Step, spent: Tensor) -> Tensor:
        """The sums (`sums`,) and what was spent in one step's rows (B,)."""
        places = torch.tensor(step.counts_for, device=nll.device)
        return nll.to(torch.promote_types(nll.dtype, spent.dtype)).index_add(0, places, spent)

    def column(self, step: Step) -> tuple[Tensor, Tensor]:
        """Text columns of a step, (B, n) int64, and which of them are real, (B, n) bool."""
        device, width = self.ids.device, max(*step.sizes, 1)
        starts = torch.tensor(step.starts, device=device)
        place = torch.arange(width, device=device)
        real = place < torch.tensor(step.sizes, device=device)[:, None]
        return (starts[:, None] + place).clamp(max=self.ids.shape[1] - 1), real

    def asked_in(self) -> list[int]:
        """For each step the most supervised places that a row has in it; one host sync."""
        so_far = torch.nn.functional.pad(self.asked.long().cumsum(1), (1, 0)).tolist()
        return [
            max(row[start + size] - row[start] for row, start, size in zip(so_far, step.starts, step.sizes))
            for step in self.steps
        ]


def steps_of(plans: Sequence[Sequence[Sequence[int]]], numbers: Sequence[Sequence[int]] | None = None) -> list[Step]:
    """Chunks of every row in turn, rows aligned at their ends.

    plans    for each row its texts (one, or several packed), each as the sizes of its chunks
    numbers  for each row in which sum each of its texts counts; None = the row's
    """
    rows = []
    for row, texts in enumerate(plans):
        at, chunks = 0, []
        for place, sizes in enumerate(texts):
            for number, size in enumerate(sizes):
                own = row if numbers is None else numbers[row][place]
                chunks.append((at, size, number + 1 < len(sizes), number == 0, number, own))
                at += size
        rows.append(chunks)
    most = max((len(chunks) for chunks in rows), default=0)
    nothing = (0, 0, False, False, 0, 0)
    aligned = [[nothing] * (most - len(chunks)) + chunks for chunks in rows]
    return [Step(*(list(values) for values in zip(*(chunks[i] for chunks in aligned)))) for i in range(most)]


def shared_rows(chunks: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Texts that share a row, so that few rows idle while the longest text is read: their numbers, for each row.

    chunks  of each text; strides  of each text, alike within a row. No row has more chunks than the longest text; each takes
    the longest text that still fits, so the rows are few (first fit, longest first).
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


def joined(parts: Sequence[Tokens]) -> tuple[Layout, Tensor]:
    """Padded parts as texts without holes: the layout, and ids (B, N)."""
    layout = Layout.of([part.mask for part in parts], round_to=1)
    return layout, layout.pack([part.ids for part in parts])


def answer_asked(batch: Batch, layout: Layout) -> Tensor:
    """(B, N) bool, places whose next token is one of the answer's; parts of `layout`: prefix, context, prompt, answer."""
    quiet = [torch.zeros_like(part.mask) for part in (batch.prefix, batch.context, batch.prompt)]
    return _before(layout.pack([*quiet, batch.answer.mask]))


def every_asked(layout: Layout) -> Tensor:
    """(B, N) bool, every place that a real token follows."""
    return _before(layout.mask)


def _before(marks: Tensor) -> Tensor:
    return torch.nn.functional.pad(marks[:, 1:], (0, 1))
