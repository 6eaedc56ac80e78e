"""The same configuration gives the same losses, weights and answers, to the last digit: run again, with data loader
processes; and the same answers with any batch size of the evaluation.

Elsewhere: resumed runs (test_training, test_nothing_is_lost), two processes (tests/distributed), batches of one
(tests/contract). `scripts/bench/determinism.py` compares whole commands.
"""

import pytest
from calling import call

import eval as evaluation
import train as training
from breviary.evaluation.bench.determinism import Difference, compare_answers, compare_runs

TRAIN = [
    *("compressor=comi", "compressor.encoder_layers=1", "compressor.join=depth", "backbone.width=32"),
    *("backbone.layers=2", "dataset.facts=2", "dataset.train_size=24", "train.steps=3", "train.batch_size=2"),
    *("train.eval_examples=0", "train.log_every=1", "decoder.lora_dropout=0.1"),
]
EVALUATE = ["baselines=[]", "dataset.test_size=9", "generation.max_new_tokens=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(*words): the folder of a training and of its evaluation with these overrides."""
    patch = pytest.MonkeyPatch()

    def run(*words, batch_size):
        home = tmp_path_factory.mktemp("home")
        assert call(patch, home, training, *TRAIN, *words) == 0
        [folder] = (home / "outputs").glob("*/*_*")
        assert call(patch, home, evaluation, f"run={folder}", *EVALUATE, f"eval_batch_size={batch_size}") == 0
        return folder

    yield run
    patch.undo()


@pytest.fixture(scope="module")
def base(trained):
    return trained(batch_size=8)


@pytest.mark.parametrize("words, batch_size", [([], 1), (["train.workers=2"], 3)], ids=["again", "workers"])
def test_losses_weights_and_answers_are_equal(trained, base, words, batch_size):
    other = trained(*words, batch_size=batch_size)
    found = compare_runs(base, other)
    assert (found.loss, found.weights) == (0, 0)
    compare_answers(base, other, found)
    assert (found.answers, found.other_answers) == (9, 0) and found.nll < 1e-5


def test_a_difference_is_found(trained, base):
    other = trained("seed=1", batch_size=8)
    found = compare_runs(base, other)
    assert found.loss > 0 and found.weights > 0
    answers = Difference()
    compare_answers(base, other, answers)
    assert answers.nll > 0
