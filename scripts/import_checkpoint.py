"""Turns the authors' released weights into a run folder for eval.py.

    python scripts/import_checkpoint.py --format comi --source comi.safetensors --backbone DIR --output runs/comi
    python scripts/import_checkpoint.py --format ram --source ram.bin --backbone DIR --output runs/ram --quirks
    python scripts/import_checkpoint.py --format comet --source CHECKPOINT_DIR --backbone DIR --output runs/comet
    python eval.py runs/comi dataset=jsonl dataset.test=FILE.jsonl

SOURCE is a .safetensors or .bin file, or a folder with one (or shards and their index); for comet the released folder
with config.json. PyTorch files are loaded with weights_only=True. The backbone is the model that the checkpoint was
trained from, a folder or a hub name. It provides the tokenizer and the frozen weights. Every key of SOURCE becomes a
weight, or is listed with the reason why not.

Settings that no file contains are options with the published values as defaults. The run's config.yaml contains all
settings; prompt and generation come from configs/experiment/{comi,ram,comet}_nq.yaml.

--quirks reproduces the numerical behaviour of the released code; the default is this framework's, see the method's
README. eval.py compressor.quirks=true or false changes it for the same run.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from breviary.backbones.pretrained import DTYPES
from breviary.config.errors import cli_errors
from breviary.runs.importing import RECORD, import_checkpoint, option_name
from breviary.runs.released import ReleasedFormat
from breviary.runtime.spelling import command, next_line
from comet.released import ReleasedCoMeT
from comi.released import ReleasedCOMI
from ram.released import ReleasedRAM

FORMATS: dict[str, type[ReleasedFormat]] = {"comi": ReleasedCOMI, "ram": ReleasedRAM, "comet": ReleasedCoMeT}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--source", required=True, metavar="PATH", help="the authors' file or folder")
    parser.add_argument("--backbone", required=True, metavar="DIR", help="the model that it was trained from")
    parser.add_argument("--output", required=True, metavar="DIR", help="the run folder, new or empty")
    parser.add_argument("--quirks", action="store_true", help="reproduce the released code's numerical behaviour")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the backbone's own")
    parser.add_argument("--lora-alpha", type=int, metavar="A", help="comi with LoRA")
    parser.add_argument("--ratio", type=int, metavar="R", help="context tokens per slot (comi), 1 / kept share (ram)")
    parser.add_argument("--segment-size", type=int, metavar="N", help="tokens of a segment (comi, ram)")
    parser.add_argument("--alignment", choices=("lsa", "linear", "transformer_linear"), help="(comi, ram)")
    parser.epilog = "defaults: " + "; ".join(f"{name}: {describe(form.defaults)}" for name, form in FORMATS.items())
    return parser


def describe(defaults: Mapping[str, Any]) -> str:
    """The defaults as written on the command line."""
    options = " ".join(f"{option_name(key)} {value}" for key, value in defaults.items())
    return options or "none, config.json contains all settings"


def main(arguments: Sequence[str] | None = None) -> None:
    """Imports the checkpoint and prints the keys that are not weights; exits with code 2 on wrong input."""
    options = vars(build_parser().parse_args(arguments))
    name = options.pop("format")
    with cli_errors():
        folder, unused = import_checkpoint(FORMATS, name, **options)
    keys_by_reason = defaultdict(list)
    for key, reason in unused.items():
        keys_by_reason[reason].append(key)
    for reason, keys in keys_by_reason.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        print(f"not a weight of the reader: {keys[0]}{more}: {reason}")
    print(f"ready: {folder}; {RECORD} in it records the source")
    print(next_line(command("eval.py", folder)))


if __name__ == "__main__":
    main()
