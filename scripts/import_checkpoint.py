"""The authors' released weights become a run folder that eval.py opens.

    python scripts/import_checkpoint.py --format comi --source comi.safetensors --backbone DIR --output RUN
    python scripts/import_checkpoint.py --format ram --source pytorch_model.bin --backbone DIR --output RUN --quirks
    python eval.py run=RUN dataset=jsonl dataset.test=FILE.jsonl

SOURCE is a .safetensors or .bin file, or a folder with one (or shards and their index); for comet the released folder
with config.json. The backbone is the model that it was trained from, a folder or a name of the hub: it gives the
tokenizer, and weights that were frozen. Every key of the source becomes a weight, or is listed with the reason why not.
What no file holds is an argument whose default is the published value; all of it is written into the run's config.yaml,
prompt and generation as in configs/experiment/{comi,ram,comet}_nq.yaml. PyTorch files are read as tensors alone
(weights_only).

--quirks reproduces the released numerics; without it you get this framework's, see the method's README. The same run
takes compressor.quirks=true or false in eval.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import argparse
import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import TrainerState

from breviary.backbones.pretrained import DTYPES, Backbone
from breviary.config.build import build_reader
from breviary.config.checks import check_config
from breviary.config.errors import ConfigError
from breviary.config.keys import validate_keys
from breviary.runs.checkpoints import save_trained
from breviary.runs.folders import finish_run, write_run_metadata
from breviary.runs.released import OTHER_BACKBONE, ReleasedFile, ReleasedFormat, account, fill, listed
from breviary.runtime.files import write_json
from comet.released import ReleasedCoMeT
from comi.released import ReleasedCOMI
from ram.released import ReleasedRAM

FORMATS: dict[str, type[ReleasedFormat]] = {"comi": ReleasedCOMI, "ram": ReleasedRAM, "comet": ReleasedCoMeT}
RECORD = "imported.json"


def import_checkpoint(
    name: str,
    source: str | Path,
    path: str,
    output: str | Path,
    dtype: str | None = None,
    quirks: bool = False,
    **arguments: Any,
) -> tuple[Path, dict[str, str]]:
    """Writes the run folder `output`; gives it, and {key: what became of it} of keys that are no weight of the reader.

    name       a key of FORMATS;  source  file or folder of the authors;  path  of the backbone
    dtype      of the frozen weights and the stream; None = the backbone's own
    arguments  what the format's `defaults` name; None = the default
    Raises ValueError (ConfigError: several) with nothing written.
    """
    output = Path(output).expanduser().resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is there already; remove it, or name another folder")
    form = FORMATS[name](ReleasedFile(source))
    given = settled(form, name, arguments)
    refuse_unknown(form, given)
    backbone = named_backbone(path, dtype)
    problems = form.problems(backbone)
    if problems:
        raise ConfigError(problems)
    cfg = configuration(form, name, given, backbone, quirks)
    reader = filled(form, given, cfg, backbone)
    left_out = form.left_out(given)
    record = {
        "schema": 1,
        "format": name,
        "source": str(Path(source).expanduser().resolve()),
        "arguments": given,
        "files": {file.name: digest(file) for file in form.file.files},
        "not_weights": left_out,
    }
    write_run(output, cfg, reader, backbone, record)
    return output, left_out


def settled(form: ReleasedFormat, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The format's arguments, defaults in place of None. Raises ValueError for one that the format has not."""
    foreign = [key for key, value in arguments.items() if value is not None and key not in form.defaults]
    if foreign:
        raise ConfigError(
            f"{option(key)}: not for this file of --format {name}, which tells it or has none" for key in foreign
        )
    given = {key: default if arguments.get(key) is None else arguments[key] for key, default in form.defaults.items()}
    low = [key for key, value in given.items() if not isinstance(value, str) and value <= 0]
    if low:
        raise ConfigError(f"{option(key)} {given[key]}: must be above 0, e.g. {form.defaults[key]}" for key in low)
    return given


def refuse_unknown(form: ReleasedFormat, given: Mapping[str, Any]) -> None:
    """Raises ValueError for keys that the format does not know, naming the format that knows them all."""
    unknown = form.unknown(given)
    if not unknown:
        return
    for name, other in FORMATS.items():
        if not other(form.file).unknown(other.defaults):
            raise ValueError(
                f"{form.file.path}: a checkpoint of {other.title}, not of {form.title}; use --format {name}"
            )
    raise ValueError(listed(f"{form.file.path}: keys that no checkpoint of {form.title} has:", unknown))


