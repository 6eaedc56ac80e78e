"""A run as one folder that opens on another machine: weights in safetensors, configuration, tokenizer, model card.

    python scripts/export.py outputs/NAME/RUN --output DIR
    python scripts/export.py outputs/NAME/RUN --output DIR --include-backbone      nothing else is needed to open it
    python scripts/export.py outputs/NAME/RUN --output DIR --merge                 likewise, adapters in its weights

Without --include-backbone or --merge the backbone is named with its hash, and looked up where the folder is opened: by
the hub name that the run or --backbone gives, else in ~/.cache/breviary/backbones. From Python:
breviary.load_reader("DIR"); `python eval.py run=DIR` evaluates it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from torch import nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import learned, merge_adapters, trained_state
from breviary.config.build import build_reader, compressor_class
from breviary.config.errors import ConfigError, collect_errors
from breviary.config.keys import CONFIGS, validate_keys
from breviary.evaluation.results import RESULTS, read_results, source_of
from breviary.evaluation.table import row
from breviary.runs.checkpoints import best_checkpoint, last_checkpoint, load_trained, read_metadata, save_weights
from breviary.runs.environment import ENVIRONMENT
from breviary.runs.folders import config_hash, load_config, write_config
from breviary.runtime.files import write_text
from breviary.serving.loading import FILES, find_backbone
from breviary.serving.model_card import card
from eval import NOT_HASHED
from scripts.get_backbone import PROVENANCE, read_provenance
from scripts.import_checkpoint import RECORD

BACKBONE = "backbone"  # folder of an included backbone
FORMS = ("--include-backbone", "--merge")


@dataclass
class Source:
    """What is exported: a run's checkpoint, with its configuration and backbone."""

    run: Path
    checkpoint: Path
    cfg: DictConfig
    backbone: Backbone | TinyBackbone

    @classmethod
    def of(cls, run: str, which: str, output: str, merge: bool = False) -> Source:
        """Raises: ValueError (ConfigError) for everything that is wrong, before any weight is loaded."""
        cfg = load_config(run)
        checkpoint = (best_checkpoint if which == "best" else last_checkpoint)(run)
        cfg, problems = validate_keys(cfg)
        backbone = collect_errors(problems, find_backbone, cfg, read_metadata(checkpoint)["backbone"], None, checkpoint)
        if read_metadata(checkpoint)["merged"] or Path(run) == checkpoint:
            problems.append(f"{run}: is an exported folder already; give a run folder")
        if merge and cfg.decoder.train == "lora" and not getattr(compressor_class(cfg), "supports_merge", True):
            problems.append(
                f"--merge: the encoder of {cfg.compressor._target_} reads with the decoder's weights without "
                "the decoder's adapters; use --include-backbone"
            )
        if Path(output).exists():
            problems.append(f"--output {output}: is there already; give another folder, or remove it")
        if problems:
            raise ConfigError(problems)
        return cls(Path(run), checkpoint, cfg, backbone)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder that train.py printed")
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder to write; must not be there yet")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which checkpoint of the run")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(FORMS[0], action="store_true", help="put the backbone's weights into the folder, as they are")
    form.add_argument(
        FORMS[1],
        action="store_true",
        help="put the backbone in, with what was trained of the decoder in its weights, rounded",
    )
    parser.add_argument("--backbone", metavar="NAME", help="hub name of the backbone, where the run has a folder")
    parser.add_argument("--license", metavar="NAME", help="licence of the backbone, where its folder does not say it")
    given = parser.parse_args(arguments)
    try:
        source = Source.of(given.run, given.checkpoint, given.output, given.merge)
        export(source, Path(given.output), given)
    except ValueError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def export(source: Source, output: Path, given: argparse.Namespace) -> None:
    """Writes the folder beside its place, then renames it: there is a whole one or none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=output.parent) as partial:
        folder = Path(partial) / "folder"
        folder.mkdir()
        cfg, stored = portable(source, given), read_metadata(source.checkpoint)["backbone"]
        tokenizer = source.backbone.tokenizer()
        tokenizer.save_pretrained(folder)
        if given.merge:
            write_merged(folder, source, tokenizer)
        else:
            # Bytes as they are: the values, and their hash, are the checkpoint's.
            fingerprint = stored
            if given.include_backbone:
                fingerprint = write_backbone(folder / BACKBONE, source.backbone, tokenizer)
            save_weights(folder, trained_state(trained_reader(source)), fingerprint)
        write_config(folder, cfg, resolve=False)
        shutil.copyfile(source.run / ENVIRONMENT, folder / ENVIRONMENT)
        environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        steps = json.loads((source.checkpoint / "trainer_state.json").read_text())["global_step"]
        record = source.run / RECORD
        imported = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        form = form_of(given, source.backbone.dtype)
        write_text(
            folder / "README.md",
            card(
                OmegaConf.to_container(source.cfg, resolve=True),
                stored,
                source.backbone.description,
                hub_name(source, given),
                given.license or licence_of(source.backbone),
                environment,
                steps,
                form,
                data_source(cfg.dataset, "train"),
                imported,
                evaluations(source),
            ),
        )
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        os.rename(folder, output)
    print(f"{output}: {size / 2**20:.1f} MiB, {form}")
    print(f"open it with breviary.load_reader({str(output)!r})")


def evaluations(source: Source) -> list[tuple[str, list[dict[str, Any]]]]:
    """Title and rows of each evaluation that the run has of the exported checkpoint, its baselines below."""
    found = []
    for file in sorted(source.run.glob(f"eval/*/*/{RESULTS}")):
        own, home = read_results(file), source.run / "eval"
        if own["config"] is None:
            continue  # a baseline
        cfg = OmegaConf.create(own["config"])
        # Folders are named by what was asked, of a run with its checkpoint: other checkpoints have other names.
        if config_hash(cfg, NOT_HASHED, source.checkpoint.name) != file.parent.parent.name:
            continue
        others = sorted((home / config_hash(cfg, NOT_HASHED)).glob(f"*/{RESULTS}"))
        rows = [row(own), *(row(read_results(other)) for other in others)]
        title = f"{own['n']} questions of the {cfg.split} split of {data_source(cfg.dataset, cfg.split)}"
        found.append((f"{title} (sha256 {own['data_hash'][:12]})", rows))
    return found


def data_source(dataset: DictConfig, split: str) -> str:
    """Files by their last two parts, or the class that makes the examples."""
    return source_of(dataset, split, parts=2) if dataset.get(split) else f"{dataset._target_} (generated)"


def hub_name(source: Source, given: argparse.Namespace) -> str | None:
    """The backbone's name on the hub, where it is known."""
    path = getattr(source.backbone, "path", None)
    return given.backbone or (None if path is None or Path(path).is_dir() else path)


