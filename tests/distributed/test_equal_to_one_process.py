"""Two processes have the losses, gradients and weights of one, for DDP, every ZeRO stage and FSDP.

One process has each step's four examples as one batch; two processes have two micro-batches of one example each.
float32, no dropout, SGD. The relative difference of a parameter is norm(a - b) / norm(b); its bound of 1e-5 is about a
hundred rounding errors. Gradients below 1e-6 of the total gradient norm are compared relative to that.
"""

from __future__ import annotations

import pytest
import torch
from engine_cases import CASES, STEPS, cases_of, train_cases

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def trained(ranks, tmp_path_factory):
    """trained(engine): {case: recorded losses, gradients and weights}; each engine runs once."""
    folder, results = tmp_path_factory.mktemp("engines"), {}

    def load(engine):
        if engine not in results:
            results[engine] = AssertionError(
                f"{engine} failed in an earlier test"
            )  # hanging ranks cost the time limit only once
            world = 1 if engine == "single" else 2
            ranks(None if world == 1 else world, train_cases, engine, world, folder)
            results[engine] = torch.load(folder / f"{engine}{world}.pt")
        if isinstance(results[engine], AssertionError):
            raise results[engine]
        return results[engine]

    return load


def difference(actual, expected, smallest=1e-30):
    """The largest relative difference over the parameters, and the name of that parameter."""
    assert actual.keys() == expected.keys() and actual
    return max(
        (float((actual[name] - value).norm() / value.norm().clamp(min=smallest)), name)
        for name, value in expected.items()
    )


@pytest.mark.parametrize(
    "engine, case", [(engine, case) for case in CASES for engine in ENGINES if case in cases_of(engine)]
)
def test_two_processes_equal_one(trained, engine, case):
    one, two = trained("single")[case], trained(engine)[case]
    assert len(one["losses"]) == len(two["losses"]) == STEPS
    differences = {
        "losses": max(abs(a - b) / b for a, b in zip(two["losses"], one["losses"])),
        "weights": difference(two["weights"], one["weights"]),
    }
    if not case.endswith("clipped"):  # DeepSpeed's gradients are recorded before clipping, torch's after
        smallest = [1e-6 * float(torch.stack([g.norm() for g in step.values()]).norm()) for step in one["gradients"]]
        differences["gradients"] = max(map(difference, two["gradients"], one["gradients"], smallest))
    print(engine, case, differences)  # visible with pytest -rP
    assert all(
        value < TOLERANCE
        for value in (differences["losses"], differences["weights"][0], *differences.get("gradients", ())[:1])
    )


@pytest.mark.parametrize("case", cases_of("zero3"))
def test_zero_3_loads_in_shards(trained, case):
    """Each rank holds half of the pretrained weights, and no more than the largest one is whole at a time."""
    loaded, whole = trained("zero3")[case]["loaded"], trained("single")[case]["loaded"]
    print(case, loaded, whole)  # visible with pytest -rP
    assert loaded["of"] == whole["of"] == whole["held"]
    assert loaded["held"] < 0.55 * loaded["of"] + loaded["new"]
    assert 0 < loaded["gathered"] <= loaded["largest"]


@pytest.mark.parametrize("case", CASES)
def test_training_moves_every_weight(trained, case):
    """Every parameter has a gradient in some step of each case; otherwise equal weights would prove nothing."""
    gradients = trained("single")[case]["gradients"]
    unchanged = [name for name in gradients[0] if not any(step[name].norm() > 0 for step in gradients)]
    assert not unchanged


def test_gradient_norms_exceed_the_clipping_bound(trained):
    assert min(trained("single")["no_context_clipped"]["norms"]) > 2  # the bound is 1.0
