"""Exports a run as one portable folder: weights in safetensors, configuration, tokenizer, model card.

    python scripts/export.py latest --output exported/comi
    python scripts/export.py outputs/comi_facts --output exported/comi --include-backbone   # self-contained
    python scripts/export.py outputs/comi_facts --output exported/comi --merge     # self-contained, adapters merged

Without --include-backbone or --merge the folder names the backbone and its hash. Where the folder is opened, the
backbone is looked up by its hub name (of the run, or --backbone), else in ~/.cache/breviary/backbones. The folder is
opened by breviary.load_reader("DIR") in Python and evaluated by `python eval.py DIR`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import argparse
from collections.abc import Sequence

from breviary.config.cli.run_names import FORMS, find_run
from breviary.config.errors import cli_errors
from breviary.evaluation.resolve import CHECKPOINTS
from breviary.runtime.spelling import command, next_line
from breviary.serving.export import ExportOptions, ExportSource, export_run


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help=FORMS)
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder to write; must not exist")
    parser.add_argument("--checkpoint", choices=tuple(CHECKPOINTS), default="best", help="which checkpoint of the run")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--include-backbone", action="store_true", help="add the backbone's weights unchanged")
    form.add_argument(
        "--merge",
        action="store_true",
        help="add the backbone with the trained decoder weights merged into it, rounded to its dtype",
    )
    parser.add_argument("--backbone", metavar="NAME", help="hub name of the backbone, where the run has a folder")
    parser.add_argument("--license", metavar="NAME", help="licence of the backbone, where its folder does not state it")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    options = ExportOptions(args.include_backbone, args.merge, args.backbone, args.license)
    with cli_errors():
        source = ExportSource.open(str(find_run(args.run)), args.checkpoint, args.output, args.merge)
        size = export_run(source, Path(args.output), options)
    print(f"{args.output}: {size / 2**20:.1f} MiB, {options.contents(source.backbone.dtype)}")
    print(f"open it with breviary.load_reader({str(args.output)!r})")
    print(next_line(command("eval.py", args.output)))


if __name__ == "__main__":
    main()
