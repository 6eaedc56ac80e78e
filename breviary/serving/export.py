"""Exports a run as one portable folder: safetensors, configuration without local paths, tokenizer, model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from torch import nn

from breviary.backbones.pretrained import Backbone
from breviary.backbones.recipes import PROVENANCE, read_provenance
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import learned_parameters, merge_adapters, trained_state
from breviary.config.build import ReaderSpec, build_reader
from breviary.config.errors import collect_errors, raise_problems
from breviary.config.keys import CONFIGS, validate_keys
from breviary.evaluation.facts import TRAINING, training_record
from breviary.evaluation.identity import baselines_beside, read_identity
from breviary.evaluation.resolve import CHECKPOINTS, NOT_HASHED
from breviary.evaluation.results import RESULTS, read_results, source_of
from breviary.evaluation.table import table_row
from breviary.runs.checkpoints import load_trained, read_metadata, save_weights, weights_hash
from breviary.runs.environment import ENVIRONMENT
from breviary.runs.folders import config_hash, load_config, write_config
from breviary.runs.importing import RECORD
from breviary.runtime.files import usual_mode, write_json, write_text
from breviary.serving.loading import HUB_FILES, find_backbone
from breviary.serving.model_card import CardContent, model_card

BACKBONE_FOLDER = "backbone"  # of an included backbone, within the exported folder


@dataclass(frozen=True)
class ExportOptions:
    """The form of an exported folder.

    include_backbone  add the backbone's weights unchanged
    merge             add the backbone with the trained decoder weights merged into it, rounded to its dtype
    backbone_name     hub name of the backbone, where the run has a folder; None = unknown
    license           licence of the backbone, where its folder does not state it
    """

    include_backbone: bool = False
    merge: bool = False
    backbone_name: str | None = None
    license: str | None = None

    def contents(self, dtype: str) -> str:
        """What the folder holds of the backbone, in words; dtype: of the backbone's weights."""
        if self.merge:
            rounded = f", rounded to {dtype}: an answer may differ from the run's where two are almost equally likely"
            return "backbone included, adapters merged into it" + ("" if dtype in ("float32", "float64") else rounded)
        return "trained weights and backbone" if self.include_backbone else "trained weights; the backbone is looked up"


@dataclass
class ExportSource:
    """A run's checkpoint with its configuration and backbone."""

    run: Path
    checkpoint: Path
    cfg: DictConfig
    backbone: Backbone | TinyBackbone

    @classmethod
    def open(cls, run: str | Path, which: str, output: str | Path, merge: bool = False) -> ExportSource:
        """Checks the export before any weight is loaded; which: a key of CHECKPOINTS.

        Raises: ValueError (ConfigError) with all problems.
        """
        cfg = load_config(run)
        checkpoint = CHECKPOINTS[which](run)
        cfg, problems = validate_keys(cfg)
        metadata = read_metadata(checkpoint)
        backbone = collect_errors(problems, find_backbone, cfg, metadata["backbone"], None, checkpoint)
        if metadata["merged"] or Path(run) == checkpoint:
            problems.append(f"{run}: is an exported folder already; give a run folder")
        if merge and cfg.decoder.train == "lora" and not getattr(ReaderSpec.of(cfg).compressor, "supports_merge", True):
            problems.append(
                f"--merge: the encoder of {cfg.compressor._target_} uses the decoder's weights without "
                "the decoder's adapters; use --include-backbone"
            )
        if Path(output).exists():
            problems.append(f"--output {output}: exists already; give another folder, or remove it")
        raise_problems(problems)
        assert backbone is not None
        return cls(Path(run), checkpoint, cfg, backbone)

    def load_reader(self) -> nn.Module:
        """The run's reader on the CPU."""
        self.backbone.device = "cpu"
        reader = build_reader(self.cfg, self.backbone, self.backbone.tokenizer())
        load_trained(self.checkpoint, reader, self.backbone.fingerprint)
        return reader


def export_run(source: ExportSource, output: Path, options: ExportOptions) -> int:
    """Writes the folder, completely or not at all; returns its size in bytes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=output.parent) as partial:
        folder = Path(partial) / "folder"
        folder.mkdir()
        cfg = portable_config(source, options)
        tokenizer = source.backbone.tokenizer()
        tokenizer.save_pretrained(folder)
        if options.merge:
            write_merged(folder, source, tokenizer)
        else:
            fingerprint = read_metadata(source.checkpoint)["backbone"]
            if options.include_backbone:
                fingerprint = write_backbone(folder / BACKBONE_FOLDER, source.backbone, tokenizer)
            save_weights(folder, trained_state(source.load_reader()), fingerprint)
        write_config(folder, cfg, resolve=False)
        shutil.copyfile(source.run / ENVIRONMENT, folder / ENVIRONMENT)
        write_json(folder / TRAINING, training_record(source.run, source.checkpoint))
        write_text(folder / "README.md", model_card(card_content(source, cfg, options)))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        os.rename(folder, output)
    return size


# ---- configuration ----


def portable_config(source: ExportSource, options: ExportOptions) -> DictConfig:
    """The run's configuration without paths of this machine.

    Raises: ValueError for a compressor's encoder in a local folder.
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
        if options.include_backbone or options.merge:
            cfg.backbone = {
                "_target_": f"{Backbone.__module__}.{Backbone.__name__}",
                "path": f"./{BACKBONE_FOLDER}",
                **{key: cfg.backbone[key] for key in ("dtype", "device", "attn_implementation")},
                "note": source.backbone.description,
            }
        elif isinstance(source.backbone, Backbone):
            folder = Path(source.backbone.path)
            looked_up = f"${{paths.cache}}/backbones/{folder.name}" if folder.is_dir() else source.backbone.path
            cfg.backbone.path = options.backbone_name or looked_up
    encoder = cfg.compressor.get("encoder")
    if encoder and Path(encoder).is_dir():
        raise ValueError(
            f"compressor.encoder={encoder}: is a folder of this machine, which an exported folder cannot name; "
            "train with its hub name"
        )
    return cfg


