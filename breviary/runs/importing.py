"""Turns a checkpoint that a method's authors released into a run folder, as train.py would have written it.

The methods' formats are passed in, because breviary imports no method. Every key of the checkpoint becomes a weight of
the reader, or is recorded in imported.json with the reason why not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import TrainerState

from breviary.backbones.pretrained import DTYPES, Backbone
from breviary.config.build import ReaderSpec, build_reader
from breviary.config.checks import check_config
from breviary.config.compose import compose_config
from breviary.config.errors import raise_problems
from breviary.config.keys import validate_keys
from breviary.runs.checkpoints import save_trained
from breviary.runs.folders import finish_run, write_run_metadata
from breviary.runs.released import (
    BACKBONE_HINT,
    ReleasedFile,
    ReleasedFormat,
    list_message,
    load_weights,
    locate_weights,
)
from breviary.runtime.files import file_sha256, write_json

RECORD = "imported.json"

Formats = Mapping[str, type[ReleasedFormat]]  # {name: format of a method}


def import_checkpoint(
    formats: Formats,
    name: str,
    source: str | Path,
    backbone: str,
    output: str | Path,
    dtype: str | None = None,
    quirks: bool = False,
    **arguments: Any,
) -> tuple[Path, dict[str, str]]:
    """Writes the run folder `output`. Returns it, and {key: reason} of keys that are not weights of the reader.

    formats    all known formats; name is one of its keys
    source     the authors' file or folder
    backbone   folder or hub name of the model that the checkpoint was trained from
    dtype      dtype of frozen weights and of the computation; None = the backbone's own
    quirks     reproduce the released code's numerical behaviour
    arguments  the format's `defaults`; None = the default
    Raises: ValueError, with nothing written.
    """
    output = Path(output).expanduser().resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} already exists; remove it, or name another folder")
    checkpoint = formats[name](ReleasedFile(source))
    settings = resolve_arguments(checkpoint, name, arguments)
    check_all_keys_known(checkpoint, formats, settings)
    model = load_backbone(backbone, dtype)
    raise_problems(checkpoint.problems(model))
    cfg = compose_run_config(checkpoint, name, settings, model, quirks)
    reader = build_imported_reader(checkpoint, settings, cfg, model)
    unused = checkpoint.unused_keys(settings)
    record = {
        "schema": 1,
        "format": name,
        "source": str(Path(source).expanduser().resolve()),
        "arguments": settings,
        "files": {file.name: file_sha256(file) for file in checkpoint.file.files},
        "not_weights": unused,
    }
    write_run(output, cfg, reader, model, record)
    return output, unused


def resolve_arguments(checkpoint: ReleasedFormat, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The format's arguments, with defaults in place of None.

    Raises: ConfigError for arguments that the format does not have, and for values out of range.
    """
    defaults = checkpoint.defaults
    raise_problems(
        f"{option_name(key)}: not applicable to this file of --format {name}, which specifies it or has no such setting"
        for key, value in arguments.items()
        if value is not None and key not in defaults
    )
    resolved = {key: default if arguments.get(key) is None else arguments[key] for key, default in defaults.items()}
    raise_problems(
        f"{option_name(key)} {value}: must be above 0, e.g. {defaults[key]}"
        for key, value in resolved.items()
        if not isinstance(value, str) and value <= 0
    )
    return resolved


def check_all_keys_known(checkpoint: ReleasedFormat, formats: Formats, settings: Mapping[str, Any]) -> None:
    """Raises: ValueError for keys that the format does not know; names the format that knows them all, if any."""
    unknown = checkpoint.unknown_keys(settings)
    if not unknown:
        return
    file = checkpoint.file
    for name, other in formats.items():
        if not other(file).unknown_keys(other.defaults):
            raise ValueError(
                f"{file.path}: a checkpoint of {other.title}, not of {checkpoint.title}; use --format {name}"
            )
    raise ValueError(list_message(f"{file.path}: keys that no checkpoint of {checkpoint.title} has:", unknown))


def load_backbone(path: str, dtype: str | None) -> Backbone:
    """The backbone, a local folder under its absolute path; no weights are loaded. Raises: ConfigError."""
    path = str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path
    backbone = Backbone(path, dtype or "float32")
    raise_problems(problem.replace("backbone.path=", "--backbone ") for problem in backbone.problems())
    own = {value: key for key, value in DTYPES.items()}.get(backbone.config.dtype, "float32")
    return Backbone(path, dtype or own)


def compose_run_config(
    checkpoint: ReleasedFormat, name: str, settings: Mapping[str, Any], backbone: Backbone, quirks: bool
) -> DictConfig:
    """The run's configuration: the published experiment, changed by what the file and the arguments specify."""
    # The backbone YAML is any of those with a path: its keys are set below.
    cfg = compose_config("train", [f"experiment={checkpoint.experiment}", "backbone=qwen3_4b", "engine=single"])
    values = {
        "backbone.path": backbone.path,
        "backbone.dtype": backbone.dtype,
        "reader": name,
        "compressor.quirks": quirks,
        "decoder.train": checkpoint.train_modes()[0],
        **checkpoint.settings(settings, backbone),
    }
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, merge=False)
    cfg, problems = validate_keys(cfg)
    raise_problems(problems + check_config(cfg, ReaderSpec.of(cfg), backbone))
    return cfg


def build_imported_reader(
    checkpoint: ReleasedFormat, settings: Mapping[str, Any], cfg: DictConfig, backbone: Backbone
) -> nn.Module:
    """The reader with the weights of the file.

    Sets `cfg.decoder.train` to the first of the format's modes under which all frozen weights equal the backbone's.
    Raises: ValueError where there is none.
    """
    for mode in checkpoint.train_modes():
        cfg.decoder.train = mode
        reader = build_reader(cfg, backbone, backbone.tokenizer())
        changed = load_weights(reader, checkpoint.file, locate_weights(checkpoint, settings, reader, backbone))
        if not changed:
            return reader
    raise ValueError(
        list_message(
            f"{checkpoint.file.path}: frozen weights differ from those of {backbone.path} (as {backbone.dtype}); "
            f"{BACKBONE_HINT}:",
            changed,
        )
    )


def write_run(output: Path, cfg: DictConfig, reader: nn.Module, backbone: Backbone, record: dict[str, Any]) -> None:
    """Writes the folder of a finished run with `record` in it; complete or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temp:
        folder = Path(temp) / "run"
        checkpoint = folder / "checkpoints" / "checkpoint-0"
        write_run_metadata(folder, cfg)
        save_trained(checkpoint, reader, backbone.fingerprint)
        TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
        write_json(folder / RECORD, record)
        finish_run(folder)
        folder.replace(output)  # succeeds where `output` is an empty folder


def option_name(key: str) -> str:
    """An argument as written on the command line: --lora-alpha for lora_alpha."""
    return f"--{key.replace('_', '-')}"
