"""From question to answer: time to the first token and to 32 tokens, every reader against full context in the same run.

    python scripts/bench/end_to_end.py [--lengths 2048 4096 8192] [--ratios 4 8] [--output results/bench/end_to_end.json]
    python scripts/bench/end_to_end.py --backbone tiny --keys backbone.width=256 backbone.layers=12 backbone.positions=40000 --lengths 32768

Nothing is kept from earlier questions: the context is read, compressed and answered from, one question at a time.
Weights are the plain backbone's and the tokens random: this is about speed alone, so lengths beyond the backbone's
positions may be asked. All readers of a length answer in turn, full context first, RUNS times, after each has answered
from a short context to warm up: medians of the times, and of the ratios within a turn. They share the decoder's weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from breviary.config.keys import CONFIGS
from breviary.contract import Batch, Generation, Reader
from breviary.runs.environment import environment
from breviary.runtime.device import synchronise
from breviary.runtime.files import write_json
from breviary.runtime.timing import timed_phases
from scripts.bench.compress import random_batch, reader_for
from tests.tiny import compressor_forms

TOKENS, WARM_UP = 32, 256


def main() -> None:
    """Measures length by length, prints one table, writes one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[2048, 4096, 8192], help="context and question, tokens"
    )
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--readers", nargs="+", help="such as ram-input, comi-depth (default: every compressor YAML)")
    parser.add_argument("--keys", nargs="*", default=[], help="key=value of the configuration, for every reader")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", default=None, help="JSON file")
    args = parser.parse_args()
    quiet_libraries()
    forms = {name: words for name, words in compressor_forms().items() if name != "full_context"}
    unknown = sorted(set(args.readers or []) - forms.keys())
    if unknown:
        parser.error(f"--readers: no {', '.join(unknown)}; there are: {', '.join(forms)}")
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        rows += measured(args, {name: forms[name] for name in args.readers or forms}, length)
        if args.output:  # after every length: a benchmark cut short keeps what it has
            write_json(
                args.output,
                {
                    "schema": 2,
                    "runs": args.runs,
                    "backbone": args.backbone,
                    "keys": args.keys,
                    "dtype": args.dtype,
                    "rows": rows,
                    "environment": environment(),
                },
            )
    show(rows)


def measured(args: argparse.Namespace, forms: dict[str, list[str]], length: int) -> list[dict[str, Any]]:
    """A row for each reader and ratio at one length of context and question."""
    full = reader_for(args, "full_context", "decoder.train=frozen", *args.keys).eval()
    batch = random_batch(full, length, 1, answer=0)
    readers = {("full_context", None): full}
    for name, words in forms.items():
        for ratio in args.ratios if has_ratio(words) else [None]:
            asked = [] if ratio is None else [f"compressor.ratio={ratio}"]
            reader = reader_for(
                args, words[0].partition("=")[2], *words[1:], *asked, "decoder.train=frozen", *args.keys
            ).eval()
            for weight, same in zip(reader.decoder.parameters(), full.decoder.parameters(), strict=True):
                weight.data = same.data
            readers[name, ratio] = reader
    for reader in readers.values():
        answer_seconds(reader, random_batch(full, min(length, WARM_UP), 1, answer=0))
    seconds = [{key: answer_seconds(reader, batch) for key, reader in readers.items()} for _ in range(args.runs)]
    rows = []
    for name, ratio in list(readers)[1:]:
        row = {
            "reader": name,
            "tokens": length,
            "ratio": ratio,
            "slots": int(readers[name, ratio].footprint(batch).memory_slots),
        }
        for i, tokens in enumerate((1, TOKENS)):
            ours, whole = ([turn[key][i] for turn in seconds] for key in ((name, ratio), ("full_context", None)))
            row |= {
                f"ours_{tokens}_s": statistics.median(ours),
                f"full_{tokens}_s": statistics.median(whole),
                f"speedup_{tokens}": statistics.median(b / a for a, b in zip(ours, whole)),
            }
        rows.append(row)
    return rows


def has_ratio(words: list[str]) -> bool:
    """Whether a reader is asked for so many tokens a slot: neither CoMeT nor one that keeps nothing."""
    settings = OmegaConf.load(CONFIGS / "compressor" / f"{words[0].partition('=')[2]}.yaml")
    return settings.get("ratio") is not None and settings.get("keep") != "none"


def answer_seconds(reader: Reader, batch: Batch) -> tuple[float, float]:
    """Seconds until the first token and until all are there."""
    start = time.perf_counter()
    with timed_phases() as phases:
        reader.answer(batch, Generation(max_new_tokens=TOKENS, min_new_tokens=TOKENS))
    synchronise()
    taken = time.perf_counter() - start
    return taken - phases["decode"], taken


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the rows."""
    table = Table(title="End to end against full context: above 1x is faster", title_justify="left")
    for column in (
        "tokens",
        "reader",
        "ratio",
        "slots",
        "first token s",
        "full s",
        "speedup",
        "32 tokens s",
        "full s",
        "speedup",
    ):
        table.add_column(column, justify="left" if column == "reader" else "right", no_wrap=column == "reader")
    for r in rows:
        table.add_row(
            str(r["tokens"]),
            r["reader"],
            str(r["ratio"] or "-"),
            str(r["slots"]),
            f"{r['ours_1_s']:.2f}",
            f"{r['full_1_s']:.2f}",
            f"{r['speedup_1']:.2f}x",
            f"{r['ours_32_s']:.2f}",
            f"{r['full_32_s']:.2f}",
            f"{r['speedup_32']:.2f}x",
        )
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    with torch.no_grad():
        main()
