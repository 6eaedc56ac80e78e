"""Checkpoints that a method's authors released: reads the files, translates the names, accounts for every key.

A method lists its own names in a subclass of ReleasedFormat (released.py of its package). breviary.runs.importing turns
such a checkpoint into a run. Names are templates: {n} stands for a layer number, {rest} for the remainder of the name.
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

MAX_LISTED = 10  # keys in one message

BACKBONE_HINT = "give the model that it was trained from with --backbone"

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

FIELDS = {"{n}": r"(?P<n>\d+)", "{rest}": r"(?P<rest>.+)"}

NameMap = tuple[tuple[str, str], ...]


class ReleasedFile:
    """The tensors of a checkpoint: a .safetensors or PyTorch file, or a folder with one or with its shards.

    Only headers are read before `tensor` is called. PyTorch files are memory-mapped and opened with weights_only=True.

    shapes  {key: shape}
    config  content of config.json in the folder of the weights; None = there is none
    Raises: ValueError where the file is missing, damaged, or contains anything but tensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.files = _weight_files(self.path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._containers: dict[str, Any] = {}
        for file in self.files:
            for key, shape, container in _open_tensors(file):
                self.shapes[key], self._containers[key] = shape, container
        self.folder = self.path if self.path.is_dir() else self.path.parent
        config_file = self.folder / "config.json"
        self.config: dict[str, Any] | None = _read_json(config_file) if config_file.is_file() else None

    def tensor(self, key: str) -> Tensor:
        """The tensor stored under `key`. Raises: ValueError where it is missing, unreadable or not finite."""
        if key not in self._containers:
            raise ValueError(f"{self.path}: missing: {key}")
        container = self._containers[key]
        try:
            tensor = container[key] if isinstance(container, dict) else container.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: {key} cannot be read ({error}); the file is damaged") from error
        if not tensor.isfinite().all():
            raise ValueError(f"{self.path}: {key} contains NaN or infinite values; the file is damaged")
        return tensor

    def has_prefix(self, prefix: str) -> bool:
        """Whether any key starts with `prefix`."""
        return any(key.startswith(prefix) for key in self.shapes)

    def layer_count(self, template: str) -> int:
        """Number of layers: one more than the largest {n} of the keys that match `template`; 0 without a match."""
        matches = (_match(template, key) for key in self.shapes)
        return max((int(match["n"]) + 1 for match in matches if match), default=0)


@dataclass(frozen=True)
class TensorSource:
    """Where a weight of the reader comes from: a key of the file, and the rows of its tensor (None = all)."""

    key: str
    rows: slice | tuple[int, ...] | None = None

    def shape(self, file: ReleasedFile) -> tuple[int, ...]:
        """The weight's shape. A scalar becomes a vector of one element, because DeepSpeed rejects scalars."""
        whole = file.shapes[self.key] or (1,)
        if self.rows is None:
            return whole
        rows = len(range(*self.rows.indices(whole[0]))) if isinstance(self.rows, slice) else len(self.rows)
        return rows, *whole[1:]

    def tensor(self, file: ReleasedFile) -> Tensor:
        """The weight's values, in that shape."""
        whole = file.tensor(self.key)
        rows = list(self.rows) if isinstance(self.rows, tuple) else self.rows
        return (whole if rows is None else whole[rows]).reshape(self.shape(file))


class ReleasedFormat:
    """The names and settings in the checkpoints of one method; each method has a subclass.

    title       the method's name
    experiment  configs/experiment/NAME.yaml with the published settings
    defaults    published values of settings that the file does not contain: {argument: value}

    `arguments` below has the keys of `defaults`.
    """

    title = experiment = ""
    defaults: Mapping[str, Any] = {}

    def __init__(self, file: ReleasedFile):
        self.file = file

    @property
    def decoder_prefix(self) -> str:
        """Prefix of the decoder's keys, before `model.` and `lm_head.`."""
        raise NotImplementedError

    def weight_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """(template in the file, template in the reader) of every key that is a weight of the reader."""
        raise NotImplementedError

    def unused_names(self, arguments: Mapping[str, Any]) -> NameMap:
        """(template in the file, reason) of every key that is not a weight of the reader."""
        raise NotImplementedError

    def settings(self, arguments: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
        """Values of the configuration that follow from the file and from `arguments`: {dotted key: value}."""
        raise NotImplementedError

    def train_modes(self) -> tuple[str, ...]:
        """Values of decoder.train to try in turn, until all frozen weights equal the backbone's."""
        raise NotImplementedError

    def row_sources(self, backbone: Any) -> dict[str, TensorSource]:
        """Weights of the reader that are some rows of a key in the file, not all of it."""
        return {}

    def problems(self, backbone: Any) -> list[str]:
        """Error message where the sizes of the file do not match the backbone; at most one."""
        key, config = f"{self.decoder_prefix}model.embed_tokens.weight", backbone.config
        table = self.file.shapes.get(key)
        if table is None:
            return [f"{self.file.path}: missing: {key}"]
        if len(table) != 2:
            return [f"{self.file.path}: {key} has shape {table}, must have two dimensions"]
        released = *table, self.file.layer_count(f"{self.decoder_prefix}model.layers.{{n}}.{{rest}}")
        own = config.vocab_size, config.hidden_size, config.num_hidden_layers
        if self.sizes_match(released, own):
            return []
        return [
            f"{self.file.path}: its decoder has {released[0]} tokens, width {released[1]} and {released[2]} layers, "
            f"{backbone.path} has {own[0]}, {own[1]} and {own[2]}; {BACKBONE_HINT}"
        ]

    def sizes_match(self, released: tuple[int, int, int], own: tuple[int, int, int]) -> bool:
        """Whether sizes (vocabulary, width, layers) of the released decoder are possible for this backbone."""
        return released == own

    def unknown_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Keys of the file that match no template of this format."""
        templates = [template for template, _ in (*self.weight_names(arguments), *self.unused_names(arguments))]
        return [key for key in self.file.shapes if not any(_match(template, key) for template in templates)]

    def unused_keys(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """{key: reason} of the keys of the file that are not weights of the reader."""
        used = [template for template, _ in self.weight_names(arguments)]
        reasons = {}
        for key in self.file.shapes:
            if any(_match(template, key) for template in used):
                continue
            for template, reason in self.unused_names(arguments):
                if _match(template, key):
                    reasons[key] = reason
                    break
        return reasons


def stack_names(released: str, own: str, embedding: bool = True, head: bool = True) -> NameMap:
    """Names of a Hugging Face decoder with prefix `released`, and of a `Stack` with prefix `own`."""
    names = [("model.layers.{n}.{rest}", "layers.{n}.{rest}"), ("model.norm.weight", "final_norm.weight")]
    names += [("model.embed_tokens.weight", "embed_tokens.weight")] if embedding else []
    names += [("lm_head.weight", "lm_head.weight")] if head else []
    return tuple((released + theirs, own + ours) for theirs, ours in names)


def locate_weights(
    checkpoint: ReleasedFormat, arguments: Mapping[str, Any], reader: nn.Module, backbone: Any
) -> dict[str, TensorSource]:
    """{weight of the reader: its source in the file}. Every weight has a source of the same shape.

    Raises: ValueError naming the missing, misshapen and unknown keys.
    """
    file = checkpoint.file
    weights = dict(reader.named_parameters(remove_duplicate=False))
    sources = checkpoint.row_sources(backbone)
    split_keys = {source.key for source in sources.values()}
    names = checkpoint.weight_names(arguments)
    for key in file.shapes:
        matches = [_translate(template, own, key) for template, own in names if _match(template, key)]
        if matches and key not in split_keys:
            sources[matches[0]] = TensorSource(key)
    problems = [
        f"unknown: {source.key} (the reader has no {name})" for name, source in sources.items() if name not in weights
    ]
    covered = {id(weights[name]) for name in sources if name in weights}  # a tied head and embedding are one weight
    missing = {id(weight): name for name, weight in reversed(weights.items()) if id(weight) not in covered}
    problems += [f"missing: {_released_name(names, name)}" for name in reversed(missing.values())]
    for name, source in sources.items():
        if source.key not in file.shapes:
            problems.append(f"missing: {source.key}")
        elif name in weights and source.shape(file) != tuple(weights[name].shape):
            problems.append(
                f"shape of {source.key}: {source.shape(file)} in the file, {tuple(weights[name].shape)} in the reader"
            )
    if problems:
        heading = f"{file.path}: does not fit {checkpoint.title} on {backbone.path}:"
        raise ValueError(list_message(heading, dict.fromkeys(problems)))
    return sources


@torch.no_grad()
def load_weights(reader: nn.Module, file: ReleasedFile, sources: Mapping[str, TensorSource]) -> list[str]:
    """Copies the trained weights into the reader, in place.

    Returns the keys of frozen weights whose values differ from the reader's, compared exactly in the reader's dtype.
    Raises: ValueError where two keys of one weight (a tied head and embedding) differ.
    """
    weights = dict(reader.named_parameters(remove_duplicate=False))
    loaded: dict[int, str] = {}
    changed = []
    for name, source in sources.items():
        weight, tensor = weights[name], source.tensor(file)
        if weight.requires_grad and id(weight) not in loaded:
            weight.copy_(tensor)
            loaded[id(weight)] = source.key
        elif not torch.equal(weight, tensor.to(weight)):
            if id(weight) in loaded:
                raise ValueError(
                    f"{file.path}: {source.key} differs from {loaded[id(weight)]}, which are one weight in "
                    f"the backbone (tie_word_embeddings); {BACKBONE_HINT}"
                )
            changed.append(source.key)
    return changed


def list_message(heading: str, lines: Iterable[str]) -> str:
    """A heading and the first MAX_LISTED lines, indented, with the number of further ones."""
    lines = list(lines)
    more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n  ".join([heading, *lines[:MAX_LISTED], *more])


# ------------------------------------------------------------------ names


def _match(template: str, name: str) -> re.Match | None:
    pattern = re.escape(template)
    for field, expression in FIELDS.items():
        pattern = pattern.replace(re.escape(field), expression)
    return re.fullmatch(pattern, name)


def _translate(template: str, other: str, name: str) -> str:
    """`name`, which matches `template`, under the template `other`."""
    match = _match(template, name)
    assert match is not None, (template, name)
    return other.format(**match.groupdict())


def _released_name(names: NameMap, name: str) -> str:
    """The name in the file of a weight of the reader; its own name where it has none."""
    translated = [_translate(own, template, name) for template, own in names if _match(own, name)]
    return translated[0] if translated else name


# ------------------------------------------------------------------ files


def _weight_files(path: Path) -> list[Path]:
    """The files that contain the tensors of a checkpoint file or folder."""
    if path.is_file():
        if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
            raise ValueError(f"{path}: not a checkpoint; give a .safetensors or .bin file, or a folder with one")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return _shard_files(path / f"{name}.index.json")
    raise ValueError(
        f"{path}: no weights in this folder; it needs {' or '.join(WEIGHT_FILES)}, or its shards with their index"
    )


def _shard_files(index: Path) -> list[Path]:
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if not names:
        raise ValueError(f"{index}: lists no shards")
    if missing:
        raise ValueError(f"{index}: missing shards: {', '.join(missing)}")
    return [index.parent / name for name in names]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}); the file is damaged") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object; the file is damaged")
    return content


def _open_tensors(file: Path) -> list[tuple[str, tuple[int, ...], Any]]:
    """(key, shape, container to read the tensor from) of each tensor of a file."""
    try:
        if file.suffix == ".safetensors":
            stream = safe_open(file, framework="pt")
            keys = stream.keys()  # a safe_open object is not iterable
            return [(key, tuple(stream.get_slice(key).get_shape()), stream) for key in keys]
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # the unpickler raises errors of many types for damaged bytes
        reason = (str(error).splitlines() or ["the file ends too early"])[0]
        raise ValueError(
            f"{file}: cannot be read as tensors ({reason}); the file is damaged, truncated, or "
            "contains other objects, which are never loaded"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file}: not a plain state dict of tensors; give the file with the weights alone")
    return [(key, tuple(value.shape), tensors) for key, value in tensors.items()]
