"""comet.checks: the error message for each wrong setting, before any weight is loaded."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import train as training
from breviary.config.keys import CONFIGS
from comet.checks import check_settings

DEFAULTS = {
    key: value
    for key, value in OmegaConf.to_container(OmegaConf.load(CONFIGS / "compressor" / "comet.yaml")).items()
    if key != "_target_"
}


def problems(positions=8192, **settings):
    backbone = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    return check_settings({**DEFAULTS, **settings}, backbone)


def example_settings(message):
    """The settings in a message's example. An example without a key is a value of the message's key."""
    example = message.rpartition("e.g. ")[2].split(", or")[0]
    words = [word.removeprefix("compressor.") for word in example.split()]
    if "=" not in example:
        words = [f"{message.removeprefix('compressor.').partition('=')[0]}={words[0]}"]
    return OmegaConf.to_container(OmegaConf.from_dotlist(words))


def test_the_defaults_fit_a_backbone_of_8192_positions():
    assert problems() == [] and problems(5376) == []


LOWEST = [
    ("chunk_size", 0, 1, 2048),
    ("stride", 0, 1, 8),
    ("global_slots", -1, 0, 512),
    ("queue_budget", -1, 0, 2048),
    ("adapter_rank", 0, 1, 8),
    ("new_token_logits", -1, 0, 0),
    ("most_chunks", 0, 1, 16),
    ("smallest_chunk", 0, 1, 4),
]
MESSAGES = [
    *(
        ({key: value}, f"compressor.{key}={value}: must be at least {lowest}, e.g. {example}")
        for key, value, lowest, example in LOWEST
    ),
    ({"backend": "flash"}, "compressor.backend=flash: allowed are kv_prefix, scatter"),
    (
        {"strategy": "full"},
        "compressor.strategy=full: allowed are fixed, right_aligned, uniform, random, semantic, mixture",
    ),
    ({"supervise": "all"}, "compressor.supervise=all: allowed are answer, text"),
    ({"adapter_init": "ones"}, "compressor.adapter_init=ones: allowed are normal, zero"),
    ({"eps": 0.0}, "compressor.eps=0.0: must be above 0, e.g. 1e-6"),
    ({"memory_rate": -1.0}, "compressor.memory_rate=-1.0: must be above 0, e.g. 5.0"),
    ({"truncate_every": 0}, "compressor.truncate_every=0: must be at least 1 chunk, or null for none"),
    ({"chunk_size": 2050}, "compressor.chunk_size=2050: must be a multiple of compressor.stride=8, e.g. 2048"),
    (
        {"chunk_size": 5, "smallest_chunk": 4},
        "compressor.chunk_size=5: must be a multiple of compressor.stride=8, e.g. 8",
    ),
    (
        {"queue_budget": 255},
        "compressor.queue_budget=255: must hold one chunk's 256 compression slots (chunk_size / stride), "
        "e.g. 256, or 0 for no queue",
    ),
    *(
        (
            {"widest_stride": value},
            f"compressor.widest_stride={value}: must be a divisor of compressor.chunk_size=2048 of at "
            "least compressor.stride=8, e.g. 16, or null",
        )
        for value in (0, 4, 24)
    ),
    (
        {"chunk_size": 24, "widest_stride": 16},
        "compressor.widest_stride=16: must be a divisor of compressor.chunk_size=24 of "
        "at least compressor.stride=8, e.g. 24, or null",
    ),
    ({"smallest_chunk": 2049}, "compressor.smallest_chunk=2049: must be at most compressor.chunk_size=2048, e.g. 4"),
]


@pytest.mark.parametrize("settings, message", MESSAGES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_each_error_is_one_message_with_a_valid_example(settings, message):
    assert problems(**settings) == [message]
    if "e.g." in message:
        assert problems(**{**settings, **example_settings(message)}) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"global_slots": 0, "queue_budget": 0},
        {"queue_budget": 256},
        {"widest_stride": 128},
        {"truncate_every": 1},
        {"widest_stride": 8},
        {"smallest_chunk": 2048},
        {"supervise": "text"},
        {"stride": 2048},
        {"adapter_init": "zero"},
    ],
    ids=str,
)
def test_valid_settings(settings):
    assert problems(**settings) == []


def test_a_layout_longer_than_the_backbone_s_positions():
    for positions in (5375, 4096, 300, 64):
        [message] = problems(positions)
        assert message.startswith(
            "compressor: a chunk needs 2 * global_slots + queue_budget + chunk_size + chunk_size / stride = 5376 "
            f"positions, the backbone has {positions}; e.g. compressor.chunk_size="
        )
        assert problems(positions, **example_settings(message)) == []
    assert problems(5376 - 2048 - 256, queue_budget=0) == []  # no compression tokens either


def test_sizes_are_compared_only_if_each_is_valid():
    assert problems(64, stride=0, chunk_size=7) == ["compressor.stride=0: must be at least 1, e.g. 8"]


# ---- through train.py ----


def test_all_errors_are_reported_before_weights_are_loaded(refused):
    assert refused(
        training,
        "compressor=comet",
        "compressor.stride=0",
        "compressor.backend=flash",
        "compressor.eps=0",
        "train.steps=0",
        "compressor.gate=maybe",
        "dataset.train_size=4",
    ) == [
        "compressor.gate=maybe: must be true or false, e.g. true",
        "compressor.stride=0: must be at least 1, e.g. 8",
        "compressor.backend=flash: allowed are kv_prefix, scatter",
        "compressor.eps=0: must be above 0, e.g. 1e-6",
        "train.steps=0: must be at least 1, e.g. 100",
    ]


def test_a_backbone_with_too_few_positions_is_refused(refused):
    [message] = refused(training, "compressor=comet", "backbone.positions=4096", "dataset.train_size=4")
    assert "= 5376 positions, the backbone has 4096; e.g. compressor.chunk_size=1024 " in message


def test_sharded_weights_are_refused(refused):
    assert refused(training, "compressor=comet", "engine=zero3", "dataset.train_size=4") == [
        "engine=zero3: this compressor processes a data-dependent number of chunks, and it needs equal "
        "module calls on every process; use engine=zero2"
    ]