def _portable_path(value: str, homes: dict[str, str]) -> str:
    """A path below one of `homes` with that home's configuration key; the last two parts of other absolute paths."""
    for home, key in homes.items():
        if value.startswith(f"{home}/"):
            return key + value[len(home) :]
    return "/".join(Path(value).parts[-2:]) if Path(value).is_absolute() else value


# ---- weights ----


def write_backbone(
    folder: Path, backbone: Backbone | TinyBackbone, tokenizer: Any, decoder: Stack | None = None
) -> dict[str, str]:
    """Writes the backbone in Hugging Face format and returns its name and hash.

    decoder  replaces the backbone's weights; None = unchanged
    A folder of safetensors is copied, so that its hash is preserved; any other format is converted.
    """
    own = Path(getattr(backbone, "path", ""))
    if decoder is None and isinstance(backbone, Backbone) and list(own.glob("*.safetensors")):
        shutil.copytree(own, folder, ignore=_ignored_files)
    else:
        model = backbone.load()
        if decoder is not None:
            Stack(model).load_state_dict(decoder.state_dict())  # casts each weight to the backbone's dtype
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        usual_mode(file)
    return Backbone(str(folder), backbone.dtype).fingerprint | {"name": backbone.fingerprint["name"]}


def _ignored_files(_: str, names: list[str]) -> set[str]:
    return {name for name in names if not any(map(Path(name).match, HUB_FILES))}


def write_merged(folder: Path, source: ExportSource, tokenizer: Any) -> None:
    """Writes the trained decoder as a backbone, and the weights that a reader newly built on it would not have."""
    reader = source.load_reader()
    merge_adapters(reader)
    fingerprint = write_backbone(folder / BACKBONE_FOLDER, source.backbone, tokenizer, reader.decoder)
    backbone = Backbone(str(folder / BACKBONE_FOLDER), source.backbone.dtype, "cpu")
    fresh = build_reader(source.cfg, backbone, tokenizer)
    merge_adapters(fresh)
    in_backbone = {id(parameter) for parameter in reader.decoder.parameters()}
    initial, learned = dict(fresh.named_parameters()), learned_parameters(reader)
    weights = {
        name: parameter.detach().contiguous()
        for name, parameter in reader.named_parameters()
        if id(parameter) not in in_backbone and (name in learned or not parameter.equal(initial[name]))
    }
    save_weights(folder, weights, fingerprint, merged=True)


# ---- model card ----


def card_content(source: ExportSource, cfg: DictConfig, options: ExportOptions) -> CardContent:
    """The facts of the model card; cfg: the portable configuration."""
    record = source.run / RECORD
    path = getattr(source.backbone, "path", None)
    return CardContent(
        config=OmegaConf.to_container(source.cfg, resolve=True),
        environment=json.loads((source.run / ENVIRONMENT).read_text(encoding="utf-8")),
        steps=json.loads((source.checkpoint / "trainer_state.json").read_text())["global_step"],
        data=dataset_source(cfg.dataset, "train"),
        imported=json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None,
        backbone=read_metadata(source.checkpoint)["backbone"],
        description=source.backbone.description,
        hub=options.backbone_name or (None if path is None or Path(path).is_dir() else path),
        licence=options.license or backbone_licence(source.backbone),
        contents=options.contents(source.backbone.dtype),
        tables=evaluation_tables(source),
    )


def evaluation_tables(source: ExportSource) -> list[tuple[str, list[dict[str, Any]]]]:
    """Title and rows of each of the run's evaluations of the exported checkpoint, followed by its baselines."""
    tables = []
    for file in sorted(source.run.glob(f"eval/*/*/{RESULTS}")):
        own, home = read_results(file), source.run / "eval"
        if own["config"] is None:
            continue  # a baseline
        cfg, identity = OmegaConf.create(own["config"]), read_identity(file.parent)
        if identity is not None:
            if identity["identity"]["weights"] != weights_hash(source.checkpoint):
                continue
            baselines = baselines_beside(home, identity["identity"])
        else:  # of an earlier version: the folder is named by configuration and checkpoint
            if config_hash(cfg, NOT_HASHED, source.checkpoint.name) != file.parent.parent.name:
                continue
            baselines = sorted((home / config_hash(cfg, NOT_HASHED)).glob(f"*/{RESULTS}"))
        rows = [table_row(own), *(table_row(read_results(baseline)) for baseline in baselines)]
        title = f"{own['n']} questions of the {cfg.split} split of {dataset_source(cfg.dataset, cfg.split)}"
        tables.append((f"{title} (sha256 {own['data_hash'][:12]})", rows))
    return tables


def dataset_source(dataset: DictConfig, split: str) -> str:
    """The last two parts of each data file, or the class that generates the examples."""
    return source_of(dataset, split, parts=2) if dataset.get(split) else f"{dataset._target_} (generated)"


def backbone_licence(backbone: Backbone | TinyBackbone) -> str | None:
    """The licence stated in the backbone's folder; None = none is stated.

    Sources, in order: `license` in the folder's model card, provenance.json, the first line of a licence file.
    """
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
