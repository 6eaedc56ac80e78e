"""A text read by several processes, its chunks shared out among them, layer by layer (CoMeT, spec 2).

Every process holds all layers. After each layer a process hands that layer's memory to the reader of the next chunk and goes
on: while it computes layer l, the next one computes layer l - 1. Loss and gradients are sums over the ranks of what one process
would compute, whatever the numbers of chunks and of ranks.

Shape letters: B rows, G global slots, T queue slots, D width.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from comet.pipeline.transfer import Crossing, Handoff
from comet.layers import MemoryLayers, Piece
from comet.memory import LayerState, MemoryState
from comet.pipeline.schedule import SCHEDULES, cells, owners
from comet.text import Chunk, Text

if TYPE_CHECKING:
    from comet.model import Comet


class Pipeline:
    """What one process reads of every text.

    handoff       carries memory from chunk to chunk
    schedule      contiguous | cyclic, see comet.pipeline.schedule
    reports_counts  whether this process's counts stand for the batch, which all ranks of a pipeline have
    """

    def __init__(self, handoff: Handoff, schedule: str, reports_counts: bool = True):
        assert schedule in SCHEDULES, schedule
        self.handoff, self.schedule, self.reports_counts = handoff, schedule, reports_counts

    def nll(self, reader: Comet, text: Text, nll_B: Tensor) -> Tensor:
        """`nll_B`, a number for each of the text's sums, and the nats of this rank's chunks. Called by every rank of the pipeline
        with the same text.

        A chunk is a step of the text: rows are aligned at their ends, so a short row is read by the last ranks alone.
        """
        widths, layers = text.asked_in(), len(reader.decoder)
        # Nothing depends on what follows the last supervised place. So the last chunk that is read has a loss of its own,
        # through which a backward pass reaches everything that was taken.
        count = max((number + 1 for number, width in enumerate(widths) if width), default=0)
        chunks = list(islice(reader.laid_out(text), count))
        pieces = pieces_of(reader.memory, chunks, text)
        owner = owners(count, self.handoff.ranks, self.schedule)
        order = cells(owner, layers, self.handoff.rank, self.schedule)
        passage = self.handoff.open(owner, order, layers, crossings(reader, pieces))
        states, attending = {}, {}
        for number, layer in order:
            chunk, piece = chunks[number], pieces[number]
            if layer == 0:
                states[number] = reader.embeds(text, chunk)
                attending[number] = piece.attending(reader.decoder, states[number])
            prior = entered(chunk, piece, passage.take(number, layer))
            passage.begins(number, layer)
            states[number], after = reader.memory.cell(
                reader.decoder, layer, states[number], attending[number], piece, prior
            )
            passage.follows(number, layer, states[number])
            if number + 1 < count:
                states[number] = passage.give(number + 1, layer, states[number], after)
            if layer + 1 == layers:
                del attending[number]
                ended = states.pop(number)
                if widths[number]:
                    spent = reader.spent(text, chunk.step, chunk.layout, ended, widths[number])
                    nll_B = text.added(nll_B, chunk.step, spent)
        return passage.closed(nll_B, [weight for weight in reader.parameters() if weight.requires_grad])


def pieces_of(memory: MemoryLayers, chunks: list[Chunk], text: Text) -> list[Piece]:
    """The chunks as pieces, each with the masks that those before leave to it: known without reading any."""
    rows, device = len(text.ids), text.ids.device
    state, pieces = MemoryState.fresh(rows, device), []
    for chunk in chunks:
        piece = memory.piece(chunk.layout, chunk.entered(state), chunk.closes)
        pieces.append(piece)
        if chunk.closes is not None:  # slots of width 0: masks alone are a memory too
            slots = torch.zeros(rows, memory.global_slots + piece.queue_mask.shape[1], 0, device=device)
            state = piece.after([LayerState(slots[:, : memory.global_slots], slots[:, memory.global_slots :])])
        else:
            state = chunk.entered(state)
    return pieces


def crossings(reader: Comet, pieces: list[Piece]) -> dict[int, Crossing]:
    """Sizes of what crosses into each chunk; a chunk that has no seat is not there."""
    found, stack = {}, reader.decoder
    for number, piece in enumerate(pieces):
        rows, seats = piece.seat_mask.shape
        if seats:
            found[number] = Crossing(
                rows,
                reader.memory.global_slots,
                seats - reader.memory.global_slots,
                stack.width,
                stack.dtype,
                piece.seat_mask.device,
            )
    return found


def entered(chunk: Chunk, piece: Piece, prior: LayerState | None) -> LayerState | None:
    """A layer's memory as the chunk finds it: gradients may end here."""
    if prior is None or chunk.cut is None:
        return prior
    return MemoryState((prior,), piece.started, prior.queue.new_zeros(0).bool()).cut_where(chunk.cut).layers[0]
