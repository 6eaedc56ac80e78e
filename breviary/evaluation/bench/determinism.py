"""One training and one evaluation in several ways that must not matter: by how much their numbers differ."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from breviary.evaluation.bench.crash import COMI, DATA, TINY
from breviary.evaluation.bench.processes import launcher, read_losses, read_predictions, run_to_end
from breviary.runs.checkpoints import checkpoints, last_checkpoint, read_weights
from breviary.runs.folders import FINISHED

STEPS = 12
TRAINING = (
    *("reader=equal", "dataset=invented_facts", *TINY, *DATA, *COMI, f"train.steps={STEPS}", "train.batch_size=4"),
    *("train.log_every=1", f"train.save_every={STEPS // 2}", "train.eval_examples=0", "decoder.lora_dropout=0.1"),
)
EVALUATION = ("dataset.test_size=40", "baselines=[]", "eval_batch_size=8")
RESUMED = "resumed from the middle"
WITHOUT_DROPOUT = "decoder.lora_dropout=0"  # its draws belong to a process and a micro-batch
# What is different: processes, overrides.
TRAININGS: dict[str, tuple[int, list[str]]] = {
    "run twice": (1, []),
    RESUMED: (1, []),
    "train.workers=2": (1, ["train.workers=2"]),
    "two micro-batches of 2": (1, [WITHOUT_DROPOUT, "train.batch_size=2", "train.accumulation=2"]),
    "two processes, DDP": (2, [WITHOUT_DROPOUT, "train.batch_size=2", "engine=ddp"]),
    "two processes, ZeRO-2": (2, [WITHOUT_DROPOUT, "train.batch_size=2", "engine=zero2"]),
}
EVALUATIONS: dict[str, tuple[int, list[str]]] = {
    "run twice": (1, []),
    "eval_batch_size=1": (1, ["eval_batch_size=1"]),
    "eval_batch_size=3": (1, ["eval_batch_size=3"]),
    "two processes": (2, []),
}


@dataclass
class Difference:
    """Between two runs or two evaluations; the largest absolute differences. None = not compared.

    loss      of a step, in nats a token; weights: of the last checkpoint
    answers   compared; other_answers: of them, those that are not equal to the letter
    nll       of an answer, in nats
    """

    loss: float | None = None
    weights: float | None = None
    answers: int = 0
    other_answers: int = 0
    nll: float = 0.0


def measure(home: Path) -> Iterator[dict[str, object]]:
    """Yields a row for each comparison: what is compared, what is different, the differences. All in new processes."""
    bases = {
        words: _train(home, f"base{number}", 1, list(words)) for number, words in enumerate(((), (WITHOUT_DROPOUT,)))
    }
    answered = {words: _answer(home, f"base{number}", run, 1, []) for number, (words, run) in enumerate(bases.items())}
    for number, (name, (processes, words)) in enumerate(TRAININGS.items()):
        base = tuple(word for word in words if word == WITHOUT_DROPOUT)
        if name == RESUMED:
            run = _resume(home, bases[base], words)
        else:
            run = _train(home, f"training{number}", processes, words)
        found = compare_runs(bases[base], run)
        compare_answers(answered[base], _answer(home, f"training{number}", run, 1, []), found)
        yield {"compared": "training", "different": name, **asdict(found)}
    for number, (name, (processes, words)) in enumerate(EVALUATIONS.items()):
        found = Difference()
        compare_answers(answered[()], _answer(home, f"evaluation{number}", bases[()], processes, words), found)
        yield {"compared": "evaluation", "different": name, **asdict(found)}


def compare_runs(one: Path, other: Path) -> Difference:
    """Losses of all steps and weights of the last checkpoints of two run folders."""
    losses, others = read_losses(one), read_losses(other)
    weights, other_weights = (read_weights(last_checkpoint(run)) for run in (one, other))
    assert losses.keys() == others.keys() and losses, (one, other)
    assert weights.keys() == other_weights.keys() and weights, (one, other)
    return Difference(
        loss=max(abs(losses[step] - others[step]) for step in losses),
        weights=max(float((weights[name] - other_weights[name]).abs().max()) for name in weights),
    )


def compare_answers(one: Path, other: Path, found: Difference) -> None:
    """Adds the differences between the predictions below two folders."""
    rows, others = ({row["id"]: row for row in read_predictions(folder)} for folder in (one, other))
    assert rows.keys() == others.keys() and rows, (one, other)
    found.answers = len(rows)
    found.other_answers = sum(rows[key]["prediction"] != others[key]["prediction"] for key in rows)
    found.nll = max(abs(rows[key]["nll"] - others[key]["nll"]) for key in rows)


def _train(home: Path, name: str, processes: int, words: list[str]) -> Path:
    command = [*launcher(processes), "train.py", *TRAINING, *words, f"name={name}", f"paths.outputs={home}"]
    return run_to_end(command, home / name)


def _resume(home: Path, run: Path, words: list[str]) -> Path:
    """A copy of a run without what came after its first checkpoint, and resumed."""
    copy = Path(shutil.copytree(run, home / "resumed" / run.name))
    (copy / FINISHED).unlink()
    for later in checkpoints(copy)[1:]:
        shutil.rmtree(later)
    return _train(home, "resumed", 1, [*words, f"resume={copy}"])


def _answer(home: Path, name: str, run: Path, processes: int, words: list[str]) -> Path:
    """Evaluates a copy of the run, which has no evaluation yet."""
    copy = Path(shutil.copytree(run, home / "evaluated" / name / run.name, ignore=shutil.ignore_patterns("eval")))
    run_to_end([*launcher(processes), "eval.py", f"run={copy}", *EVALUATION, *words], copy)
    return copy
