"""The tokenizer of tests and tiny configurations."""

import hashlib
import json

from breviary.backbones.tiny import tiny_tokenizer
from data.invented_facts import RELATIONS


def test_special_tokens():
    tokenizer = tiny_tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert len(tokenizer) == 512 and tokenizer.is_fast and tokenizer.chat_template is None


def test_any_text_round_trips():
    tokenizer = tiny_tokenizer()
    for text in ("The sun , it is 'yellow' .", "  two  spaces\n\tÄöü 漢字 🙂", ""):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_offsets_cover_the_text():
    text = " The moon is Größe"
    encoded = tiny_tokenizer()(text, return_offsets_mapping=True, add_special_tokens=False)
    assert {i for start, end in encoded["offset_mapping"] for i in range(start, end)} >= set(range(1, len(text)))


def test_answers_of_invented_facts_are_short():
    tokenizer = tiny_tokenizer()
    lengths = [
        len(tokenizer(f" {value}", add_special_tokens=False)["input_ids"])
        for values in RELATIONS.values()
        for value in values
    ]
    assert max(lengths) <= 2 and sum(lengths) / len(lengths) < 1.5


def test_the_tokenizer_is_equal_in_every_process():
    """Its vocabulary is trained on a fixed text; each process has other hash seeds, so a dependence on them shows."""
    tokenizer = tiny_tokenizer()
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    assert hashlib.sha256(vocabulary.encode()).hexdigest() == (
        "8533d108d79f2716fef6136919d2dfee21eba2a0761ecbd8253d6cb1628d5b48"
    )
    ids = tokenizer("The official metal of Velkeld is tin, naïve.", add_special_tokens=False)["input_ids"]
    assert ids == [288, 376, 375, 286, 430, 507, 287, 439, 13, 222, 79, 66, 129, 109, 87, 70, 15]
