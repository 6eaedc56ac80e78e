"""Checkpoints: learned weights in safetensors, with the name and hash of the backbone that they belong to.

An engine that shards weights over N processes writes N files, each with some of the weights.

Learned weights are those trained in this run, and those trained in an earlier run and frozen in this one
(breviary.backbones.trainable). Pretrained weights of the backbone are not stored.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from breviary.backbones.sharding import assign_weight, full_shape
from breviary.backbones.trainable import (
    former_names,
    learned_parameters,
    merge_adapters,
    rename_parameter,
    trained_state,
)
from breviary.config.errors import collect_errors
from breviary.runs.sealing import DELETED, damage, delete_checkpoint, is_complete, is_sealed
from breviary.runtime.files import hash_tensors, read_object, usual_mode, write_json, written_aside

SCHEMA = 1

WEIGHTS = "trained.safetensors"  # the first shard of a sharded checkpoint, which states their number
PROCESSES = "processes.json"
OPTIMIZER_SHARDS = "optimizer"  # folder of FSDP's sharded optimizer state; torch writes its .metadata last


def save_trained(
    folder: str | Path, reader: nn.Module, fingerprint: dict[str, str], state: dict[str, Tensor] | None = None
) -> Path:
    """Writes the learned weights of this process into one file in `folder`; returns it. In training: save_learned."""
    return save_weights(folder, trained_state(reader, state), fingerprint)


def save_weights(
    folder: str | Path, weights: dict[str, Tensor], fingerprint: dict[str, str], merged: bool = False
) -> Path:
    """Writes named weights with their hash; returns the file. merged: adapters are in the backbone's weights."""
    return save_shard(folder, weights, fingerprint, hash_tensors(weights), merged=merged)


def save_shard(
    folder: str | Path,
    weights: dict[str, Tensor],
    fingerprint: dict[str, str],
    sha256: str,
    number: int = 0,
    shards: int = 1,
    merged: bool = False,
) -> Path:
    """Writes file `number` of a checkpoint of `shards` files; returns it. sha256: of the weights of all files."""
    file = shard_file(folder, number)
    metadata = {
        "format": "pt",
        "schema": str(SCHEMA),
        "backbone": json.dumps({key: fingerprint[key] for key in ("name", "sha256")}),
        "sha256": sha256,
        **({"shards": str(shards)} if shards > 1 else {}),
        **({"merged": "true"} if merged else {}),
    }
    with written_aside(file) as part:
        save_file(weights, part, metadata=metadata)
        usual_mode(part)
    return file


def shard_file(folder: str | Path, number: int) -> Path:
    """File `number` of a checkpoint, from 0."""
    return Path(folder) / (WEIGHTS if number == 0 else WEIGHTS.replace(".", f"-{number}."))


