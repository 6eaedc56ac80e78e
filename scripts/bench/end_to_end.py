"""From question to answer: time to the first token and to 32 tokens, every reader against full context in the same run.

    python scripts/bench/end_to_end.py [--lengths 2048 4096 8192] [--ratios 4 8] [--output results/bench/end_to_end.json]

Nothing is kept from earlier questions: the context is read, compressed and answered from, one question at a time.
Weights are the plain backbone's and the tokens random: this is about speed alone, so lengths beyond the backbone's
positions may be asked. Medians of the runs and of the runs' pairwise ratios, readers in turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime import quiet_libraries, require_checkout

require_checkout()

import torch
from rich.console import Console
from rich.table import Table

from breviary.contract import Batch, Generation, Reader
from breviary.results import environment, write_json
from breviary.runtime import synchronise
from breviary.testing import compressor_forms
from scripts.bench.compress import random_batch, reader_for

TOKENS = 32


def main() -> None:
    """Measures length by length, prints one table, writes one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192], help="context and question, tokens")
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--readers", nargs="+", help="such as ram-input, comi-depth (default: every compressor YAML)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", default=None, help="JSON file")
    args = parser.parse_args()
    quiet_libraries()
    forms = {name: words for name, words in compressor_forms().items() if name != "full_context"}
    unknown = sorted(set(args.readers or []) - forms.keys())
    if unknown:
        parser.error(f"--readers: no {', '.join(unknown)}; there are: {', '.join(forms)}")
    rows: list[dict[str, Any]] = []
    for length, name in itertools.product(args.lengths, args.readers or forms):
        for ratio in args.ratios if name != "no_context" else [None]:
            rows.append(measured(args, name, forms[name], length, ratio))
            if args.output:  # after every row: a benchmark cut short keeps what it has
                write_json(args.output, {"schema": 1, "runs": args.runs, "backbone": args.backbone, "dtype": args.dtype,
                                         "rows": rows, "environment": environment()})
    show(rows)


def measured(args: argparse.Namespace, name: str, words: list[str], length: int, ratio: int | None) -> dict[str, Any]:
    """One row: a reader and full context on the same tokens, in turn."""
    asked = [] if ratio is None else [f"compressor.ratio={ratio}"]
    full = reader_for(args, "full_context", "decoder.train=frozen").eval()
    reader = reader_for(args, words[0].partition("=")[2], *words[1:], *asked, "decoder.train=frozen").eval()
    batch = random_batch(full, length, 1, answer=0)
    seconds: dict[str, list[float]] = {"full_1": [], "full_32": [], "ours_1": [], "ours_32": []}
    for run in range(args.runs + 1):
        for who, model in (("full", full), ("ours", reader)):
            for tokens in (1, TOKENS):
                taken = answer_seconds(model, batch, tokens)
                if run:  # the first is for warming up
                    seconds[f"{who}_{tokens}"].append(taken)
    row = {"reader": name, "tokens": length, "ratio": ratio, "slots": int(reader.footprint(batch).memory_slots)}
    row |= {f"{key}_s": statistics.median(values) for key, values in seconds.items()}
    for tokens in (1, TOKENS):
        pairs = zip(seconds[f"full_{tokens}"], seconds[f"ours_{tokens}"])
        row[f"speedup_{tokens}"] = statistics.median(a / b for a, b in pairs)
    return row


def answer_seconds(reader: Reader, batch: Batch, tokens: int) -> float:
    """Seconds until so many tokens are there."""
    synchronise()
    start = time.perf_counter()
    reader.answer(batch, Generation(max_new_tokens=tokens, min_new_tokens=tokens))
    synchronise()
    return time.perf_counter() - start


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the rows."""
    table = Table(title="End to end against full context: above 1x is faster", title_justify="left")
    for column in ("tokens", "reader", "ratio", "slots", "first token s", "full s", "speedup", "32 tokens s", "full s",
                   "speedup"):
        table.add_column(column, justify="left" if column == "reader" else "right", no_wrap=column == "reader")
    for r in rows:
        table.add_row(str(r["tokens"]), r["reader"], str(r["ratio"] or "-"), str(r["slots"]),
                      f"{r['ours_1_s']:.2f}", f"{r['full_1_s']:.2f}", f"{r['speedup_1']:.2f}x",
                      f"{r['ours_32_s']:.2f}", f"{r['full_32_s']:.2f}", f"{r['speedup_32']:.2f}x")
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    with torch.no_grad():
        main()
