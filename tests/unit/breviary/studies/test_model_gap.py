"""Distances between models: by hand, and of tiny models to themselves and to others."""

import math

import pytest
import torch

from breviary.backbones.tiny import TinyBackbone
from breviary.studies.model_gap import linear_cka, model_gaps, symmetric_kl


def test_symmetric_kl_by_hand():
    # (1/2, 1/2) and (1/4, 3/4): differences 1/4 and -1/4 times log 2 and log 2/3, halved.
    a, b = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log() + 3  # a shift of logits changes nothing
    expected = (0.25 * math.log(2) - 0.25 * math.log(2 / 3)) / 2
    assert symmetric_kl(a, b).item() == pytest.approx(expected) == symmetric_kl(b, a).item()
    assert symmetric_kl(a, a + 1).item() == pytest.approx(0, abs=1e-7)


def test_cka_by_hand_and_under_rotation():
    a = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # a'a = 2 I
    b = torch.tensor([[1.0], [-1], [0], [0]])  # b'b = 2, a'b = (2, 0): 4 / (2 sqrt 2 * 2)
    assert linear_cka(a, b) == pytest.approx(1 / math.sqrt(2))
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0))).Q
    assert linear_cka(a, 3 * a @ turn + 5) == pytest.approx(1)
    assert math.isnan(linear_cka(a, torch.ones(4, 2)))


def test_a_model_has_no_gap_to_itself():
    ids = torch.randint(2, 500, (5, 9), generator=torch.Generator().manual_seed(0))
    one, other = TinyBackbone(layers=2), TinyBackbone(layers=2, seed=1)
    assert model_gaps(one, one, ids, 2) == pytest.approx({"kl": 0, "nll": 0, "cka": 0}, abs=1e-5)
    result = model_gaps(one, other, ids, 2, batch_size=2)
    assert all(value > 0.01 for value in result.values())
    assert model_gaps(other, one, ids, 2) == pytest.approx(result, rel=1e-4)
