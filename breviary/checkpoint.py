"""Checkpoints: learned weights in safetensors, with the name and hash of the backbone they belong to.

Learned are those that are trained, and those that an earlier run trained and this one keeps (breviary.backbone.hold).
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SCHEMA = 1
WEIGHTS = "trained.safetensors"


def learned(reader: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of the weights that are not the backbone's: what a checkpoint holds."""
    return {name: parameter for name, parameter in reader.named_parameters()
            if parameter.requires_grad or getattr(parameter, "held", False)}


def trained_state(reader: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """{name: tensor} of the learned weights; taken from `state` where a gathered state dict is given."""
    names = list(learned(reader))
    state = dict(reader.named_parameters()) if state is None else state
    return {name: state[name].detach().to("cpu", torch.float32).contiguous() for name in names}


def save_trained(folder: str | Path, reader: nn.Module, fingerprint: dict[str, str],
                 state: dict[str, Tensor] | None = None) -> Path:
    """Writes the trained weights into `folder`; gives the file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = trained_state(reader, state)
    metadata = {"format": "pt", "schema": str(SCHEMA), "backbone": json.dumps(fingerprint)}
    save_file(weights, folder / WEIGHTS, metadata=metadata)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes private files; a run is to be shared
    return folder / WEIGHTS


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Schema version and backbone of a checkpoint.

    Raises: ValueError when there is no checkpoint, or of a schema that this version does not know.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{file}: no such checkpoint; give a run folder or a checkpoint folder with {WEIGHTS}")
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged checkpoint ({error}); take another one, or train anew") from error
    if metadata.get("schema") != str(SCHEMA):
        raise ValueError(f"{file}: checkpoint of schema {metadata.get('schema')}, this version reads {SCHEMA}")
    return {"schema": SCHEMA, "backbone": json.loads(metadata["backbone"])}


def backbone_difference(folder: str | Path, stored: dict[str, str], fingerprint: dict[str, str]) -> list[str]:
    """A sentence where the backbone that a checkpoint is of is not the one with `fingerprint`."""
    if stored["sha256"] == fingerprint["sha256"]:
        return []
    return [f"{folder}: checkpoint of backbone {stored['name']} ({stored['sha256'][:12]}), but the backbone here is "
            f"{fingerprint['name']} ({fingerprint['sha256'][:12]}); set backbone accordingly, e.g. backbone.path"]


def load_trained(folder: str | Path, reader: nn.Module, fingerprint: dict[str, str], is_start: bool = False) -> list[str]:
    """Loads learned weights strictly, in place; gives the names of those that the checkpoint lacks.

    is_start  a training starts from them: what the earlier run did not train (its decoder was frozen, say) stays as built
    Raises: ValueError on another backbone, on unknown or misshapen weights, and, unless it is a start, on missing ones, all
    of them listed; on a start that has nothing in common with the reader.
    """
    for difference in backbone_difference(folder, read_metadata(folder)["backbone"], fingerprint):
        raise ValueError(difference)
    own = learned(reader)
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as stream:
        stored = {name: stream.get_tensor(name) for name in stream.keys()}
    missing = sorted(own.keys() - stored.keys())
    if is_start and len(missing) < len(own):
        own = {name: parameter for name, parameter in own.items() if name in stored}
    difference = _difference(own, stored)
    if difference:
        raise ValueError(f"{folder}: weights do not fit the configured reader:\n  " + "\n  ".join(difference))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])
    return missing


def _difference(own: dict[str, Tensor], stored: dict[str, Tensor], most: int = 10) -> list[str]:
    lines = []
    for name in sorted(own.keys() - stored.keys()):
        near = difflib.get_close_matches(name, stored, n=1)
        lines.append(f"missing: {name}" + (f" (nearest in the file: {near[0]})" if near else ""))
    lines += [f"unknown: {name}" for name in sorted(stored.keys() - own.keys())]
    lines += [f"shape of {name}: {tuple(stored[name].shape)} in the file, {tuple(own[name].shape)} in the reader"
              for name in sorted(own.keys() & stored.keys()) if own[name].shape != stored[name].shape]
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])
