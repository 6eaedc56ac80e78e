"""DataPipeline: the implementation of breviary.config.text_pipeline.TextPipeline."""

import inspect

import pytest

from breviary.config.text_pipeline import TextPipeline
from data.collate import Collator
from data.metrics import scores
from data.prompts import Prompt
from data.text_pipeline import TEXT
from data.tokenised import tokenise_split

METHODS = [name for name, value in vars(TextPipeline).items() if inspect.isfunction(value) and name[0] != "_"]


@pytest.mark.parametrize("method", METHODS)
def test_arguments_equal_those_of_the_protocol(method):
    expected = list(inspect.signature(getattr(TextPipeline, method)).parameters)
    assert list(inspect.signature(getattr(type(TEXT), method)).parameters) == expected


def test_methods_equal_the_functions_of_data(ragged_examples, tokenizer):
    prompt = TEXT.prompt({"bos": False, "instruction": "Read. "})
    assert prompt == Prompt(bos=False, instruction="Read. ")
    items = TEXT.tokenise(ragged_examples, tokenizer, prompt, 20, None, "head")
    expected = tokenise_split(ragged_examples, tokenizer, prompt, 20, None, "head")
    assert items.data_hash == expected.data_hash and [*items] == [*expected]
    batch = TEXT.collator(tokenizer)([*items])
    assert batch.context.ids.equal(Collator(0)([*items]).context.ids)
    assert TEXT.scores("a red", ["red"]) == scores("a red", ["red"])


def test_wrong_prompt_settings_raise():
    with pytest.raises(ValueError, match="prompt.template"):
        TEXT.prompt({"template": "Q"})
