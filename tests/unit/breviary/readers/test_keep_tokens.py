"""KeepTokens: number of slots, and width of the memory."""

import pytest

from breviary.contract import Context, Question
from tests.tiny import compose_tiny, tiny_reader

FORMS = {
    "all": ["compressor=full_context"],
    "none": ["compressor=no_context"],
    "ratio": ["compressor=truncate", "compressor.ratio=4"],
    "slots": ["compressor=truncate", "compressor.keep=middle", "compressor.ratio=null", "compressor.slots=7"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_the_memory_is_as_narrow_as_the_budget_allows(form, training, ragged):
    """The decoder processes every column, so unused ones would cost time."""
    compressor = tiny_reader(compose_tiny(FORMS[form])).train(training).compressor
    encoded = compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix))
    memory = compressor.compress(encoded, Question(ragged.query.ids, ragged.query.mask, None, ragged.prompt.mask))
    longest, width = int(ragged.context.lengths.max()), encoded.mask.shape[-1]
    kept = {"all": longest, "none": 0, "ratio": -(-longest // 4), "slots": 7}[form]
    assert kept - 1 <= int(memory.mask.sum(1).max()) <= kept  # a number of slots is rounded
    most = {"all": width, "none": 0, "ratio": -(-width // 4), "slots": 7}[form]
    assert memory.embeds.shape[1] == memory.mask.shape[1] <= most
