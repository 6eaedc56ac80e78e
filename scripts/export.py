"""Exports a run as one portable folder: weights in safetensors, configuration, tokenizer, model card.

    python scripts/export.py latest --output exported/comi
    python scripts/export.py outputs/comi_facts --output exported/comi --include-backbone   # self-contained
    python scripts/export.py outputs/comi_facts --output exported/comi --merge     # self-contained, adapters merged
    python scripts/export.py outputs/comi_facts --output exported/comi --push me/comi  # and uploads it to the hub
    python scripts/export.py outputs/comi_facts --output exported/vllm --prompt-embeds questions.jsonl   # for vLLM

Without --include-backbone or --merge the folder names the backbone and its hash. Where the folder is opened, the
backbone is looked up by its hub name (of the run, or --backbone), else in ~/.cache/breviary/backbones. The folder is
opened by breviary.load_reader("DIR") in Python and evaluated by `python eval.py DIR`.

--prompt-embeds FILE compresses the contexts of a JSONL file ({"context": ..., "question": ...} a line) for a server
that takes prompts as embeddings. The folder holds the merged decoder, a request to vLLM for each line, and a README
with the commands; the memory must join at the input. Only --push uploads: into a private repository where none exists.
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
from breviary.config.errors import cli_errors, raise_problems
from breviary.evaluation.resolve import CHECKPOINTS
from breviary.runtime.spelling import command, next_line
from breviary.serving.export import ExportOptions, ExportSource, export_run
from breviary.serving.export_prompts import REQUESTS, check_embeds, export_prompts, read_prompts
from breviary.serving.push import push_folder, push_problems


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
    form.add_argument("--prompt-embeds", metavar="FILE", help="a JSONL file: prompts as embeddings, for vLLM")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to this model repository of the hub")
    parser.add_argument("--backbone", metavar="NAME", help="hub name of the backbone, where the run has a folder")
    parser.add_argument("--license", metavar="NAME", help="licence of the backbone, where its folder does not state it")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line; exits with code 2 on a user error."""
    args = build_parser().parse_args(arguments)
    options = ExportOptions(args.include_backbone, args.merge, args.backbone, args.license)
    with cli_errors():
        raise_problems(push_problems(args.push))
        source = ExportSource.open(str(find_run(args.run)), args.checkpoint, args.output, args.merge)
        if args.prompt_embeds:
            check_embeds(source)
            size = export_prompts(source, Path(args.output), read_prompts(args.prompt_embeds))
        else:
            size = export_run(source, Path(args.output), options)
        pushed = push_folder(args.output, args.push) if args.push else None
    contents = "merged decoder and prompts" if args.prompt_embeds else options.contents(source.backbone.dtype)
    print(f"{args.output}: {size / 2**20:.1f} MiB, {contents}")
    if pushed:
        print(pushed)
    if args.prompt_embeds:
        print(f"its README.md has the commands of vLLM; {REQUESTS} has a request a line")
    else:
        print(f"open it with breviary.load_reader({str(args.output)!r})")
    print(next_line(command("eval.py", args.run if args.prompt_embeds else args.output)))


if __name__ == "__main__":
    main()
