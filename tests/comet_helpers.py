"""CoMeT readers and texts, and what the slow twin makes of them, for the tests of comet/.

Chunks of 16 tokens, a compression token after 4, 3 global slots, a queue of 8 slots: two chunks' worth.
"""

from __future__ import annotations

import torch

from comet.layout import TEXT
from comet.chunking import fixed
from comet.reference import reference_states
from comet.text import Text, steps_of
from tests.tiny import compose_tiny, disturb, tiny_reader

C, S, G, B, K = 16, 4, 3, 8, 4  # chunk_size, stride, global_slots, queue_budget, compression tokens of a full chunk


def comet(*overrides, dtype="float64", layers=2):
    """A disturbed reader in evaluation mode, everything trained."""
    reader = tiny_reader(
        compose_tiny(
            [
                "compressor=comet",
                f"backbone.layers={layers}",
                f"backbone.dtype={dtype}",
                "decoder.train=full",
                *overrides,
            ]
        )
    )
    if dtype == "float64":  # new weights are drawn in float32
        reader.double()
    disturb(reader)
    return reader.eval()


def drawn_ids(*shape, seed=0):
    return torch.randint(2, 500, shape, generator=torch.Generator().manual_seed(seed))


def text_of(ids, plans, stride=S):
    """Rows of ids (B, N) in chunks of these sizes, every token but the first supervised."""
    lengths = torch.tensor([sum(sizes) for sizes in plans])
    asked = torch.arange(ids.shape[1]) < lengths[:, None] - 1
    return Text(ids, asked, steps_of([[sizes] for sizes in plans]), [stride] * len(ids))


def states_of(reader, text):
    """The stream after the last layer at every text token: a tensor (N, D) for each row."""
    rows = [[] for _ in text.ids]
    for step, layout, states in reader.chunks(text):
        for row, size, columns, own in zip(rows, step.sizes, layout.columns_of(TEXT), states):
            row.append(own[columns[:size]])
    return [torch.cat(row) for row in rows]


def twin(reader, ids, sizes, stride=S):
    """The slow twin's stream at every token of one text (N,)."""
    return reference_states(reader.decoder, reader.memory, ids.tolist(), sizes, stride)[0]


def twin_logits(reader, ids):
    """The slow twin's logits after every token of one text (N,), in full chunks: (N, V)."""
    return logits_of(reader, twin(reader, ids, fixed(len(ids), reader.chunk_size), reader.stride))


def logits_of(reader, states):
    return reader.decoder.head(reader.decoder.norm(states))


def nats(logits, targets):
    """Summed over the rows of logits (N, V)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def gradients(reader, value):
    """{name: gradient} of a scalar for every weight, zeros where it does not reach."""
    named = dict(reader.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if grad is None else grad for (name, weight), grad in zip(named.items(), found)
    }


def largest_difference(found, wanted):
    """Over all weights, relative to the weight's largest gradient."""
    assert found.keys() == wanted.keys() and found
    return max(
        float((found[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-30)) for name, grad in wanted.items()
    )
