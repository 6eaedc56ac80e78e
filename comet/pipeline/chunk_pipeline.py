"""One text on several processes, which own its chunks and compute them layer by layer (CoMeT, spec 2).

Every process holds all layers. After each layer a process sends that layer's memory to the owner of the next chunk and
goes on: while it computes layer l, the next process computes layer l - 1. Loss and gradients, summed over the ranks,
equal those of one process for any number of chunks and ranks.

Shape letters: B rows, N columns of a chunk, D width.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from comet.chunked_text import Chunk, ChunkedText
from comet.layers import MemoryLayers, Piece
from comet.memory import LayerState, MemoryState
from comet.pipeline.messages import MessageLayout
from comet.pipeline.schedule import SCHEDULES, chunk_owners, rank_tasks
from comet.pipeline.transfer import LocalTransport
from comet.protocol import PipelineReader


class ChunkPipeline:
    """One process's share of every text.

    transport       carries memory from chunk to chunk
    schedule        contiguous | cyclic, see comet.pipeline.schedule
    reports_counts  this process reports the counts of the batch, which all ranks of a pipeline share
    """

    def __init__(self, transport: LocalTransport, schedule: str, reports_counts: bool = True):
        assert schedule in SCHEDULES, schedule
        self.transport, self.schedule, self.reports_counts = transport, schedule, reports_counts

    def nll(self, reader: PipelineReader, text: ChunkedText, nll: Tensor) -> Tensor:
        """`nll` (num_nlls,) plus the nats of this rank's chunks. Every rank of the pipeline passes the same text.

        Steps of the text are distributed: rows are aligned at their ends, so the last ranks compute a short row alone.
        """
        max_supervised, layers = text.max_supervised(), len(reader.decoder)
        # Chunks after the last supervised token do not affect the loss. Without them the last chunk has a loss of its
        # own, through which the backward pass reaches every received memory.
        count = max((number + 1 for number, width in enumerate(max_supervised) if width), default=0)
        chunks = list(islice(reader.prepare_chunks(text), count))
        pieces = chunk_pieces(reader.memory, chunks, text)
        owners = chunk_owners(count, self.transport.ranks, self.schedule)
        tasks = rank_tasks(owners, layers, self.transport.rank, self.schedule)
        transfer = self.transport.start_text(owners, tasks, layers, message_layouts(reader, pieces))
        states, attention_inputs = {}, {}
        for number, layer in tasks:
            chunk, piece = chunks[number], pieces[number]
            if layer == 0:
                states[number] = reader.embed_chunk(text, chunk)
                attention_inputs[number] = piece.attention_inputs(reader.decoder, states[number])
            prior = detach_truncated(chunk, piece, transfer.receive(number, layer))
            transfer.start_task(number, layer)
            states[number], memory = reader.memory.run_layer(
                reader.decoder, layer, states[number], attention_inputs[number], piece, prior
            )
            transfer.end_task(number, layer, states[number])
            if number + 1 < count:
                states[number] = transfer.send(number + 1, layer, states[number], memory)
            if layer + 1 == layers:
                del attention_inputs[number]
                last = states.pop(number)
                if max_supervised[number]:
                    step_nll = reader.chunk_nll(text, chunk.step, chunk.layout, last, max_supervised[number])
                    nll = text.add_nll(nll, chunk.step, step_nll)
        return transfer.attach_backward(nll, [weight for weight in reader.parameters() if weight.requires_grad])


def chunk_pieces(memory: MemoryLayers, chunks: list[Chunk], text: ChunkedText) -> list[Piece]:
    """The chunks as pieces, each with the masks that follow from the earlier chunks; no hidden state is needed."""
    rows, device = len(text.ids), text.ids.device
    state, pieces = MemoryState.empty(rows, device), []
    for chunk in chunks:
        state = chunk.initial_memory(state)
        piece = memory.piece(chunk.layout, state, chunk.updates)
        pieces.append(piece)
        if chunk.updates is not None:  # slots of width 0: only their masks are used
            assert piece.queue_mask is not None  # as the piece updates the memory
            slots = torch.zeros(rows, memory.global_slots + piece.queue_mask.shape[1], 0, device=device)
            state = piece.updated_memory([LayerState(slots[:, : memory.global_slots], slots[:, memory.global_slots :])])
    return pieces


def message_layouts(reader: PipelineReader, pieces: list[Piece]) -> dict[int, MessageLayout]:
    """Layout of the messages into each chunk; chunks without memory slots have none."""
    layouts, stack = {}, reader.decoder
    for number, piece in enumerate(pieces):
        rows, slots = piece.slot_mask.shape
        if slots:
            layouts[number] = MessageLayout(
                rows,
                reader.memory.global_slots,
                slots - reader.memory.global_slots,
                stack.width,
                stack.dtype,
                piece.slot_mask.device,
            )
    return layouts


def detach_truncated(chunk: Chunk, piece: Piece, prior: LayerState | None) -> LayerState | None:
    """A layer's memory at the start of the chunk, detached in the rows where gradients are truncated."""
    if prior is None or chunk.detaches is None:
        return prior
    memory = MemoryState((prior,), piece.initialized, prior.queue.new_zeros(0).bool())
    return memory.detach_where(chunk.detaches).layers[0]
