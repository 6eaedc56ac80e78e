"""The fitted read-out of attention heads: its loss, and a fit on the tiny backbone."""

import json

import pytest
import torch

from breviary.config.errors import ConfigError
from breviary.evaluation.facts import training_record, training_text
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.session import EvaluationSession
from breviary.runs.checkpoints import best_checkpoint
from breviary.training.selector import Units, fit, fit_selector, mean_recall, target_loss
from data.text_pipeline import TEXT

WORDS = [
    "compressor=attention",
    "compressor.heads=linear",
    "compressor.layer=2",
    "compressor.window=2",
    "compressor.segment_size=12",
    "dataset=invented_facts",
    "dataset.train_size=12",
    "train.eval_examples=4",
]


def units(gold, target=None, features=None):
    gold = torch.tensor([gold])
    target = gold.float() / gold.sum() if target is None else torch.tensor([target])
    return Units(torch.zeros(*gold.shape, 1) if features is None else features, torch.ones_like(gold), target, gold)


def test_the_loss_wants_every_gold_unit():
    row = units([True, True, False])
    # Each gold unit has half of the mass of itself and the one other unit.
    assert float(target_loss(torch.zeros(1, 3), row, True)) == pytest.approx(float(torch.tensor(2.0).log()))
    one, both = torch.tensor([[9.0, 0, 0]]), torch.tensor([[4.5, 4.5, 0]])
    assert target_loss(both, row, True) < target_loss(one, row, True)


def test_padding_changes_no_loss():
    rows = [units([True, False]), units([False, True, False])]
    scores = torch.tensor([[1.0, 2.0, 9.0], [0.5, 1.0, 1.5]])
    both = Units.stack(rows)
    for hard in (True, False):
        alone = torch.cat([target_loss(scores[:1, :2], rows[0], hard), target_loss(scores[1:], rows[1], hard)])
        torch.testing.assert_close(target_loss(scores, both, hard), alone)


def test_soft_targets_are_a_cross_entropy():
    row = units([False, False], target=[0.25, 0.75])
    scores = torch.tensor([[1.0, 2.0]])
    expected = -(row.target * scores.log_softmax(1)).sum()
    assert float(target_loss(scores, row, False)) == pytest.approx(float(expected))


def test_the_fit_finds_the_head_that_attends_to_gold():
    features = torch.randn(20, 8, 6, generator=torch.Generator().manual_seed(0))
    gold = features[..., 3] == features[..., 3].amax(1, keepdim=True)
    both = Units(features, torch.ones_like(gold), gold.float(), gold)
    start = torch.full((6,), 1 / 6)
    readout = fit(start, both, True)
    assert readout.abs().argmax() == 3 and readout[3] > 3 * readout[[0, 1, 2, 4, 5]].abs().max()
    assert mean_recall(readout, both)[8] > 0.9 > mean_recall(start, both)[8]


@pytest.mark.parametrize("target", ["evidence", "attention"])
def test_a_fitted_run_is_evaluated_like_any_other(compose, target):
    run = fit_selector(compose(WORDS), TEXT, 6, target, teacher=3)
    record = json.loads((run / "selector.json").read_text())
    assert record["examples"] == 6 and record["train"]["recall"]["2"] >= record["train"]["recall_before"]["2"]
    text = training_text([training_record(run, best_checkpoint(run))])
    assert text == "choice fitted, 6 examples"
    cfg = compose_evaluation([f"run={run}", "baselines=[]"])
    reader = EvaluationSession(TEXT).load_reader(cfg, best_checkpoint(run))
    readout = reader.compressor.head_scores.readout
    assert not torch.allclose(readout, readout[0].expand_as(readout))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compressor.heads=mean", "compressor.heads=mean: has nothing to fit; set compressor.heads=linear"),
        ("compressor=comi", "has no read-out of heads to fit; set compressor=attention"),
    ],
)
def test_other_settings_are_refused(compose, change, message):
    words = [word for word in WORDS if not word.startswith("compressor")] + [change]
    with pytest.raises(ConfigError, match=message):
        fit_selector(compose(words if change != "compressor.heads=mean" else [*WORDS, change]), TEXT, 6, "evidence")
