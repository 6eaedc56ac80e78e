"""Fixtures that several test files share. Everything is tiny, on the CPU, and offline."""

import gc
import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}

import datasets
import pytest

from breviary.backbones.tiny import tiny_tokenizer
from breviary.contract import Example
from data.collate import Collator
from data.invented_facts import InventedFacts
from data.prompts import Prompt
from tests.padding import padded_left
from tests.tiny import compose_tiny, tiny_reader

datasets.disable_progress_bars()


def pytest_collection_finish():
    """Every Trainer starts with a full garbage collection, which over all that was imported takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile, tests that share something expensive count as one file and run in one worker.

    The distributed tests share a fork server; test_configs.py and test_experiments.py share composed configurations.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            places = {
                "tests/distributed/": "distributed",
                "tests/test_configs.py": "configurations",
                "tests/smoke/test_experiments.py": "configurations",
            }
            shared = (group for place, group in places.items() if nodeid.startswith(place))
            return next(shared, None) or super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture
def compose(tmp_path):
    """compose(overrides, config="train") -> a configuration on the tiny backbone that writes into tmp_path only."""

    def composed(overrides=(), config="train"):
        cfg = compose_tiny(overrides, config)
        cfg.paths.outputs, cfg.paths.cache = f"{tmp_path}/outputs", f"{tmp_path}/cache"
        return cfg

    return composed


@pytest.fixture
def build(compose):
    """build(overrides) -> the reader of that configuration, in training mode."""
    return lambda overrides=(): tiny_reader(compose(overrides))


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def ragged_examples():
    """Contexts of 3, 1 and 2 facts, of one word (shorter than any ratio) and of nothing; ragged questions, answers."""
    facts = [InventedFacts(facts=n).examples("train")[n] for n in (3, 1, 2)]
    word = Example("word", "red", "Which word?", ("red and nothing but red",))
    empty = Example("empty", "", "What is the official metal of the town of Velkeld?", ("tin",))
    return [facts[0], empty, facts[1], word, facts[2]]


@pytest.fixture(scope="session")
def collate(tokenizer):
    """collate(examples, side="right", pad_id=the end token, **prompt) -> Batch."""

    def collated(examples, side="right", pad_id=tokenizer.eos_token_id, **prompt):
        assert side in ("right", "left"), side
        template = Prompt(**prompt)
        items = [{**template.tokenise(example, tokenizer), "example": example} for example in examples]
        batch = Collator(pad_id)(items)
        return batch if side == "right" else padded_left(batch)

    return collated


@pytest.fixture
def ragged(ragged_examples, collate):
    """The ragged examples as one batch, padded on the right with the end token."""
    return collate(ragged_examples)
