"""CoMeT over the length of the text: constant memory, linear time, constant decoding time; against the plain backbone.

    python scripts/bench/comet_length.py --lengths 4096 16384 65536 --output length.json
    python scripts/bench/comet_length.py --backbone smollm2_135m --keys compressor.chunk_size=512
    python scripts/bench/comet_length.py --lengths            # only the backends, at widths of Qwen3-4B and SmolLM2

Measures speed and memory only: weights are random or the plain backbone's, tokens are random. For each length: time to
read the text, peak memory of the process above the loaded weights, bytes of the state, time of a decoded token, and the
peak bytes of tensors while one more chunk is read. The plain backbone reads the same text, up to --plain-limit tokens.
Then the backends kv_prefix and scatter: two layers at the paper's chunk and memory sizes, both with block-sparse
attention; medians of alternating runs. --output is written after every row; the same command resumes an interrupted
run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.evaluation.bench.rows import MeasuredRows
from breviary.evaluation.timing import reader_from_overrides
from breviary.runtime.spelling import command, next_line
from comet.bench.backends import SHAPES, measure_backends, print_backends
from comet.bench.length import map_tensors_separately, measure_comet, measure_plain, plot_lengths, print_lengths


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a YAML of configs/backbone")
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 16384, 65536, 262144, 1048576], help="tokens")
    parser.add_argument("--plain-limit", type=int, default=16384, help="longest text of the plain backbone, in tokens")
    parser.add_argument("--keys", nargs="*", default=[], help="KEY=VALUE overrides, e.g. compressor.chunk_size=512")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each backend")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES), help="widths for the backends")
    parser.add_argument("--output", metavar="FILE", help="JSON file; the plot has the same name with .png")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints two tables, writes one JSON file and a plot beside it."""
    args = build_parser().parse_args(arguments)
    quiet_libraries()
    map_tensors_separately()
    settings = {"schema": 1, "backbone": args.backbone, "keys": args.keys}
    parts = {"lengths": ("reader", "tokens"), "backends": ("shape",)}
    with cli_errors():
        measured = MeasuredRows(args.output, settings, parts)
        measure_lengths(args, measured)
        for shape in args.shapes:
            if measured.find("backends", shape=shape) is None:
                measured.put(measure_backends(shape, args.runs), "backends")
    if args.shapes:
        print_backends(measured.of("backends"))
    print(next_line(command("scripts/bench/comet_pipeline.py")))


def measure_lengths(args: argparse.Namespace, measured: MeasuredRows) -> None:
    """Measures the missing rows of both readers, prints the table, draws the plot."""
    plain = [("plain", length, measure_plain) for length in args.lengths if length <= args.plain_limit]
    cells = [*(("comet", length, measure_comet) for length in args.lengths), *plain]
    missing = [cell for cell in cells if measured.find("lengths", reader=cell[0], tokens=cell[1]) is None]
    if missing:
        overrides = ["compressor=comet", f"backbone={args.backbone}", "decoder.train=frozen", *args.keys]
        reader = reader_from_overrides(*overrides).eval()
        measure_comet(reader, 2 * reader.chunk_size)  # warm-up
        for _, length, measure in missing:
            measured.put(measure(reader, length), "lengths")
            print(measured.of("lengths")[-1], flush=True)
    if cells:
        print_lengths(measured.of("lengths"))
        if args.output:
            plot_lengths(measured.of("lengths"), Path(args.output).with_suffix(".png"))


if __name__ == "__main__":
    main()