def named_backbone(path: str, dtype: str | None) -> Backbone:
    """The backbone, a local folder by its full path. Raises ValueError for what is wrong with it."""
    path = str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path
    backbone = Backbone(path, dtype or "float32")
    problems = backbone.problems()
    if problems:
        raise ConfigError(problem.replace("backbone.path=", "--backbone ") for problem in problems)
    own = {value: key for key, value in DTYPES.items()}.get(backbone.config.dtype, "float32")
    return Backbone(path, dtype or own)


def configuration(
    form: ReleasedFormat, name: str, given: Mapping[str, Any], backbone: Backbone, quirks: bool
) -> DictConfig:
    """The run's configuration as train.py would write it: the published experiment, what file and arguments tell."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        # Any backbone YAML of a folder serves: its keys are set below.
        cfg = compose("train", [f"experiment={form.experiment}", "backbone=qwen3_4b", "engine=single"])
    settings = {
        "backbone.path": backbone.path,
        "backbone.dtype": backbone.dtype,
        "reader": name,
        "compressor.quirks": quirks,
        "decoder.train": form.trained()[0],
        **form.settings(given, backbone),
    }
    for key, value in settings.items():
        OmegaConf.update(cfg, key, value, merge=False)
    cfg, problems = validate_keys(cfg)
    problems += check_config(cfg, backbone)
    if problems:
        raise ConfigError(problems)
    return cfg


def filled(form: ReleasedFormat, given: Mapping[str, Any], cfg: DictConfig, backbone: Backbone) -> nn.Module:
    """The reader with the file's weights; `cfg.decoder.train` is set to the first way under which all that is frozen is
    the backbone's. Raises ValueError where there is none."""
    for mode in form.trained():
        cfg.decoder.train = mode
        reader = build_reader(cfg, backbone, backbone.tokenizer())
        changed = fill(reader, form.file, account(form, given, reader, backbone))
        if not changed:
            return reader
    raise ValueError(
        listed(
            f"{form.file.path}: frozen weights are not those of {backbone.path} (as {backbone.dtype}); "
            f"{OTHER_BACKBONE}:",
            changed,
        )
    )


def write_run(output: Path, cfg: DictConfig, reader: nn.Module, backbone: Backbone, record: dict[str, Any]) -> None:
    """The run folder, whole or not at all: as one whose training has ended, and where it came from."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temp:
        folder = Path(temp) / "run"
        checkpoint = folder / "checkpoints" / "checkpoint-0"
        write_run_metadata(folder, cfg)
        save_trained(checkpoint, reader, backbone.fingerprint)
        TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
        write_json(folder / RECORD, record)
        finish_run(folder)
        folder.replace(output)  # an empty folder gives way


def digest(file: Path) -> str:
    """sha256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; what does not suit ends with exit code 2 and a sentence each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--source", required=True, metavar="PATH", help="the authors' file or folder")
    parser.add_argument("--backbone", required=True, metavar="DIR", help="the model that it was trained from")
    parser.add_argument("--output", required=True, metavar="DIR", help="the run folder, new or empty")
    parser.add_argument("--quirks", action="store_true", help="the released numerics")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the backbone's own")
    parser.add_argument("--lora-alpha", type=int, metavar="A", help="comi with LoRA: no file holds it")
    parser.add_argument("--ratio", type=int, metavar="R", help="context tokens per slot (comi), 1 / kept share (ram)")
    parser.add_argument("--segment-size", type=int, metavar="N", help="tokens read at once (comi), of a segment (ram)")
    parser.add_argument("--alignment", choices=("lsa", "linear", "transformer_linear"), help="of vectors (comi, ram)")
    parser.epilog = "defaults: " + "; ".join(f"{name}: {describe(form.defaults)}" for name, form in FORMATS.items())
    given = vars(parser.parse_args(arguments))
    name, source, path, output = (given.pop(key) for key in ("format", "source", "backbone", "output"))
    try:
        folder, left_out = import_checkpoint(name, source, path, output, **given)
    except ValueError as error:
        parser.exit(2, "".join(f"error: {problem}\n" for problem in getattr(error, "problems", [str(error)])))
    for told, number in Counter(left_out.values()).items():
        example = next(key for key in left_out if left_out[key] == told)
        more = f" and {number - 1} more" if number > 1 else ""
        print(f"not a weight of the reader: {example}{more}: {told}")
    print(f"ready: {folder} (eval.py run={folder}); {RECORD} there says where it came from")


def describe(defaults: Mapping[str, Any]) -> str:
    """The defaults as they are written on the command line."""
    return " ".join(f"{option(key)} {value}" for key, value in defaults.items()) or "none, config.json tells"


def option(key: str) -> str:
    """An argument as it is written on the command line."""
    return f"--{key.replace('_', '-')}"


if __name__ == "__main__":
    main()
