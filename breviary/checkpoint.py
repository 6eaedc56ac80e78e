"""Checkpoints: learned weights in safetensors, with the name and hash of the backbone they belong to.

Learned are those that are trained, and those that an earlier run trained and this one keeps (breviary.backbone.hold).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from breviary.backbone import merge_adapters

if TYPE_CHECKING:
    from breviary.text_reader import TextReader

SCHEMA = 1
WEIGHTS = "trained.safetensors"


def load_reader(path: str | Path, backbone: str | Path | None = None, device: str | None = None) -> TextReader:
    """Opens a trained reader for use from Python: texts in, answers out.

    path      a folder that scripts/export.py wrote, a run folder (its best checkpoint), or a hub name of an exported folder
    backbone  folder or hub name of the backbone, where it is not where the configuration says; None = look there, then in
              the cache. Its hash must be the stored one
    device    auto | cpu | cuda[:i]; None = as configured
    Needs a checkout; nothing that was downloaded is executed, no pickle is read.
    Raises: ValueError, a sentence for each thing that is wrong: no such folder, damaged or foreign files, unknown keys,
    another backbone, weights that do not fit.
    """
    from breviary.loading import open_reader  # here: building and checking readers needs this file

    return open_reader(path, backbone, device)


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
    return save_weights(folder, trained_state(reader, state), fingerprint)


def save_weights(folder: str | Path, weights: dict[str, Tensor], fingerprint: dict[str, str], merged: bool = False) -> Path:
    """Writes named weights into `folder`, with their hash; gives the file. merged = adapters are in the backbone's weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "schema": str(SCHEMA), "backbone": json.dumps(fingerprint), "sha256": tensors_hash(weights)}
    save_file(weights, folder / WEIGHTS, metadata=metadata | ({"merged": "true"} if merged else {}))
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes private files; a run is to be shared
    return folder / WEIGHTS


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Of a checkpoint: schema version, backbone, whether adapters are merged, hash of the weights (None in old ones).

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
    return {"schema": SCHEMA, "backbone": json.loads(metadata["backbone"]), "merged": metadata.get("merged") == "true",
            "sha256": metadata.get("sha256")}


def backbone_difference(folder: str | Path, stored: dict[str, str], fingerprint: dict[str, str]) -> list[str]:
    """A sentence where the backbone that a checkpoint is of is not the one with `fingerprint`."""
    if stored["sha256"] == fingerprint["sha256"]:
        return []
    return [f"{folder}: checkpoint of backbone {stored['name']} ({stored['sha256'][:12]}), but the backbone here is "
            f"{fingerprint['name']} ({fingerprint['sha256'][:12]}); set backbone accordingly, e.g. backbone.path"]


def load_trained(folder: str | Path, reader: nn.Module, fingerprint: dict[str, str], is_start: bool = False) -> list[str]:
    """Loads learned weights strictly, in place; gives the names of those that the checkpoint lacks.

    is_start  a training starts from them: what the earlier run did not train (its decoder was frozen, say) stays as built
    Raises: ValueError on another backbone, on damaged values, on unknown or misshapen weights, and, unless it is a start, on
    missing ones, all of them listed; on a start that has nothing in common with the reader.
    """
    metadata = read_metadata(folder)
    for difference in backbone_difference(folder, metadata["backbone"], fingerprint):
        raise ValueError(difference)
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as stream:
        stored = {name: stream.get_tensor(name) for name in stream.keys()}
    if metadata["sha256"] not in (None, tensors_hash(stored)):
        raise ValueError(f"{Path(folder) / WEIGHTS}: damaged checkpoint (its values are not those that were written); take "
                         "another copy, or train anew")
    if metadata["merged"]:
        merge_adapters(reader)
    stored = _named_as_now(reader, stored)
    # What was merged lies in the backbone; beside it there are learned weights, and frozen ones of an encoder's own.
    own = dict(reader.named_parameters())
    needed = {} if metadata["merged"] else learned(reader)
    missing = sorted(needed.keys() - stored.keys())
    if is_start and len(missing) < len(needed):
        needed = {name: parameter for name, parameter in needed.items() if name in stored}
    difference = _difference(needed, own if metadata["merged"] else learned(reader), stored)
    if difference:
        raise ValueError(f"{folder}: weights do not fit the configured reader:\n  " + "\n  ".join(difference))
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)
    return missing


def _named_as_now(reader: nn.Module, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stored weights under the names of now: a module's `former_names` says {what its weights were called: what they are}."""
    former = {f"{at}.{old}": f"{at}.{new}" for at, module in reader.named_modules()
              for old, new in getattr(module, "former_names", {}).items()}
    renamed = {former.get(name, name): tensor for name, tensor in stored.items()}
    # A weight of one number had no dimension in the first checkpoints, which DeepSpeed cannot share out.
    return {name: tensor[None] if name in former.values() and not tensor.dim() else tensor for name, tensor in renamed.items()}


def _difference(needed: dict[str, Tensor], known: dict[str, Tensor], stored: dict[str, Tensor], most: int = 10) -> list[str]:
    lines = []
    for name in sorted(needed.keys() - stored.keys()):
        near = difflib.get_close_matches(name, stored, n=1)
        lines.append(f"missing: {name}" + (f" (nearest in the file: {near[0]})" if near else ""))
    lines += [f"unknown: {name}" for name in sorted(stored.keys() - known.keys())]
    lines += [f"shape of {name}: {tuple(stored[name].shape)} in the file, {tuple(known[name].shape)} in the reader"
              for name in sorted(known.keys() & stored.keys()) if known[name].shape != stored[name].shape]
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])
