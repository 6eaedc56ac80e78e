"""Sliding window and Transformer-XL: equal to one pass with an explicit mask, and to the backbone in a wide window."""

import pytest
import torch

from breviary.contract import Context
from breviary.readers.windowed import compressor as windowed
from tests.tiny import disturb, row_ids

FROZEN = "decoder.train=frozen"


def reader_of(build, window, segment=None, *overrides):
    name = "transformer_xl" if segment else "sliding_window"
    words = [f"compressor={name}", f"compressor.window={window}", f"compressor.segment={segment or 'null'}"]
    reader = build([*words, FROZEN, *overrides]).eval()
    disturb(reader)
    return reader


def visible_tokens(context, others, window, segment):
    """(S, S) bool for [prefix ; context] of `context` tokens and `others` further ones: who attends to whom."""
    S = context + others
    query, key = torch.arange(S)[:, None], torch.arange(S)
    start = (query.clamp(max=context - 1) // segment * segment) if segment else query.clamp(max=context)
    first = start - (window - segment) if segment else start - (window - 1)
    return (key <= query) & ((key >= first) | (key >= context))


def masked_nll(reader, batch, row, window, segment):
    """NLL of a row's answer from one pass of the decoder over all tokens with the mask of `visible_tokens`."""
    decoder = reader.decoder
    before, rest = (row_ids(batch, row, *parts) for parts in (("prefix", "context"), ("prompt", "answer")))
    ids, answer = torch.cat([before, rest])[None], row_ids(batch, row, "answer")
    states, positions = decoder.embed(ids), torch.arange(ids.shape[1])[None]
    inputs = decoder.attention_inputs(states, positions)
    visible = visible_tokens(len(before), len(rest), window, segment)[None, None]
    is_eager = decoder.config._attn_implementation == "eager"
    minimum = torch.finfo(states.dtype).min
    inputs["attention_mask"] = torch.zeros(()).masked_fill(~visible, minimum) if is_eager else visible
    for index in range(len(decoder)):
        states = decoder.run_layer(index, states, inputs)
    logits = decoder.head(decoder.norm(states[0, -len(answer) - 1 : -1]))
    return torch.nn.functional.cross_entropy(logits, answer, reduction="sum")


@pytest.mark.parametrize("window, segment", [(5, None), (17, None), (1, None), (9, 4), (6, 6), (12, 1)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_blocks_equal_one_pass_with_a_mask(build, window, segment, attention, ragged, monkeypatch):
    monkeypatch.setattr(windowed, "BLOCK", 7)
    reader = reader_of(build, window, segment, f"backbone.attn_implementation={attention}")
    with torch.no_grad():
        output = reader.loss(ragged)
        expected = torch.stack([masked_nll(reader, ragged, b, window, segment) for b in range(len(ragged))])
    torch.testing.assert_close(output.nll, expected, rtol=1e-5, atol=1e-5)
    assert int(output.slots.max()) <= window and bool((output.slots <= ragged.context.lengths).all())


@pytest.mark.parametrize("segment", [None, 200])
def test_a_window_of_the_whole_text_is_the_plain_model(build, segment, ragged):
    reader = reader_of(build, 200, segment)
    model = build(["compressor=full_context", FROZEN]).eval()
    disturb(model)
    with torch.no_grad():
        torch.testing.assert_close(reader.loss(ragged).nll, model.loss(ragged).nll, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("segment, reaches", [(None, True), (8, False)])
def test_gradients_pass_through_a_window_and_stop_at_segments(build, segment, reaches, ragged, monkeypatch):
    monkeypatch.setattr(windowed, "BLOCK", 7)
    row, embedded = ragged.rows([0]), []
    reader = reader_of(build, 16, segment)
    embed = reader.decoder.embed

    def recorded(ids):
        embedded.append(embed(ids).requires_grad_())
        return embedded[-1]

    monkeypatch.setattr(reader.decoder, "embed", recorded)
    encoded = reader.compressor.encode(Context(row.context.ids, row.context.mask, row.prefix))
    last = int(row.context.lengths + row.prefix.lengths) - 1
    last_key = encoded.keys_values[-1][0][:, :, :, last].sum()
    [first_block] = torch.autograd.grad(last_key, embedded[:1], allow_unused=True)
    assert (first_block is not None and bool(first_block.any())) == reaches


def test_problems_name_key_and_example(build):
    for words, message in (
        (
            ["compressor=sliding_window", "compressor.window=0"],
            "compressor.window=0: must be at least 1 token, e.g. 5120",
        ),
        (["compressor=transformer_xl", "compressor.segment=9", "compressor.window=8"], "e.g. 4, or null"),
    ):
        settings = dict(word.removeprefix("compressor.").split("=") for word in words[1:])
        settings = {"segment": None} | {key: int(value) for key, value in settings.items()}
        assert message in windowed.Windowed.problems(settings, None)[0]
