"""The tokenizer of tests and tiny configurations."""

import os
import subprocess
import sys
from pathlib import Path

from breviary.backbones.tiny import tiny_tokenizer
from data.invented_facts import RELATIONS
from data.tokenised import tokenizer_hash

ROOT = Path(__file__).resolve().parents[3]


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


def test_the_tokenizer_is_equal_in_another_process():
    code = (
        "from breviary.backbones.tiny import tiny_tokenizer\nfrom data.tokenised import tokenizer_hash\n"
        "print(tokenizer_hash(tiny_tokenizer()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        text=True,
        capture_output=True,
        check=True,
    ).stdout.strip()
    assert output == tokenizer_hash(tiny_tokenizer())
