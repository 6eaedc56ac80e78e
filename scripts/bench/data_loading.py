"""Data loading: lines per second, peak memory by file size, and time from start to the first training step.

    python scripts/bench/data_loading.py --output results/bench/data_loading.json
    python scripts/bench/data_loading.py --megabytes 50 200 800 --words 4000 --backbone smollm2_135m
    python scripts/bench/data_loading.py --megabytes 1 --starts 0

Writes JSONL files of random words into a temporary folder and processes each in a new process: check and store the
examples, tokenise, reopen both, collate batches. Peak memory is the private memory of the process and its workers,
above that of Python and the libraries; pages of memory-mapped files are not counted. The time to the first step is that
of train.py backbone=tiny train.steps=1, without and with a cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()

from breviary.runtime.files import write_json
from breviary.runtime.spelling import command, next_line

SCHEMA = 1
PHASES = ("store", "tokenise", "open_examples", "open_tokens", "batches")


def measure_in_process(file: Path, cache: Path, backbone: str) -> dict[str, Any]:
    """`data.store.measure.measure_file` in a new process, whose memory holds nothing else."""
    words = [sys.executable, __file__, "--file", str(file), "--cache", str(cache), "--backbone", backbone]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(file: str, cache: str, backbone: str) -> dict[str, Any]:
    """`measure_file` with a backbone's tokenizer."""
    quiet_libraries()
    from breviary.config.build import build_backbone
    from breviary.config.compose import compose_config
    from data.store.measure import measure_file

    return measure_file(file, cache, build_backbone(compose_config("train", [f"backbone={backbone}"])).tokenizer())


def measure_start(folder: Path) -> dict[str, float]:
    """Seconds of train.py until the line of its first step, and CPU seconds of the whole call."""
    words = ["backbone=tiny", "train.steps=1", "train.log_every=1", "train.eval_examples=0"]
    words += [f"paths.{name}={folder / name}" for name in ("outputs", "cache")]
    begin, before = time.perf_counter(), os.times()
    with subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seconds = next(time.perf_counter() - begin for line in process.stdout if line.startswith("step 1/1"))
        process.stdout.read()
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2)}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[25, 100, 400], help="sizes of the files")
    parser.add_argument("--words", type=int, default=1500, help="words of a context")
    parser.add_argument("--backbone", default="tiny", help="a YAML of configs/backbone, whose tokenizer is used")
    parser.add_argument("--starts", type=int, default=2, help="starts of train.py; the first finds no tokens on disk")
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--file", help=argparse.SUPPRESS)  # of a process that measures one file
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures size by size, then the starts; prints a line for each and writes one JSON file."""
    args = build_parser().parse_args(arguments)
    if args.file:
        print(json.dumps(measure_here(args.file, args.cache, args.backbone)))
        return
    from data.store.measure import write_lines

    result: dict[str, Any] = {"schema": SCHEMA, "backbone": args.backbone, "words": args.words, "cpus": os.cpu_count()}
    result |= {"files": [], "starts": []}
    with tempfile.TemporaryDirectory(prefix="data-loading-") as folder:
        for size in args.megabytes:
            file = Path(folder) / "lines.jsonl"
            lines = write_lines(file, size, args.words)
            row = {"megabytes": size, "lines": lines}
            row |= measure_in_process(file, Path(folder) / f"cache-{size:g}", args.backbone)
            result["files"].append(row)
            print(describe(row), flush=True)
            if args.output:
                write_json(args.output, result)
        for number in range(args.starts):
            result["starts"].append(measure_start(Path(folder)))
            print(f"start {number + 1}: {result['starts'][-1]}", flush=True)
    if args.output:
        write_json(args.output, result)
    print(next_line(command("train.py", "backbone=tiny")))


def describe(row: dict[str, Any]) -> str:
    """One line of a file."""
    phases = ", ".join(f"{name} {row[name]['seconds']:.1f} s {row[name]['peak_mb']:.0f} MB" for name in PHASES)
    speed = row["lines"] / row["tokenise"]["cpu_seconds"]
    return f"{row['megabytes']:g} MB, {row['lines']} lines, {speed:.0f} lines a CPU second tokenised; {phases}"


if __name__ == "__main__":
    main()
