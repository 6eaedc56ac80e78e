"""CoMeT over length: constant memory, linear time, flat decoding, against the plain backbone with its cache.

    python scripts/bench/comet_length.py [--backbone tiny] [--lengths 4096 16384 65536 262144 1048576] [--output FILE.json]
    python scripts/bench/comet_length.py --lengths              only the two backends, at the widths of Qwen3-4B and SmolLM2

Weights are random or the plain backbone's, tokens are random: this is about speed and memory alone. For every length: time
to read it, peak memory of the process above the loaded weights, bytes of the state, time of a token written after it, and
to the byte the most that tensors take while one more chunk is read. The plain backbone reads the same until --plain-limit
tokens. Then kv_prefix against scatter, two layers at the paper's chunk and memory
sizes, both skipping what a block of queries cannot see; medians of runs taken in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from hydra import compose, initialize_config_dir
from matplotlib.ticker import LogFormatter, NullLocator
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from breviary.backbones.attention import BLOCKWISE
from breviary.backbones.stack import Stack
from breviary.config.build import build_backbone, build_reader
from breviary.decoding.state import DecodingState
from breviary.runs.environment import environment
from breviary.runtime.files import write_json
from comet.layers import MemoryLayers
from comet.layout import chunk_layout
from comet.memory import MemoryState
from comet.model import Comet
from comet.inference.stream import Stream
from scripts.bench.compress import reset_peak, status

WRITTEN = 16  # tokens after each length
M_MMAP_THRESHOLD = -3  # of glibc's mallopt: bytes from which a block is mapped by itself
SHAPES = {
    "qwen3_4b": dict(
        hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    ),
    "smollm2_135m": dict(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    ),
}
PUBLISHED = dict(c=2048, s=8, G=512, B=2048)


def main() -> None:
    """Measures, prints two tables, writes one JSON and a plot beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a YAML of configs/backbone")
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 16384, 65536, 262144, 1048576])
    parser.add_argument("--plain-limit", type=int, default=16384, help="longest text of the plain backbone, tokens")
    parser.add_argument(
        "--keys", nargs="*", default=[], help="key=value of the configuration, e.g. compressor.chunk_size=512"
    )
    parser.add_argument("--runs", type=int, default=5, help="of the two backends")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES), help="widths of the two backends")
    parser.add_argument("--output", default=None, help="JSON file; the plot gets its name")
    args = parser.parse_args()
    quiet_libraries()
    # Tensors get pages of their own, which go back when they are freed: else the peak grows with the allocator's holes.
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**14)
    measured: dict[str, Any] = {
        "schema": 1,
        "backbone": args.backbone,
        "keys": args.keys,
        "lengths": [],
        "backends": [],
        "environment": environment(),
    }

    def keep(part: str, row: dict[str, Any]) -> None:
        measured[part].append(row)
        print(row, flush=True)
        if args.output:
            write_json(args.output, measured)

    if args.lengths:
        reader = comet_reader(args)
        read_comet(reader, 2 * reader.chunk_size)  # for warming up
        for length in args.lengths:
            keep("lengths", read_comet(reader, length))
        for length in (n for n in args.lengths if n <= args.plain_limit):
            keep("lengths", read_plain(reader, length))
        show_lengths(measured["lengths"])
        if args.output:
            plot(measured["lengths"], Path(args.output).with_suffix(".png"))
    for shape in args.shapes:
        keep("backends", backends(shape, args.runs))
    if args.shapes:
        show_backends(measured["backends"])


def comet_reader(args: argparse.Namespace) -> Comet:
    """The reader on the benchmark's backbone."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", ["compressor=comet", f"backbone={args.backbone}", "decoder.train=frozen", *args.keys])
    backbone = build_backbone(cfg)
    return build_reader(cfg, backbone, backbone.tokenizer()).eval()


def read_comet(reader: Comet, length: int) -> dict[str, Any]:
    """One row: a text read chunk by chunk, then written on."""
    stream, c = Stream(reader, 1), reader.chunk_size
    generator = torch.Generator().manual_seed(0)
    before, start = reset_peak(), time.perf_counter()
    for at in range(0, length, c):
        ids = torch.randint(10, reader.decoder.config.vocab_size, (1, min(c, length - at)), generator=generator)
        logits = stream.read(ids, torch.tensor([ids.shape[1]]))
    read_s = time.perf_counter() - start
    written = []
    for _ in range(WRITTEN):
        start = time.perf_counter()
        logits = stream.step(logits.argmax(-1))
        written.append(time.perf_counter() - start)
    row = {
        "reader": "comet",
        "tokens": length,
        "chunks": -(-length // c),
        "read_s": read_s,
        "peak_mib": (status("VmHWM") - before) / 2**20,
        "state_mib": stream.memory.bytes / 2**20,
        "kept_mib": stream.bytes / 2**20,
        "token_ms": 1000 * statistics.median(written),
    }
    ids = torch.randint(10, reader.decoder.config.vocab_size, (1, c), generator=generator)
    return row | {"tensors_mib": tensor_peak(lambda: stream.read(ids, torch.tensor([c]))) / 2**20}


def tensor_peak(call: Callable[[], Any]) -> int:
    """Bytes that tensors take at most while `call` runs, above those before it; as the allocator counts them, so the same
    in every run, which the process's resident memory is not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


