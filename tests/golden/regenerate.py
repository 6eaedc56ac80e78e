"""Writes the step-loss files that test_golden.py compares with: python tests/golden/regenerate.py [case ...]

Run it after a change that is intended to change the numbers, and explain the change in the commit message.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from breviary.runtime.checkout import require_checkout

require_checkout()
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}

import json
import tempfile

import datasets

import train
from tests.tiny import compose_tiny

HERE = Path(__file__).parent
HEADER = "step loss grad_norm learning_rate effective_ratio"
SHARED = [
    "dataset.facts=3",
    "dataset.train_size=64",
    "train.steps=6",
    "train.batch_size=4",
    "train.accumulation=2",
    "train.log_every=1",
    "train.eval_examples=0",
    "train.learning_rate=1e-2",
    "decoder.lora_targets=all-linear",
]
# Together: each join, COMI's gain, random ratios, segments, several values of decoder.train, each model family.
CASES = {
    "comi_input": ["compressor=comi", "train.learning_rate=1e-3"],
    "comi_depth": ["compressor=comi", "compressor.join=depth"],
    "comi_segments": [
        "compressor=comi",
        "compressor.join=depth",
        "compressor.segment_size=16",
        "compressor.learned_weights=merge",
        "backbone.family=qwen3",
    ],
    "mean_pool_ratios": [
        "compressor=mean_pool",
        "compressor.join=depth",
        "compressor.ratio_choices=[2,4,8]",
        "decoder.train=full",
        "train.learning_rate=1e-3",
    ],
    "full_context": ["compressor=full_context", "decoder.train=attention", "backbone.family=qwen2"],
}


def run_steps(name: str, folder: Path) -> list[list[float]]:
    """One row of numbers (see HEADER) per step of case `name`, trained in `folder`."""
    paths = [f"paths.outputs={folder}", f"paths.cache={folder}/cache"]
    run = train.train(compose_tiny([*SHARED, *CASES[name], *paths, f"reader={name}"]))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[row[key] for key in HEADER.split()] for row in rows]


def read_steps(file: Path) -> list[list[float]]:
    """The rows of one file."""
    header, *lines = file.read_text().splitlines()
    assert header == HEADER, (header, HEADER)
    return [[float(number) for number in line.split()] for line in lines]


def main(names: list[str]) -> None:
    """Rewrites the files of the named cases, or of all cases."""
    datasets.disable_progress_bars()
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows = run_steps(name, Path(folder))
        lines = [" ".join(f"{number:.6g}" for number in row) for row in rows]
        (HERE / f"{name}.txt").write_text("\n".join([HEADER, *lines]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
