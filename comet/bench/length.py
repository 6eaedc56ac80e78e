"""Time and memory of CoMeT over the length of the text, against the plain backbone with its key/value cache."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator
from rich.console import Console
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from breviary.decoding.state import DecodingState
from breviary.evaluation.table import TABLE_WIDTH, print_block
from breviary.evaluation.timing import peak_resident_bytes, reset_peak_memory
from comet.inference.stream import Stream
from comet.model import Comet

MIB = 2**20
DECODED = 16  # tokens decoded after each length
M_MMAP_THRESHOLD = -3  # parameter of glibc's mallopt: bytes from which a block is mapped separately
HEADER = (
    "reader",
    "tokens",
    "chunks",
    "read s",
    "tokens/s",
    "peak MiB",
    "tensors MiB",
    "state MiB",
    "held MiB",
    "ms/token",
)
COLOURS = {"comet": "#1f6f8b", "plain": "#c8553d"}


def map_tensors_separately() -> None:
    """Maps blocks of 16 KiB and more separately, so that freed tensors return their pages at once (Linux).

    Otherwise the peak grows with the fragmentation of the heap.
    """
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**14)


def measure_comet(reader: Comet, length: int) -> dict[str, Any]:
    """One row: a random text of `length` tokens, read chunk by chunk, then continued."""
    stream, c = Stream(reader, 1), reader.chunk_size
    generator = torch.Generator().manual_seed(0)
    vocabulary = reader.decoder.config.vocab_size
    before, start = reset_peak_memory(), time.perf_counter()
    for at in range(0, length, c):
        ids = torch.randint(10, vocabulary, (1, min(c, length - at)), generator=generator)
        logits = stream.read(ids, torch.tensor([ids.shape[1]]))
    read_s = time.perf_counter() - start
    token_ms = _token_ms(stream.step, logits)
    row = {
        "reader": "comet",
        "tokens": length,
        "chunks": -(-length // c),
        "read_s": read_s,
        "peak_mib": (peak_resident_bytes() - before) / MIB,
        "state_mib": stream.memory.bytes / MIB,
        "kept_mib": stream.bytes / MIB,
        "token_ms": token_ms,
    }
    ids = torch.randint(10, vocabulary, (1, c), generator=generator)
    return row | {"tensors_mib": peak_tensor_bytes(lambda: stream.read(ids, torch.tensor([c]))) / MIB}


@torch.no_grad()
def measure_plain(reader: Comet, length: int) -> dict[str, Any]:
    """One row: a random text of `length` tokens, read by the plain backbone at once, then continued."""
    stack = reader.decoder
    state = DecodingState(stack, 0)
    ids = torch.randint(10, stack.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    before, start = reset_peak_memory(), time.perf_counter()
    with stack.mixed_precision():
        positions, mask = torch.arange(length)[None], torch.ones_like(ids, dtype=torch.bool)
        logits = state.prefill_upper(stack.embed(ids), positions, mask)
        read_s = time.perf_counter() - start
        token_ms = _token_ms(state.step, logits)
    cache_mib = stack.key_value_bytes(len(stack)) * length / MIB
    return {
        "reader": "plain",
        "tokens": length,
        "chunks": 1,
        "read_s": read_s,
        "peak_mib": (peak_resident_bytes() - before) / MIB,
        "state_mib": cache_mib,
        "kept_mib": cache_mib,
        "token_ms": token_ms,
    }


def _token_ms(step: Callable[[Tensor], Tensor], logits: Tensor) -> float:
    """Median milliseconds of a greedy decoding step."""
    seconds = []
    for _ in range(DECODED):
        start = time.perf_counter()
        logits = step(logits.argmax(-1))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def peak_tensor_bytes(call: Callable[[], Any]) -> int:
    """Peak bytes of tensors allocated during `call`.

    Counted by the allocator: equal in every run, unlike resident memory.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


def print_lengths(rows: Sequence[dict[str, Any]]) -> None:
    """Prints one table."""
    print("Reading, memory and decoding over length")
    print_block(
        Console(width=TABLE_WIDTH),
        HEADER,
        [
            [
                row["reader"],
                f"{row['tokens']:,}",
                str(row["chunks"]),
                f"{row['read_s']:.1f}",
                f"{row['tokens'] / row['read_s']:,.0f}",
                f"{row['peak_mib']:.0f}",
                f"{row['tensors_mib']:.2f}" if "tensors_mib" in row else "-",
                f"{row['state_mib']:.2f}",
                f"{row['kept_mib']:.2f}",
                f"{row['token_ms']:.1f}",
            ]
            for row in rows
        ],
    )


def plot_lengths(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Plots time to read, peak memory and time of a decoded token over length."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    lengths = sorted({row["tokens"] for row in rows})
    titles = {
        "read_s": "reading, s",
        "peak_mib": "peak memory above the weights, MiB",
        "token_ms": "a decoded token, ms",
    }
    for axis, (key, title) in zip(axes, titles.items()):
        for name, colour in COLOURS.items():
            own = [row for row in rows if row["reader"] == name]
            axis.plot([row["tokens"] for row in own], [row[key] for row in own], "o-", color=colour, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens read", title=title)
        axis.set_xticks(lengths, [f"{tokens // 1024}k" for tokens in lengths], minor=False)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.grid(alpha=0.3)
    axes[2].set(yscale="linear", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)
