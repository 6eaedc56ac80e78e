"""Rows whose answers have ended leave the batch, in every kind of state, without changing an answer."""

import pytest

from breviary.backbones.stack import Stack
from breviary.contract import Generation
from breviary.decoding.state import GROWTH
from tests.tiny import disturb

FORMS = {
    "full_context": ["compressor=full_context"],
    "full_context, cached": ["compressor=full_context"],
    "comi-depth": ["compressor=comi", "compressor.join=depth"],
    "snapkv, cached": ["compressor=snapkv"],
    "comet": ["compressor=comet"],
}
GENERATION = Generation(max_new_tokens=GROWTH + 2)


@pytest.mark.parametrize("name", FORMS)
def test_answers_of_a_batch_equal_those_of_single_rows(build, ragged, name, monkeypatch):
    reader = build([*FORMS[name], "decoder.train=frozen"]).eval()
    disturb(reader)
    ragged = ragged.rows([0, 1, 2])  # one that ends is more than a quarter of the batch
    longest = max((answer.ids for answer in reader.decode(ragged, GENERATION)), key=len)
    reader.decoder.end_ids = (longest[len(longest) // 4],)  # ends one row early, others elsewhere
    alone = [reader.decode(ragged.rows([row]), GENERATION)[0] for row in range(len(ragged))]
    rows, embed = [], Stack.embed

    def recorded(stack, ids):
        if stack is reader.decoder and ids.shape[1] == 1:
            rows.append(len(ids))
        return embed(stack, ids)

    monkeypatch.setattr(Stack, "embed", recorded)
    if "cached" in name:
        reader.context_cache = reader.context_cache_class(len(ragged))
    assert reader.decode(ragged, GENERATION) == alone
    lengths = {len(answer.ids) for answer in alone}
    assert len(lengths) > 1 and rows[-1] < len(ragged)
    assert name == "comet" or rows == sorted(rows, reverse=True)  # comet decodes groups of rows, one after the other
