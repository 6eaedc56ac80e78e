"""Checkpoints that a method's authors released: files read, names translated, every key accounted for.

A method's own names are a table in its folder (released.py); scripts/import_checkpoint.py does the rest.
Names are templates: {n} stands for a layer's number, {rest} for everything that follows.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SHOWN = 10  # keys that a message lists

OTHER_BACKBONE = "give the model that it was trained from with --backbone"

SINGLE = ("model.safetensors", "pytorch_model.bin")

FIELDS = {"{n}": r"(?P<n>\d+)", "{rest}": r"(?P<rest>.+)"}

Names = tuple[tuple[str, str], ...]


class ReleasedFile:
    """The tensors of a checkpoint on disk: a .safetensors or PyTorch file, a folder with one or with its shards.

    shapes  {key: shape}; nothing but headers is read before `tensor` is called (of PyTorch files all is mapped). Those
            are opened with weights_only: tensors, no other objects.
    config  config.json in `folder`, where the weights are; None = there is none
    Raises: ValueError for what is not there, damaged, or holds anything but tensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.files = _weight_files(self.path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._home: dict[str, Any] = {}
        for file in self.files:
            for key, shape, home in _opened(file):
                self.shapes[key], self._home[key] = shape, home
        self.folder = self.path if self.path.is_dir() else self.path.parent
        beside = self.folder / "config.json"
        self.config: dict[str, Any] | None = _json(beside) if beside.is_file() else None

    def tensor(self, key: str) -> Tensor:
        """One tensor. Raises: ValueError where it is missing, or not all of it is finite numbers."""
        if key not in self._home:
            raise ValueError(f"{self.path}: missing: {key}")
        home = self._home[key]
        try:
            found = home[key] if isinstance(home, dict) else home.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: {key} cannot be read ({error}); the file is damaged") from error
        if not found.isfinite().all():
            raise ValueError(f"{self.path}: {key} holds values that are no finite numbers; the file is damaged")
        return found

    def starts(self, beginning: str) -> bool:
        """Whether any key begins so."""
        return any(key.startswith(beginning) for key in self.shapes)

    def layers(self, template: str) -> int:
        """Layers that keys of this template, with {n}, are numbered for."""
        found = (_fields(template, key) for key in self.shapes)
        return max((int(match["n"]) + 1 for match in found if match), default=0)


@dataclass(frozen=True)
class Taken:
    """What one weight of the reader is made of: a key, and which of its rows (None = all)."""

    key: str
    rows: slice | tuple[int, ...] | None = None

    def shape(self, file: ReleasedFile) -> tuple[int, ...]:
        """Its shape; a scalar counts as one element (DeepSpeed refuses scalars)."""
        whole = file.shapes[self.key] or (1,)
        if self.rows is None:
            return whole
        rows = len(range(*self.rows.indices(whole[0]))) if isinstance(self.rows, slice) else len(self.rows)
        return rows, *whole[1:]

    def tensor(self, file: ReleasedFile) -> Tensor:
        """The tensor, of that shape."""
        whole = file.tensor(self.key)
        rows = list(self.rows) if isinstance(self.rows, tuple) else self.rows
        return (whole if rows is None else whole[rows]).reshape(self.shape(file))


class ReleasedFormat:
    """How the authors of one method name what they store; each method has a subclass.

    title       the method's name
    experiment  configs/experiment/NAME.yaml, which has the published settings
    defaults    what the file does not hold, as published: {argument: value}
    """

    title = experiment = ""
    defaults: Mapping[str, Any] = {}

    def __init__(self, file: ReleasedFile):
        self.file = file

    @property
    def decoder(self) -> str:
        """What the decoder's keys begin with, up to `model.` and `lm_head.`."""
        raise NotImplementedError

    def pairs(self, given: Mapping[str, Any]) -> Names:
        """(their template, ours) of every key that is a weight of the reader; `given` = the arguments."""
        raise NotImplementedError

    def apart(self, given: Mapping[str, Any]) -> Names:
        """(their template, what becomes of it) of every key that is no weight of the reader."""
        raise NotImplementedError

    def settings(self, given: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """{key of the configuration: value} that the file tells, and `given`."""
        raise NotImplementedError

    def trained(self) -> tuple[str, ...]:
        """Values of decoder.train to try in turn: the first under which all frozen weights are the backbone's."""
        raise NotImplementedError

    def parts(self, backbone: Any) -> dict[str, Taken]:
        """Weights of the reader that are rows of a key, not a whole one."""
        return {}

    def problems(self, backbone: Any) -> list[str]:
        """Why the file is of another model than the backbone, from shapes alone; one sentence at most."""
        key, config = f"{self.decoder}model.embed_tokens.weight", backbone.config
        table = self.file.shapes.get(key)
        if table is None or len(table) != 2:
            return [f"{self.file.path}: {'missing' if table is None else f'shape of {table}, not a table'}: {key}"]
        theirs = *table, self.file.layers(f"{self.decoder}model.layers.{{n}}.{{rest}}")
        own = config.vocab_size, config.hidden_size, config.num_hidden_layers
        if self.fits(theirs, own):
            return []
        return [
            f"{self.file.path}: its decoder has {theirs[0]} tokens, width {theirs[1]} and {theirs[2]} layers, "
            f"{backbone.path} has {own[0]}, {own[1]} and {own[2]}; {OTHER_BACKBONE}"
        ]

    def fits(self, theirs: tuple[int, int, int], own: tuple[int, int, int]) -> bool:
        """Whether a decoder of (tokens, width, layers) can be the backbone's."""
        return theirs == own

    def unknown(self, given: Mapping[str, Any]) -> list[str]:
        """Keys of the file that the format has no place for."""
        known = [theirs for theirs, _ in (*self.pairs(given), *self.apart(given))]
        return [key for key in self.file.shapes if not any(_fields(template, key) for template in known)]

    def left_out(self, given: Mapping[str, Any]) -> dict[str, str]:
        """{key: what becomes of it} of the keys that are no weight of the reader."""
        used = [theirs for theirs, _ in self.pairs(given)]
        found = {}
        for key in self.file.shapes:
            if not any(_fields(template, key) for template in used):
                found |= {key: told for template, told in reversed(self.apart(given)) if _fields(template, key)}
        return found


def stack_pairs(theirs: str, ours: str, embedding: bool = True, head: bool = True) -> Names:
    """Names of a Hugging Face decoder that begin with `theirs`, and of our Stack that begin with `ours`."""
    pairs = [("model.layers.{n}.{rest}", "layers.{n}.{rest}"), ("model.norm.weight", "final_norm.weight")]
    pairs += [("model.embed_tokens.weight", "embed_tokens.weight")] if embedding else []
    pairs += [("lm_head.weight", "lm_head.weight")] if head else []
    return tuple((theirs + name, ours + own) for name, own in pairs)


def account(form: ReleasedFormat, given: Mapping[str, Any], reader: nn.Module, backbone: Any) -> dict[str, Taken]:
    """{weight of the reader: where it is in the file}; every weight has its place, of the same shape.

    Raises: ValueError naming the missing, misshapen and unknown keys.
    """
    weights = dict(reader.named_parameters(remove_duplicate=False))
    taken = form.parts(backbone)
    cut = {part.key for part in taken.values()}
    for key in form.file.shapes:
        names = [_renamed(theirs, ours, key) for theirs, ours in form.pairs(given) if _fields(theirs, key)]
        if names and key not in cut:
            taken[names[0]] = Taken(key)
    problems = [
        f"unknown: {part.key} (the reader has no {name})" for name, part in taken.items() if name not in weights
    ]
    covered = {id(weights[name]) for name in taken if name in weights}  # a tied head and table are one weight
    missing = {id(weight): name for name, weight in reversed(weights.items()) if id(weight) not in covered}
    problems += [f"missing: {_their_name(form, given, name)}" for name in reversed(missing.values())]
    for name, part in taken.items():
        if part.key not in form.file.shapes:
            problems.append(f"missing: {part.key}")
        elif name in weights and part.shape(form.file) != tuple(weights[name].shape):
            problems.append(
                f"shape of {part.key}: {part.shape(form.file)} in the file, {tuple(weights[name].shape)} in the reader"
            )
    if problems:
        heading = f"{form.file.path}: does not fit {form.title} on {backbone.path}:"
        raise ValueError(listed(heading, dict.fromkeys(problems)))
    return taken


@torch.no_grad()
def fill(reader: nn.Module, file: ReleasedFile, taken: Mapping[str, Taken]) -> list[str]:
    """Copies what is trained into the reader, in place; gives the keys of frozen weights that are not the reader's own,
    bit by bit in the reader's type.

    Raises: ValueError where keys of one weight (a tied head and table) differ.
    """
    weights = dict(reader.named_parameters(remove_duplicate=False))
    filled: dict[int, str] = {}
    changed = []
    for name, part in taken.items():
        weight, tensor = weights[name], part.tensor(file)
        if weight.requires_grad and id(weight) not in filled:
            weight.copy_(tensor)
            filled[id(weight)] = part.key
        elif not torch.equal(weight, tensor.to(weight)):
            if id(weight) in filled:
                raise ValueError(
                    f"{file.path}: {part.key} differs from {filled[id(weight)]}, which are one weight in "
                    f"the backbone (tie_word_embeddings); {OTHER_BACKBONE}"
                )
            changed.append(part.key)
    return changed


def listed(heading: str, lines: Iterable[str]) -> str:
    """One message of a heading and the first lines, with how many more there are."""
    lines = list(lines)
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n  ".join([heading, *lines[:SHOWN], *more])


# ------------------------------------------------------------------ names


def _fields(template: str, name: str) -> re.Match | None:
    pattern = re.escape(template)
    for field, expression in FIELDS.items():
        pattern = pattern.replace(re.escape(field), expression)
    return re.fullmatch(pattern, name)


def _renamed(template: str, other: str, name: str) -> str:
    return other.format(**_fields(template, name).groupdict())


def _their_name(form: ReleasedFormat, given: Mapping[str, Any], name: str) -> str:
    found = [_renamed(ours, theirs, name) for theirs, ours in form.pairs(given) if _fields(ours, name)]
    return found[0] if found else name


# ------------------------------------------------------------------ files


def _weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors of a file or folder."""
    if path.is_file():
        if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
            raise ValueError(f"{path}: no checkpoint; give a .safetensors or .bin file, or a folder with one")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    for name in SINGLE:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json")
    raise ValueError(
        f"{path}: no weights in this folder; it needs {' or '.join(SINGLE)}, or one's shards with their index"
    )


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_json(index).get("weight_map", {}).values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent or not names:
        raise ValueError(f"{index}: shards that are not there: {', '.join(absent) or 'it names none'}")
    return [index.parent / name for name in names]


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: no JSON ({error}); the file is damaged") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: no JSON object; the file is damaged")
    return found


def _opened(file: Path) -> Iterable[tuple[str, tuple[int, ...], Any]]:
    """(key, shape, where to get it) of each tensor of a file."""
    try:
        if file.suffix == ".safetensors":
            stream = safe_open(file, framework="pt")
            return [(key, tuple(stream.get_slice(key).get_shape()), stream) for key in stream.keys()]
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # of damaged bytes the unpickler raises nearly every kind there is
        told = (str(error).splitlines() or ["it ends too early"])[0]
        raise ValueError(
            f"{file}: cannot be read as tensors ({told}); the file is damaged, truncated, or "
            "holds other objects, which are never loaded"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file}: holds no plain table of tensors (a state dict); give the file of the weights alone")
    return [(key, tuple(value.shape), tensors) for key, value in tensors.items()]
