"""Draws the figures of README.md: overview.png from committed results, and join.svg, which shows no measurement.

    python scripts/readme_figure.py
    python scripts/readme_figure.py --output outputs/images
    python scripts/readme_figure.py --results results --output docs/images

Left: time to the first token against context length (the newest complete measurement of results/bench). Right: F1
against memory size on HotpotQA after equal training (results/ram_small). The drawn numbers are written as CSV beside
the figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, require_checkout

require_checkout()

from breviary.config.errors import cli_errors
from breviary.report.figures import COLOURS
from breviary.report.join_figure import write_join_figure
from breviary.report.readme_figure import Curve, Mark, quality_rows, speed_rows, write_figure
from breviary.runtime.spelling import command, next_line

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
BACKBONE = "smollm2_135m"  # of both panels
MARKS = {  # label of a reader: file in results/ram_small, style
    "full context": Mark("full_context", BLACK, "*", offset=(-9, 10)),
    "RAM + COMI 4x": Mark("ram_comi_depth_4x", PURPLE, "D", offset=(8, 18), shift=1.06),
    "RAM 4x": Mark("depth_4x_no_contrastive", BLUE, "o", offset=(-6, 44), shift=0.96),
    "RAM 8x": Mark("depth_8x_no_contrastive", BLUE, "o", offset=(-8, 9)),
    "RAM, skims only": Mark("no_contrastive_ram_skim_all", BLUE, "o", offset=(8, 9)),
    "COMI 4x": Mark("comi_depth_4x", RED, "s", offset=(16, 5), shift=1.1),
    "mean pooling 4x": Mark("mean_pool_depth_4x", GREEN, "^", offset=(9, 2), shift=1.22),
    "no context": Mark("no_context", "0.35", ""),
}
CURVES = {  # label of a reader: its name in results/bench, style
    "RAM 8x": Curve("ram-depth", BLUE, "o"),
    "mean pooling 8x": Curve("mean_pool-depth", GREEN, "^"),
    "COMI 8x": Curve("comi-depth", RED, "s"),
    "CoMeT": Curve("comet", SKY, "P", ratio=None),
    "ICAE 8x": Curve("icae", ORANGE, "v"),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of committed results")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder of the figures")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; exit code 2 where a result is missing or not comparable."""
    given = build_parser().parse_args(arguments)
    with cli_errors():
        speed = speed_rows(given.results / "bench", CURVES, BACKBONE)
        quality = quality_rows(given.results / "ram_small", MARKS)
        write_figure(speed, quality, CURVES, MARKS, given.output / "overview.png")
        write_join_figure(given.output / "join.svg")
    print(next_line(command("scripts/check_links.py")))


if __name__ == "__main__":
    main()