def read_weights(folder: str | Path, select: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """{name: tensor} of a checkpoint's weights, of all its files. select: whether a name is read.

    Raises: ValueError as `read_metadata`, and where a file of a sharded checkpoint is missing.
    """
    weights: dict[str, Tensor] = {}
    for number in range(read_metadata(folder)["shards"]):
        file = shard_file(folder, number)
        if not file.is_file():
            raise ValueError(f"{file}: this file of a sharded checkpoint is missing; use another copy, or train again")
        with safe_open(file, framework="pt") as stream:
            names = stream.keys()
            weights |= {name: stream.get_tensor(name) for name in names if select(name)}
    return weights


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """A checkpoint's schema, backbone, whether adapters are merged, hash of the weights (None in old files), files.

    Raises: ValueError when there is no checkpoint, it is damaged, or its schema is unknown.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{file}: no such checkpoint; give a run folder or a checkpoint folder with {WEIGHTS}")
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged checkpoint ({error}); use another checkpoint, or train again") from error
    if metadata.get("schema") != str(SCHEMA):
        raise ValueError(f"{file}: checkpoint of schema {metadata.get('schema')}, this version reads {SCHEMA}")
    if "backbone" not in metadata:
        raise ValueError(f"{file}: no checkpoint, it names no backbone; use another copy, or train again")
    return {
        "schema": SCHEMA,
        "backbone": json.loads(metadata["backbone"]),
        "merged": metadata.get("merged") == "true",
        "sha256": metadata.get("sha256"),
        "shards": int(metadata.get("shards", 1)),
    }


def weights_hash(folder: str | Path) -> str:
    """sha256 of a checkpoint's weights: the stored one, or computed for old files, which have none.

    Raises: ValueError as `read_metadata`.
    """
    stored = read_metadata(folder)["sha256"]
    if stored is not None:
        return stored
    return hash_tensors(read_weights(folder))


def backbone_difference(folder: str | Path, stored: dict[str, str], fingerprint: dict[str, str]) -> list[str]:
    """An error message where a checkpoint belongs to another backbone than that of `fingerprint`, else nothing.

    Checkpoints of earlier versions store the former hash, which covers less of the configuration.
    """
    if stored["sha256"] in (fingerprint["sha256"], fingerprint.get("former_sha256")):
        return []
    return [
        f"{folder}: checkpoint of backbone {stored['name']} ({stored['sha256'][:12]}), but the backbone here is "
        f"{fingerprint['name']} ({fingerprint['sha256'][:12]}); set backbone accordingly, e.g. backbone.path"
    ]


def load_trained(
    folder: str | Path, reader: nn.Module, fingerprint: dict[str, str], is_start: bool = False
) -> list[str]:
    """Loads learned weights strictly, in place; returns the names of those that are missing in the checkpoint.

    is_start  initialise a training: weights that the earlier run did not train (its decoder was frozen, for example)
              keep their initial values
    Raises: ValueError on another backbone, damaged values, unknown weights or other shapes, and missing weights, all of
    them listed. With is_start missing weights are allowed, unless all are missing.
    """
    metadata = read_metadata(folder)
    for message in backbone_difference(folder, metadata["backbone"], fingerprint):
        raise ValueError(message)
    stored = read_weights(folder)
    if metadata["sha256"] not in (None, hash_tensors(stored)):
        raise ValueError(
            f"{Path(folder) / WEIGHTS}: damaged checkpoint (the values differ from the stored hash); "
            "use another copy, or train again"
        )
    if metadata["merged"]:
        merge_adapters(reader)
    stored = _current_names(reader, stored)
    # Merged adapters are in the backbone; the file holds other learned weights, and frozen ones of a separate encoder.
    own = dict(reader.named_parameters())
    needed = {} if metadata["merged"] else learned_parameters(reader)
    missing = sorted(needed.keys() - stored.keys())
    if is_start and len(missing) < len(needed):
        needed = {name: parameter for name, parameter in needed.items() if name in stored}
    difference = _difference(needed, own if metadata["merged"] else learned_parameters(reader), stored)
    if difference:
        raise ValueError(f"{folder}: weights do not fit the configured reader:\n  " + "\n  ".join(difference))
    with torch.no_grad():
        for name, tensor in stored.items():
            assign_weight(own[name], tensor)
    return missing


def _current_names(reader: nn.Module, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stored weights under the parameter names of this version (see `former_names`)."""
    former = former_names(reader)
    current = {name: rename_parameter(name, former) for name in stored}
    # DeepSpeed cannot shard scalars: the first checkpoints stored them without a dimension.
    return {
        current[name]: tensor[None] if current[name] != name and not tensor.dim() else tensor
        for name, tensor in stored.items()
    }


def _difference(
    needed: dict[str, Tensor], known: dict[str, Tensor], stored: dict[str, Tensor], most: int = 10
) -> list[str]:
    lines = []
    for name in sorted(needed.keys() - stored.keys()):
        near = difflib.get_close_matches(name, stored, n=1)
        lines.append(f"missing: {name}" + (f" (nearest in the file: {near[0]})" if near else ""))
    lines += [f"unknown: {name}" for name in sorted(stored.keys() - known.keys())]
    lines += [
        f"shape of {name}: {tuple(stored[name].shape)} in the file, {tuple(full_shape(known[name]))} in the reader"
        for name in sorted(known.keys() & stored.keys())
        if full_shape(known[name]) != stored[name].shape
    ]
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])


def write_processes(folder: str | Path, processes: int, global_batch: int) -> None:
    """Stores the number of processes and of examples per optimizer step in a checkpoint."""
    write_json(Path(folder) / PROCESSES, {"processes": processes, "global_batch": global_batch})


def has_processes(checkpoint: Path) -> bool:
    """Whether a checkpoint states its processes and global batch; those of early versions do not."""
    return (checkpoint / PROCESSES).is_file()


def check_processes(run: str | Path, checkpoint: Path, processes: int, global_batch: int) -> list[str]:
    """Refuses to resume with another number of processes or another global batch than the checkpoint's.

    Examples, their order and the random generators of the processes would differ from those of the run so far.
    """
    if not has_processes(checkpoint):
        return []
    stored = read_object(checkpoint / PROCESSES, "processes", "global_batch", kind=int)
    if (stored["processes"], stored["global_batch"]) == (processes, global_batch):
        return []
    world, examples = stored["processes"], stored["global_batch"]
    return [
        f"resume={run}: {checkpoint.name} is of {world} process(es) and {examples} examples per optimizer step, but "
        f"here are {processes} process(es) and {global_batch} examples; both must be equal: start {world} process(es) "
        f"with train.batch_size x train.accumulation x processes / engine.ranks = {examples}; or start a new run "
        f"from its weights, e.g. init_from={run}"
    ]


