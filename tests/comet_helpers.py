"""CoMeT readers, texts and the results of the reference implementation, for the tests of comet/.

Chunks of 16 tokens, a compression token after 4, 3 global slots, and a queue of 8 slots: those of two chunks.
"""

from __future__ import annotations

import torch

from comet.chunked_text import ChunkedText, align_steps
from comet.chunking import fixed
from comet.layout import TEXT
from comet.reference import reference_states
from tests.tiny import compose_tiny, disturb, tiny_reader

C, S, G, B, K = 16, 4, 3, 8, 4  # chunk_size, stride, global_slots, queue_budget, compression tokens of a full chunk


def tiny_comet(*overrides, dtype="float64", layers=2):
    """A reader in evaluation mode with disturbed weights, all of them trained."""
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
    if dtype == "float64":  # new weights are initialised in float32
        reader.double()
    disturb(reader)
    return reader.eval()


def random_ids(*shape, seed=0):
    return torch.randint(2, 500, shape, generator=torch.Generator().manual_seed(seed))


def chunked_text(ids, plans, stride=S):
    """Rows of ids (B, N) in chunks of these sizes, every token but the first supervised."""
    lengths = torch.tensor([sum(sizes) for sizes in plans])
    supervised = torch.arange(ids.shape[1]) < lengths[:, None] - 1
    return ChunkedText(ids, supervised, align_steps([[sizes] for sizes in plans]), [stride] * len(ids))


def text_states(reader, text):
    """Last hidden states at every text token: a tensor (N, D) for each row."""
    rows = [[] for _ in text.ids]
    for step, layout, states in reader.forward_chunks(text):
        for row, size, columns, own in zip(rows, step.sizes, layout.columns_of(TEXT), states):
            row.append(own[columns[:size]])
    return [torch.cat(row) for row in rows]


def expected_states(reader, ids, sizes, stride=S):
    """The reference's last hidden states at every token of one text (N,)."""
    return reference_states(reader.decoder, reader.memory, ids.tolist(), sizes, stride)[0]


def expected_logits(reader, ids):
    """The reference's logits after every token of one text (N,), in full chunks: (N, V)."""
    return logits_of(reader, expected_states(reader, ids, fixed(len(ids), reader.chunk_size), reader.stride))


def logits_of(reader, states):
    return reader.decoder.head(reader.decoder.norm(states))


def summed_nll(logits, targets):
    """Negative log likelihood in nats, summed over the rows of logits (N, V)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def gradients(reader, value):
    """{name: gradient} of a scalar for every weight; zeros where the weight is not used."""
    named = dict(reader.named_parameters())
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if grad is None else grad for (name, weight), grad in zip(named.items(), grads)
    }


def largest_difference(actual, expected):
    """Largest difference over all weights, relative to the weight's largest gradient."""
    assert actual.keys() == expected.keys() and actual
    return max(
        float((actual[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-30)) for name, grad in expected.items()
    )