def form_of(given: argparse.Namespace, dtype: str) -> str:
    """What of the backbone is in the folder, in words; dtype  of its weights."""
    if given.merge:
        rounded = f", rounded to {dtype}: answers may differ from the run's where two are close"
        return "backbone included, adapters merged into it" + ("" if dtype in ("float32", "float64") else rounded)
    return "trained weights and backbone" if given.include_backbone else "trained weights; the backbone is looked up"


def portable(source: Source, given: argparse.Namespace) -> DictConfig:
    """The run's configuration without places of this machine.

    Raises: ValueError for an encoder of its own that only this machine has.
    """
    cfg = source.cfg.copy()
    with open_dict(cfg):
        homes = {str(cfg.paths[key]): f"${{paths.{key}}}" for key in ("data", "cache")}
        cfg.paths = OmegaConf.load(CONFIGS / "paths" / "default.yaml")
        cfg.resume, cfg.init_from = "never", None
        for key, value in cfg.dataset.items():
            if isinstance(value, str):
                cfg.dataset[key] = _portable_path(value, homes)
            elif isinstance(value, ListConfig):
                cfg.dataset[key] = [_portable_path(one, homes) if isinstance(one, str) else one for one in value]
        if given.include_backbone or given.merge:
            keys = ("dtype", "device", "attn_implementation")
            cfg.backbone = {
                "_target_": f"{Backbone.__module__}.{Backbone.__name__}",
                "path": f"./{BACKBONE}",
                **{key: cfg.backbone[key] for key in keys},
                "note": source.backbone.description,
            }
        elif "path" in cfg.backbone:
            folder = Path(source.backbone.path)
            looked_up = f"${{paths.cache}}/backbones/{folder.name}" if folder.is_dir() else source.backbone.path
            cfg.backbone.path = given.backbone or looked_up
    encoder = cfg.compressor.get("encoder")
    if encoder and Path(encoder).is_dir():
        raise ValueError(
            f"compressor.encoder={encoder}: a folder of this machine, which an exported folder cannot name; "
            "train with its hub name"
        )
    return cfg


