"""compressor.bytes: a budget in bytes of keys and values, beside ratio and slots."""

import pytest

import train as training
from breviary.config.build import ReaderSpec
from breviary.config.compose import compose_config
from breviary.config.errors import ConfigError
from breviary.config.keys import validate_keys
from tests.tiny import compose_tiny, tiny_reader

NULL = "compressor.ratio=null"
TINY = ["backbone=tiny", "backbone.layers=4"]  # a token: 4 layers of keys and values, 2 heads of width 16, float32
TOKEN = 4 * 2 * 2 * 16 * 4


def spec_of(*words):
    cfg, problems = validate_keys(compose_config("train", [*TINY, *words]))
    assert not problems
    return ReaderSpec.of(cfg)


@pytest.mark.parametrize(
    ("words", "per_slot"),
    [
        (["compressor=bm25"], TOKEN),
        (["compressor=mean_pool", "compressor.join=input"], TOKEN),
        (["compressor=mean_pool", "compressor.join=depth", "compressor.encoder_layers=3"], TOKEN // 4),
        (["compressor=knorm"], TOKEN),
        (["compressor=attention_matching"], TOKEN + 4 * 2 * 4),  # and a float32 bias for each layer and head
        (["compressor=knorm", "backbone.dtype=bfloat16"], TOKEN // 2),
        (["compressor=truncate"], TOKEN),
    ],
)
def test_bytes_become_as_many_slots_as_fit(words, per_slot):
    for amount, slots in ((per_slot, 1), (5 * per_slot - 1, 4), (5 * per_slot, 5)):
        settings = spec_of(*words, NULL, f"compressor.bytes={amount}").settings
        assert settings["slots"] == slots and "bytes" not in settings
    [message] = _refusal(*words, NULL, f"compressor.bytes={per_slot - 1}")
    assert message == (
        f"compressor.bytes={per_slot - 1}: less than one slot, which takes {per_slot} bytes; e.g. {64 * per_slot}"
    )


def _refusal(*words):
    with pytest.raises(ConfigError) as error:
        spec_of(*words)
    return str(error.value).split("\n")


@pytest.mark.parametrize("name", ["bm25", "knorm", "attention_matching", "mean_pool"])
def test_the_memory_takes_at_most_so_many_bytes(name, ragged):
    cfg = compose_tiny([f"compressor={name}", NULL, "compressor.bytes=10000", "decoder.train=frozen"])
    footprint = tiny_reader(cfg).eval().footprint(ragged)
    per_slot = TOKEN + 32 * (name == "attention_matching")
    full = footprint.context_tokens * per_slot >= 10000
    assert full.any() and (footprint.memory_bytes <= 10000).all()
    if name != "mean_pool":  # whose groups have equal sizes
        assert (footprint.memory_bytes[full] > 10000 - per_slot).all()
    assert footprint.requested_ratio is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["compressor.bytes=5000"],
            "compressor.bytes=5000 with compressor.ratio=4 and compressor.slots=None: set exactly ",
        ),
        (
            [NULL, "compressor.slots=4", "compressor.bytes=5000"],
            "compressor.bytes=5000 with compressor.ratio=None and compressor.slots=4: set exactly ",
        ),
        ([NULL, "compressor.bytes=many"], "compressor.bytes=many: must be a whole number or null"),
        ([NULL, "compressor.bytes=1.5"], "compressor.bytes=1.5: must be a whole number or null"),
        ([NULL, "compressor.bytes=0"], "compressor.bytes=0: less than one slot, which takes 1024 bytes; e.g. 65536"),
        ([NULL, "compressor.bytes=-3"], "compressor.bytes=-3: less than one slot"),
        (
            [NULL, "compressor.bytes=5000", "compressor.ratio_choices=[2,4]"],
            "compressor.ratio_choices and compressor.bytes exclude each other",
        ),
    ],
)
def test_wrong_budgets_are_named(refused, words, message):
    for name in ("bm25", "knorm"):
        printed, *others = refused(training, f"compressor={name}", *TINY, *words)
        assert printed.startswith(message)
        assert all("set exactly one" in other for other in others)  # a value of a wrong type counts as null


def test_readers_without_a_memory_size_take_no_bytes(refused):
    assert "bytes" in "".join(refused(training, "compressor=comet", *TINY, "compressor.bytes=5000"))