@torch.no_grad()
def read_plain(reader: Comet, length: int) -> dict[str, Any]:
    """One row: the same text read by the plain backbone with its key/value cache."""
    stack = reader.decoder
    stream = DecodingState(stack, 0)
    ids = torch.randint(10, stack.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    before, start = reset_peak(), time.perf_counter()
    with stack.mixed_precision():
        logits = stream.prefill_upper(
            stack.embed(ids), torch.arange(length)[None], torch.ones_like(ids, dtype=torch.bool)
        )
        read_s = time.perf_counter() - start
        written = []
        for _ in range(WRITTEN):
            start = time.perf_counter()
            logits = stream.step(logits.argmax(-1))
            written.append(time.perf_counter() - start)
    kept = stack.key_value_bytes(len(stack)) * length / 2**20
    return {
        "reader": "plain",
        "tokens": length,
        "chunks": 1,
        "read_s": read_s,
        "peak_mib": (status("VmHWM") - before) / 2**20,
        "state_mib": kept,
        "kept_mib": kept,
        "token_ms": 1000 * statistics.median(written),
    }


@torch.no_grad()
def backends(shape: str, runs: int) -> dict[str, Any]:
    """One row: a steady chunk through two random layers of this shape, memory full, both backends in turn."""
    config = AutoConfig.for_model(
        "qwen3", vocab_size=512, num_hidden_layers=2, max_position_embeddings=8192, **SHAPES[shape]
    )
    config._attn_implementation = BLOCKWISE
    torch.manual_seed(0)
    stack = Stack(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)).eval()
    stack.config.dtype = torch.bfloat16
    c, s, G, B = PUBLISHED.values()
    ids, closes, stride = torch.randint(0, 512, (1, c)), torch.tensor([True]), torch.tensor([s])
    layout = chunk_layout(torch.ones_like(ids, dtype=torch.bool), 0 * stride, closes, stride, c // s, G)
    calls = {}
    for backend in ("scatter", "kv_prefix"):
        torch.manual_seed(1)
        nets = MemoryLayers(stack, G, B, backend)
        embeds, memory = nets.embeds(stack.embed(ids), layout), MemoryState.fresh(1, ids.device)
        for _ in range(B // (c // s)):  # until the queue is full
            _, memory, _ = nets.run(stack, embeds, layout, memory, closes)
        calls[backend] = lambda nets=nets, embeds=embeds, memory=memory: nets.run(stack, embeds, layout, memory, closes)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if run:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["scatter"], seconds["kv_prefix"])]
    return {
        "shape": shape,
        **PUBLISHED,
        **{f"{name}_s": statistics.median(x) for name, x in seconds.items()},
        "speedup": statistics.median(ratios),
        "bound": multiplications_ratio(SHAPES[shape]),
    }


def multiplications_ratio(shape: dict[str, int]) -> float:
    """Multiplications of scatter by those of kv_prefix in a steady chunk, masked ones left out of both."""
    c, s, G, B = PUBLISHED.values()
    D, kv = shape["hidden_size"], shape["num_key_value_heads"] * shape["head_dim"]
    q = shape["num_attention_heads"] * shape["head_dim"]
    seats, own = G + B, c + c // s + G
    row = 2 * D * q + 2 * D * kv + 3 * D * shape["intermediate_size"]  # linear layers
    causal = lambda n: n * (n + 1) // 2 * 2 * q  # scores and sums over n rows
    scatter = (seats + own) * row + causal(seats + own)
    prefix = own * row + seats * 2 * D * kv + causal(own) + own * seats * 2 * q
    return scatter / prefix


def show_lengths(rows: list[dict[str, Any]]) -> None:
    """Prints the rows by length."""
    table = Table(title="Reading, memory and writing over length", title_justify="left")
    for column in (
        "reader",
        "tokens",
        "chunks",
        "read s",
        "tokens/s",
        "peak MiB",
        "tensors MiB",
        "state MiB",
        "kept MiB",
        "ms/token",
    ):
        table.add_column(column, justify="left" if column == "reader" else "right")
    for r in rows:
        table.add_row(
            r["reader"],
            f"{r['tokens']:,}",
            str(r["chunks"]),
            f"{r['read_s']:.1f}",
            f"{r['tokens'] / r['read_s']:,.0f}",
            f"{r['peak_mib']:.0f}",
            f"{r['tensors_mib']:.2f}" if "tensors_mib" in r else "-",
            f"{r['state_mib']:.2f}",
            f"{r['kept_mib']:.2f}",
            f"{r['token_ms']:.1f}",
        )
    Console(width=max(Console().width, 110)).print(table)


def show_backends(rows: list[dict[str, Any]]) -> None:
    """Prints the rows by shape."""
    table = Table(title="A steady chunk, two layers: scatter / kv_prefix", title_justify="left")
    for column in ("shape", "scatter s", "kv_prefix s", "speedup", "by multiplications"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for r in rows:
        table.add_row(
            r["shape"], f"{r['scatter_s']:.3f}", f"{r['kv_prefix_s']:.3f}", f"{r['speedup']:.2f}x", f"{r['bound']:.2f}x"
        )
    Console(width=max(Console().width, 110)).print(table)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Time to read, peak memory and time of a written token against length."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    lengths = sorted({row["tokens"] for row in rows})
    for axis, key, title in zip(
        axes,
        ("read_s", "peak_mib", "token_ms"),
        ("reading, s", "peak memory above the weights, MiB", "a written token, ms"),
    ):
        for name, colour in (("comet", "#1f6f8b"), ("plain", "#c8553d")):
            own = [row for row in rows if row["reader"] == name]
            axis.plot([r["tokens"] for r in own], [r[key] for r in own], "o-", color=colour, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens read", title=title)
        axis.set_xticks(lengths, [f"{tokens // 1024}k" for tokens in lengths], minor=False)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.grid(alpha=0.3)
    axes[2].set(yscale="linear", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
