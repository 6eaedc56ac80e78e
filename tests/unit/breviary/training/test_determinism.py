"""The same configuration gives the same losses, weights and answers, to the last digit: run again, with data loader
processes; and the same answers with any batch size of the evaluation.

Elsewhere: resumed runs (test_training, test_nothing_is_lost), two processes (tests/distributed), batches of one
(tests/contract). `scripts/bench/determinism.py` compares whole commands.
"""

import json
import shutil
from pathlib import Path

import pytest
from calling import call

import eval as evaluation
import train as training
from breviary.evaluation.bench.determinism import compare_answers, compare_runs
from breviary.evaluation.results import PREDICTIONS

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


def test_a_difference_is_found(base, tmp_path):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    [predictions] = other.rglob(PREDICTIONS)
    for file, key, change in ((other / "metrics.jsonl", "loss", 0.25), (predictions, "nll", -0.5)):
        *rows, last = [json.loads(line) for line in file.read_text().splitlines()]
        rows.append(last | {key: last[key] + change, "prediction": "another"})
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare_runs(base, other)
    compare_answers(base, other, found)
    assert (found.loss, found.weights, found.other_answers) == (0.25, 0, 1) and found.nll == pytest.approx(0.5)
