"""Runs a training and a reader for long on the tiny backbone: memory, open files and speed, last against first.

    python scripts/bench/soak.py --output results/trust/soak.json
    python scripts/bench/soak.py --minutes 5 --questions 2000
    python scripts/bench/soak.py --minutes 600 --questions 1000000 --output soak.json

The training validates and writes checkpoints all the time; after --minutes it is ended by SIGTERM. Then one reader
answers --questions in one process, on new documents and known ones, every fourth streamed. After a warm-up of a fifth,
the last tenth of the samples is compared with the first: resident memory within 2%, as many open files, CPU time of a
step or a question within 20%. Exit code 1 where one of them grows by more.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.rows import MeasuredRows
from breviary.evaluation.bench.soak import Sample, drift, take_sample
from breviary.runtime.spelling import command, next_line
from breviary.serving.loading import load_reader

MOST = 1.02  # resident memory at the end, of that at the beginning
SLOWEST = 1.2  # CPU time of a unit, likewise; other processes on the machine move it by several percent
OVERRIDES = (
    "reader=soak backbone=tiny dataset=invented_facts dataset.facts=4 dataset.train_size=2000 train.batch_size=4 "
    "train.steps=1000000 train.save_every=50 train.eval_every=100 train.eval_examples=8 generation.max_new_tokens=4 "
    "compressor=comi compressor.join=depth name=soak"
)
DOCUMENTS = 50  # each of 8 questions, then again from the first


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of the training")
    parser.add_argument("--questions", type=int, default=20000)
    parser.add_argument("--output", metavar="FILE", help="JSON file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, then answers; prints a line each, writes one JSON file."""
    args = build_parser().parse_args(arguments)
    failed = False
    with cli_errors(), tempfile.TemporaryDirectory(prefix="soak-") as folder:
        rows = MeasuredRows(args.output, {"schema": 1}, {"rows": ("process",)})
        run, samples = train_for(args.minutes * 60, Path(folder))
        parts = {"training": samples, "answers": answer(run, args.questions)}
        for part, taken in parts.items():
            row: dict[str, Any] = {"process": part, **drift(taken)}
            rows.put(row)
            print(describe(row), flush=True)
            failed |= grows(row)
    if failed:
        sys.exit(1)
    print(next_line(command("scripts/bench/crash.py")))


def train_for(seconds: float, home: Path) -> tuple[Path, list[Sample]]:
    """Trains for so long, in another process; its run folder, and a sample a second after the first step."""
    words = [sys.executable, "train.py", *OVERRIDES.split(), f"paths.outputs={home}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    samples: list[Sample] = []
    with open(home / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(1)
            steps = _end(home / "log").rpartition("\nstep ")[2].partition("/")[0]
            if steps.isdecimal():
                samples.append(take_sample(int(steps), process.pid))
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code:
        raise RuntimeError(f"the training ended with {code}: {_end(home / 'log')}")
    [run] = (home / "soak").glob("*_*")
    return run, samples


def _end(file: Path, characters: int = 2000) -> str:
    """The end of a text file."""
    with open(file, "rb") as stream:
        stream.seek(max(0, file.stat().st_size - characters))
        return stream.read().decode(errors="replace")


def answer(run: Path, questions: int) -> list[Sample]:
    """Answers so many questions; a sample every hundredth part of them."""
    reader, samples, every = load_reader(run), [], max(1, questions // 100)
    for number in range(questions):
        document = number // 8 % DOCUMENTS
        text = f"The official metal of town {document} is tin. The lucky fruit of ship {document} is fig. " * 4
        question = f"What is the official metal of town {number}?"
        encoded = reader.read(text)
        if number % 4:
            reader.answer_from(encoded, question)
        else:
            "".join(reader.stream(encoded, question))
        if number % every == every - 1:
            samples.append(take_sample(number + 1))
    return samples


def grows(row: dict[str, Any]) -> bool:
    """Whether a part needs more at its end than at its beginning."""
    return row["resident_ratio"] > MOST or row["files"][0] != row["files"][1] or row["cpu_ratio"] > SLOWEST


def describe(row: dict[str, Any]) -> str:
    """One line about a part."""
    first, last = (value / 2**20 for value in row["resident_bytes"])
    return (
        f"{row['process']}: {row['done']:,}, resident {first:.0f} to {last:.0f} MiB ({row['resident_ratio']:.3f}), "
        f"open files {row['files'][0]:g} to {row['files'][1]:g}, CPU time of one {row['cpu_ratio']:.2f}x"
    )


if __name__ == "__main__":
    main()