def _portable_path(value: str, homes: dict[str, str]) -> str:
    """A path below one of `homes` by that home's key; another absolute one by its last two parts."""
    for home, key in homes.items():
        if value.startswith(f"{home}/"):
            return key + value[len(home) :]
    return "/".join(Path(value).parts[-2:]) if Path(value).is_absolute() else value


def trained_reader(source: Source) -> nn.Module:
    """The run's reader, on the CPU."""
    source.backbone.device = "cpu"
    reader = build_reader(source.cfg, source.backbone, source.backbone.tokenizer())
    load_trained(source.checkpoint, reader, source.backbone.fingerprint)
    return reader


def write_backbone(
    folder: Path, backbone: Backbone | TinyBackbone, tokenizer: Any, decoder: Stack | None = None
) -> dict[str, str]:
    """The backbone in Hugging Face form, with the weights of `decoder` where one is given; gives its name and hash.

    A folder of safetensors is copied, so that its hash stays; another form is written anew.
    """
    own = Path(getattr(backbone, "path", ""))
    if decoder is None and isinstance(backbone, Backbone) and list(own.glob("*.safetensors")):
        shutil.copytree(own, folder, ignore=lambda _, names: {n for n in names if not any(map(Path(n).match, FILES))})
    else:
        model = backbone.load()
        if decoder is not None:
            # Cast to the type of each weight, that of the backbone.
            Stack(model).load_state_dict(decoder.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes private files
    return Backbone(str(folder), backbone.dtype).fingerprint | {"name": backbone.fingerprint["name"]}


def write_merged(folder: Path, source: Source, tokenizer: Any) -> None:
    """The decoder as a backbone, and beside it what differs from a reader that is freshly built on that backbone."""
    reader = trained_reader(source)
    merge_adapters(reader)
    fingerprint = write_backbone(folder / BACKBONE, source.backbone, tokenizer, reader.decoder)
    fresh = build_reader(source.cfg, Backbone(str(folder / BACKBONE), source.backbone.dtype, "cpu"), tokenizer)
    merge_adapters(fresh)
    in_backbone = {id(parameter) for parameter in reader.decoder.parameters()}
    built = dict(fresh.named_parameters())
    own, beside = learned(reader), {}
    for name, parameter in reader.named_parameters():
        if id(parameter) not in in_backbone and (name in own or not parameter.equal(built[name])):
            beside[name] = parameter.detach().contiguous()
    save_weights(folder, beside, fingerprint, merged=True)


def licence_of(backbone: Backbone | TinyBackbone) -> str | None:
    """What the backbone's folder says of its licence: its card's `license`, what get_backbone.py wrote down, or a licence
    file's first line; None = nothing."""
    folder = Path(getattr(backbone, "path", ""))
    if isinstance(backbone, TinyBackbone):
        return "none: random weights, made in code"
    front = (folder / "README.md").read_text(encoding="utf-8").split("---") if (folder / "README.md").is_file() else []
    for line in front[1].splitlines() if len(front) > 2 and not front[0].strip() else []:
        if line.startswith("license:"):
            return line.partition(":")[2].strip()
    if (folder / PROVENANCE).is_file() and "license" in read_provenance(folder):
        return read_provenance(folder)["license"]
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            return next((line.strip() for line in lines if line.strip()), None)
    return None


if __name__ == "__main__":
    main()