def check_start(init_from: str | None, resume: str, backbone: Any) -> list[str]:
    """Checks keys `init_from` and `resume` of a training: each must lead to a checkpoint of this backbone."""
    problems = check_checkpoint("init_from", init_from, best_checkpoint, backbone) if init_from else []
    if resume not in ("never", "auto"):
        problems += [
            f"{problem} (resume takes never, auto or a run folder)"
            for problem in check_checkpoint("resume", resume, checkpoint_to_resume, backbone)
        ]
    return problems


def check_checkpoint(key: str, run: str, find: Callable[[str], Path], backbone: Any) -> list[str]:
    """Checks that `find(run)` returns a checkpoint of this backbone; reads its header and hashes the backbone.

    key  configuration key that names the run, for error messages
    """
    problems: list[str] = []
    checkpoint = collect_errors(problems, find, run)
    stored = collect_errors(problems, read_metadata, checkpoint) if checkpoint else None
    if checkpoint is not None and stored is not None and not backbone.problems():
        problems += backbone_difference(checkpoint, stored["backbone"], backbone.fingerprint)
    return [f"{key}: {problem}" for problem in problems]


def checkpoints(folder: str | Path) -> list[Path]:
    """A run's complete checkpoints, oldest first. One that lost a file since is among them (`damage`)."""
    return [path for _, path in sorted(_steps(Path(folder) / "checkpoints")) if _is_complete(path)]


def _steps(home: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all checkpoints, incomplete ones included."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in home.glob("checkpoint-*")]
    return [(int(match[1]), path) for match, path in matches if match]


def _is_complete(path: Path) -> bool:
    if is_sealed(path):
        return is_complete(path)
    shards = path / OPTIMIZER_SHARDS
    return (
        (path / WEIGHTS).is_file()
        and (path / "trainer_state.json").is_file()
        and ((shards / ".metadata").is_file() or not shards.is_dir())
    )


def delete_old_checkpoints(home: Path, best: str | None, most: int) -> None:
    """Deletes all checkpoints in `home` but the newest ones, and what killed processes left.

    best  the best checkpoint, which stays
    most  checkpoints that stay, at least one; the newest stays beside the best
    """
    newest = [path for _, path in sorted(_steps(home), reverse=True) if _is_complete(path)]
    kept = {path for path in newest if best and path == Path(best)} | set(newest[:1])
    kept |= set([path for path in newest if path not in kept][: max(0, most - len(kept))])
    for path in [*home.glob(f"checkpoint-*{DELETED}"), *(path for _, path in _steps(home) if path not in kept)]:
        delete_checkpoint(path)


def last_checkpoint(folder: str | Path) -> Path:
    """A run's newest checkpoint. An exported folder is its own checkpoint.

    Raises: ValueError when there is none.
    """
    if (Path(folder) / WEIGHTS).is_file():
        return Path(folder)
    found = checkpoints(folder)
    if not found:
        raise ValueError(
            f"{folder}: no run folder with a complete checkpoint in checkpoints/; "
            "give one that train.py printed, e.g. outputs/comi_facts/20260101T000000_ab12cd"
        )
    return found[-1]


def checkpoint_to_resume(folder: str | Path, announce: Callable[[str], Any] = lambda line: None) -> Path:
    """A run's newest checkpoint whose files have their stored hashes.

    announce  called with a line for each newer checkpoint that is damaged
    Raises: ValueError where there is none.
    """
    newest, reasons = last_checkpoint(folder), []
    for path in [newest] if newest == Path(folder) else reversed(checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            return path
        reasons.append(reason)
        announce(f"{reason}; the checkpoint before it is used")
    raise ValueError(f"{'; '.join(reasons)}; there is no other checkpoint: start a new run with resume=never")


def best_checkpoint(folder: str | Path) -> Path:
    """A run's checkpoint of lowest validation NLL; the newest one without validation."""
    newest = last_checkpoint(folder)
    if newest == Path(folder):
        return newest
    step = read_object(newest / "trainer_state.json").get("best_global_step")
    best = newest.with_name(f"checkpoint-{step}")
    return best if step and (best / WEIGHTS).is_file() else newest
