"""Two processes compute what one does: losses, gradients and weights, for DDP and every ZeRO stage.

One process takes each step's four examples as one batch; two processes take them as two micro-batches of one example
each. float32, no dropout, SGD. A relative difference is norm(a - b) / norm(b), per parameter; its bound of 1e-5 is a
hundred roundings. Gradients below 1e-6 of the whole gradient's norm are compared on that scale.
"""

from __future__ import annotations

import pytest
import torch
from cases import CASES, STEPS, cases_of, train_cases

ENGINES = ("ddp", "zero1", "zero2", "zero3")
TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def trained(ranks, tmp_path_factory):
    """trained(engine): {case: what was recorded}."""
    folder, kept = tmp_path_factory.mktemp("engines"), {}

    def load(engine):
        if engine not in kept:
            kept[engine] = AssertionError(f"{engine} failed in an earlier test")  # ranks that hang are waited for once
            world = 1 if engine == "single" else 2
            ranks(None if world == 1 else world, train_cases, engine, world, folder)
            kept[engine] = torch.load(folder / f"{engine}{world}.pt")
        if isinstance(kept[engine], AssertionError):
            raise kept[engine]
        return kept[engine]

    return load


def difference(found, wanted, smallest=1e-30):
    """The largest relative difference over the parameters, and whose it is."""
    assert found.keys() == wanted.keys() and found
    return max(
        (float((found[name] - value).norm() / value.norm().clamp(min=smallest)), name) for name, value in wanted.items()
    )


@pytest.mark.parametrize(
    "engine, case", [(engine, case) for case in CASES for engine in ENGINES if case in cases_of(engine)]
)
def test_two_processes_equal_one(trained, engine, case):
    one, two = trained("single")[case], trained(engine)[case]
    assert len(one["losses"]) == len(two["losses"]) == STEPS
    found = {
        "losses": max(abs(a - b) / b for a, b in zip(two["losses"], one["losses"])),
        "weights": difference(two["weights"], one["weights"]),
    }
    if not case.endswith("clipped"):  # DeepSpeed's gradients are seen before clipping, torch's after: the weights tell
        smallest = [1e-6 * float(torch.stack([g.norm() for g in step.values()]).norm()) for step in one["gradients"]]
        found["gradients"] = max(map(difference, two["gradients"], one["gradients"], smallest))
    print(engine, case, found)  # pytest -rP shows it
    assert all(value < TOLERANCE for value in (found["losses"], found["weights"][0], *found.get("gradients", ())[:1]))


@pytest.mark.parametrize("case", CASES)
def test_training_moves_every_weight(trained, case):
    """Otherwise equal weights would say nothing: in each case every parameter has a gradient at some step."""
    gradients = trained("single")[case]["gradients"]
    still = [name for name in gradients[0] if not any(step[name].norm() > 0 for step in gradients)]
    assert not still


def test_clipping_is_at_work(trained):
    assert min(trained("single")["no_context_clipped"]["norms"]) > 2  # above the bound of 1.0
