"""Speed of a method's compression against its floor, in the same run.

    python scripts/bench/compress.py [--output results/bench/compress.json]
    python scripts/bench/compress.py --compressor ram --lengths 4096 16384 --ratios 4 8

The whole compression (context and question read, groups chosen, tokens merged, slots aligned) against the bare
forward of the same truncated encoder on the same tokens in the same rows (RAM: segments, the question by itself),
keeping the same key/value cache where one is kept. Then one training step against a plain step of the whole backbone
on the same number of tokens. Time: median of the runs' pairwise ratios, floor and ours in turn. Memory: peak resident
memory above what is resident before the call (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from breviary.backbones.stack import CapturingCache
from breviary.config.build import build_backbone, build_reader
from breviary.contract import Batch, Context, Question, Tokens
from breviary.readers.compressed import CompressedReader
from breviary.runs.environment import environment
from breviary.runtime.files import write_json

QUESTION, ANSWER = 24, 8  # tokens


def main() -> None:
    """Runs both benchmarks, prints one table each, writes one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2_135m", help="a YAML of configs/backbone")
    parser.add_argument("--compressor", default="comi", help="a YAML of configs/compressor that merges states")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens in all, question included")
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", default=None, help="JSON file")
    args = parser.parse_args()
    quiet_libraries()
    joins = ("input", "depth")
    measured: dict[str, Any] = {
        "schema": 1,
        "runs": args.runs,
        "dtype": args.dtype,
        "backbone": args.backbone,
        "compressor": args.compressor,
        "compression": [],
        "training_step": [],
        "environment": environment(),
    }

    def keep(part: str, row: dict[str, Any]) -> None:
        measured[part].append(row)
        if args.output:
            write_json(args.output, measured)  # after every row: a benchmark cut short keeps what it has

    for join, length, ratio in itertools.product(joins, args.lengths, args.ratios):
        keep("compression", compression(args, join, length, ratio))
    show("Compression against the bare truncated encoder", measured["compression"])
    for join in joins:
        keep("training_step", training_step(args, join, args.lengths[0]))
    show("Training step (forward and backward) against a plain step on as many tokens", measured["training_step"])


def compression(args: argparse.Namespace, join: str, length: int, ratio: int) -> dict[str, Any]:
    """One row: time and peak memory of a compression and of its floor."""
    reader = reader_for(
        args,
        args.compressor,
        f"compressor.join={join}",
        f"compressor.ratio={ratio}",
        "decoder.train=frozen",
        "compressor.encoder_train=frozen",
    ).eval()
    batch = random_batch(reader, length, 1, answer=0)
    compressor, reading = reader.compressor, reader.compressor.context_encoder
    stack = reader.decoder if join == "depth" else reading.encoder
    layers, alone = range(reading.layers), reading.question == "alone"
    rows = [torch.cat([batch.context.ids, batch.query.ids], 1)]
    if alone or reading.segment_size < length:  # the last segment is padded, as it is when a batch is read
        short = -batch.context.ids.shape[1] % reading.segment_size if reading.segment_size < length else 0
        context = torch.nn.functional.pad(batch.context.ids, (0, short))
        rows = [context.view(-1, min(reading.segment_size, context.shape[1])), batch.query.ids]

    def floor() -> Any:
        cache = CapturingCache() if join == "input" and not alone else None
        return [
            stack.norm(stack.run(stack.embed(ids), layers, torch.arange(ids.shape[1]).expand_as(ids), cache=cache))
            for ids in rows
        ], cache

    def ours() -> Any:
        encoded = compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
        states = stack.embed(batch.query.ids)
        if join == "depth":  # the reader reads the question through the same layers, once
            positions = batch.context.lengths[:, None] + torch.arange(QUESTION)[None]
            states = stack.run(states, layers, positions)
        return compressor.compress(
            encoded, Question(batch.query.ids, batch.query.mask, states, batch.query.mask)
        ), encoded

    with torch.no_grad(), reader.precision():
        return {"join": join, "tokens": length, "ratio": ratio, **compare(floor, ours, args.runs)}


def training_step(args: argparse.Namespace, join: str, length: int) -> dict[str, Any]:
    """One row: a training step at 4x and one of the whole backbone on the same tokens, LoRA in both."""
    readers = [
        reader_for(args, "full_context"),
        reader_for(args, args.compressor, f"compressor.join={join}", "compressor.ratio=4"),
    ]
    batch = random_batch(readers[0], length, 1, answer=ANSWER)

    def step(reader: CompressedReader) -> Callable[[], None]:
        def run() -> None:
            reader.zero_grad()
            output = reader.loss(batch)
            (output.nll.sum() / output.tokens.sum()).backward()

        return run

    return {"join": join, "tokens": length, "ratio": 4, **compare(step(readers[0]), step(readers[1]), args.runs)}


def reader_for(args: argparse.Namespace, compressor: str, *overrides: str) -> CompressedReader:
    """A reader on the benchmark's backbone."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(
            "train",
            [f"compressor={compressor}", f"backbone={args.backbone}", f"backbone.dtype={args.dtype}", *overrides],
        )
    backbone = build_backbone(cfg)
    problems = backbone.problems()
    if problems:
        sys.exit("error: " + "\n".join(problems))
    return build_reader(cfg, backbone, backbone.tokenizer())


def random_batch(reader: CompressedReader, length: int, rows: int, answer: int) -> Batch:
    """Random tokens: a context that fills `length` together with question (and answer), its first 100 marked as gold."""
    generator = torch.Generator().manual_seed(0)

    def tokens(width: int) -> Tokens:
        ids = torch.randint(10, reader.decoder.config.vocab_size, (rows, width), generator=generator)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    question, context = tokens(QUESTION), tokens(length - QUESTION - answer)
    evidence = torch.arange(context.ids.shape[1]).expand_as(context.ids) < 100
    return Batch(tokens(0), context, question, question, tokens(answer), evidence, None, [None] * rows)


def compare(floor: Callable[[], Any], ours: Callable[[], Any], runs: int) -> dict[str, float]:
    """Medians in seconds and MiB, and ours / floor; floor and ours run in turn, after one warm-up each."""
    floor(), ours()
    seconds: dict[str, list[float]] = {"floor": [], "ours": []}
    peaks: dict[str, list[float]] = {"floor": [], "ours": []}
    for _ in range(runs):
        for name, call in (("floor", floor), ("ours", ours)):
            before = reset_peak()
            start = time.perf_counter()
            kept = call()
            seconds[name].append(time.perf_counter() - start)
            peaks[name].append((status("VmHWM") - before) / 2**20)
            del kept
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["floor"])]
    peak = {name: statistics.median(values) for name, values in peaks.items()}
    return {
        "floor_s": statistics.median(seconds["floor"]),
        "ours_s": statistics.median(seconds["ours"]),
        "time_ratio": statistics.median(ratios),
        "floor_mib": peak["floor"],
        "ours_mib": peak["ours"],
        "memory_ratio": peak["ours"] / peak["floor"],
    }


def reset_peak() -> int:
    """Hands freed memory back and starts a new peak; gives the resident bytes."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints the rows."""
    table = Table(title=title)
    for column in ("join", "tokens", "ratio", "floor s", "ours s", "time", "floor MiB", "ours MiB", "memory"):
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            r["join"],
            str(r["tokens"]),
            str(r["ratio"]),
            f"{r['floor_s']:.3f}",
            f"{r['ours_s']:.3f}",
            f"{r['time_ratio']:.2f}x",
            f"{r['floor_mib']:.0f}",
            f"{r['ours_mib']:.0f}",
            f"{r['memory_ratio']:.2f}x",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
