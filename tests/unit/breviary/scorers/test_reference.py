"""Scores of the fast scorers equal those of the slow twins, from the layers of a plain Hugging Face model."""

import math

import pytest
import torch

from breviary.backbones.stack import rotate
from breviary.contract import Context, Question
from breviary.memory.columns import Columns
from breviary.scorers import reference
from breviary.scorers.base import PROTECTED
from tests.tiny import row_ids

SMALL = ["backbone.layers=2", "backbone.width=32", "decoder.train=frozen", "compressor.ratio=3"]


def reader_of(build, name, question, *words):
    return build([f"compressor={name}", f"compressor.question={question}", *SMALL, *words]).eval()


def plain_layers(reader, ids):
    """Of each layer of the plain model on ids (N,): queries before rotation, rotated queries, keys, values."""
    model = reader.compressor._backbone.load().eval()
    states = model(ids[None], output_hidden_states=True).hidden_states
    layers, positions = [], torch.arange(len(ids))[None]
    for layer, entering in zip(model.model.layers, states):
        normed, attention = layer.input_layernorm(entering), layer.self_attn
        heads = [
            project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        cos_sin = model.model.rotary_emb(entering, positions)
        rotated = [rotate(x, *cos_sin)[0] for x in heads[:2]]
        layers.append((heads[0][0], rotated[0], rotated[1], heads[2][0]))
    return layers


def fast_scores(reader, batch):
    """(B, J, T) of each layer."""
    compressor, decoder = reader.compressor, reader.decoder
    encoded = compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
    columns = Columns.of(encoded.mask[:, 0], encoded.ids[:, 0])
    pairs = [(k[:, 0], v[:, 0]) for k, v in encoded.keys_values]
    budget = -(-batch.context.lengths // 3)
    prompt = decoder.embed(batch.prompt.ids)
    question = Question(batch.query.ids, batch.query.mask, prompt, batch.prompt.mask)
    return compressor._scores(encoded, question, columns, pairs, budget)


def compare(fast, slow, tokens):
    """Equal where scores are finite; the same entries are protected."""
    fast, slow = fast[:, :tokens], torch.tensor(slow)
    assert torch.equal(fast > PROTECTED / 2, slow.isinf())
    torch.testing.assert_close(fast[~slow.isinf()], slow[~slow.isinf()].to(fast.dtype), rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("question", "pooling", "window"), [("known", "max", 4), ("unknown", "avg", 5)])
def test_snapkv(build, ragged, question, pooling, window):
    words = [f"compressor.scorer.window={window}", "compressor.scorer.kernel=3", f"compressor.scorer.pooling={pooling}"]
    reader = reader_of(build, "snapkv", question, *words)
    fast = fast_scores(reader, ragged)
    for row in (0, 3):
        ids = row_ids(ragged, row, "prefix", "context", *(["prompt"] if question == "known" else []))
        tokens = int(ragged.context.lengths[row])
        for layer, (_, queries, keys, _) in enumerate(plain_layers(reader, ids)):
            slow = reference.snapkv(queries, keys, int(ragged.prefix.lengths[row]), tokens, window, 3, pooling)
            compare(fast[layer][row], slow, tokens)


@torch.no_grad()
def test_h2o(build, ragged):
    reader = reader_of(build, "h2o", "unknown")
    fast = fast_scores(reader, ragged)
    for row in (0, 3):
        tokens, prefix = int(ragged.context.lengths[row]), int(ragged.prefix.lengths[row])
        for layer, (_, queries, keys, _) in enumerate(plain_layers(reader, row_ids(ragged, row, "prefix", "context"))):
            compare(fast[layer][row], reference.h2o(queries, keys, prefix, tokens, -(-tokens // 3)), tokens)


@torch.no_grad()
def test_expected_attention(build, ragged):
    """With three future positions; the prefix has one of the four sinks."""
    reader = reader_of(build, "expected_attention", "unknown", "compressor.scorer.future=3")
    fast, row = fast_scores(reader, ragged), 0
    tokens, prefix = int(ragged.context.lengths[row]), int(ragged.prefix.lengths[row])
    assert prefix == 1
    layers = plain_layers(reader, row_ids(ragged, row, "prefix", "context"))
    unit = torch.eye(layers[0][0].shape[-1])
    cos, sin = reader.decoder.rotary(unit, torch.arange(prefix + tokens, prefix + tokens + 3)[None])
    turned = [rotate(unit[None, None], cos[:, i : i + 1], sin[:, i : i + 1])[0, 0].T for i in range(3)]
    for layer, (queries, _, keys, values) in enumerate(layers):
        slow = reference.expected_attention(queries, keys, values, turned, prefix, tokens, 4, 0.02)
        compare(fast[layer][row], slow, tokens)
        assert math.isinf(slow[0][2]) and not math.isinf(slow[0][3])
