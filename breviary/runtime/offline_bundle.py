"""Packs wheels, a backbone and data sets into a folder for a machine without a network; large files are split."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from breviary.runtime.checkout import ROOT

MB = 1_000_000
INSTALLER = ROOT / "scripts" / "offline_install.sh"
HIDDEN = (".", "__pycache__")


def make_bundle(
    output: str | Path,
    wheels: Iterable[str | Path] = (),
    backbone: str | Path | None = None,
    data: Iterable[str | Path] = (),
    part_size_mb: float = 30,
) -> dict[str, Any]:
    """Writes the bundle's folder and returns its manifest.

    output        a folder that does not exist yet, or is empty
    wheels        wheel files, or folders of them
    backbone      a .gguf, a .whl or a folder of safetensors, as accepted by scripts/get_backbone.py --from
    data          files and folders; each keeps its name below the data folder
    part_size_mb  files above this size are split; 1 MB = 10^6 bytes

    The manifest lists for every file its path, kind (wheel | backbone | data), bytes, sha256 and parts. The only part
    of an unsplit file is the file itself.

    Raises: ValueError naming the argument and the allowed values.
    """
    output = Path(output)
    if part_size_mb <= 0:
        raise ValueError(f"--part-size {part_size_mb}: allowed is any size above 0 (MB)")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder: give another OUT")
    members = [*_wheel_members(wheels), *_backbone_members(backbone), *_data_members(data)]
    if not members:
        raise ValueError("nothing to pack: give --wheels, --backbone or --data")
    duplicates = [path for path, count in Counter(path for path, _, _ in members).items() if count > 1]
    if duplicates:
        raise ValueError(f"given more than once: {', '.join(duplicates)}")

    part_bytes = max(1, int(part_size_mb * MB))
    output.mkdir(parents=True, exist_ok=True)
    files = [_pack(output, path, kind, source, part_bytes) for path, kind, source in members]
    manifest = {"format": 1, "part_bytes": part_bytes, "files": files}
    shutil.copyfile(INSTALLER, output / "install.sh")
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


# ------------------------------------------------------------------ members: (path in the bundle, kind, source)

Member = tuple[str, str, Path]


def _wheel_members(wheels: Iterable[str | Path]) -> Iterator[Member]:
    for argument in map(Path, wheels):
        paths = sorted(path for path in argument.iterdir() if path.is_file()) if argument.is_dir() else [argument]
        for path in paths:
            if not path.is_file():
                raise ValueError(
                    f"--wheels {path}: no such file or folder; fetch wheels with `pip wheel -w DIR NAME ...`"
                )
            if path.suffix != ".whl":
                raise ValueError(
                    f"--wheels {path}: allowed are .whl files and folders of them; "
                    f"build a wheel of a source package with `pip wheel --no-deps -w DIR {path.name}`"
                )
            yield f"wheels/{path.name}", "wheel", path
        if not paths:
            raise ValueError(f"--wheels {argument}: an empty folder; fill it with `pip wheel -w {argument} NAME ...`")


def _backbone_members(backbone: str | Path | None) -> Iterator[Member]:
    if backbone is None:
        return
    backbone = Path(backbone)
    if backbone.is_dir():
        if not (backbone / "config.json").is_file() or not any(backbone.glob("*.safetensors")):
            raise ValueError(
                f"--backbone {backbone}: a folder needs config.json and *.safetensors; "
                "allowed are also a .gguf and a .whl"
            )
        for path, relative in _walk(backbone):
            yield f"backbone/{backbone.resolve().name}/{relative}", "backbone", path
    elif backbone.is_file() and backbone.suffix in (".gguf", ".whl"):
        yield f"backbone/{backbone.name}", "backbone", backbone
    else:
        raise ValueError(f"--backbone {backbone}: allowed are a .gguf, a .whl and a folder of safetensors")


def _data_members(data: Iterable[str | Path]) -> Iterator[Member]:
    for argument in map(Path, data):
        if argument.is_file():
            yield f"data/{argument.name}", "data", argument
            continue
        members = [(f"data/{argument.resolve().name}/{relative}", "data", path) for path, relative in _walk(argument)]
        if not members:
            raise ValueError(f"--data {argument}: no such file, or a folder without files")
        yield from members


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder with their relative paths, without hidden ones (caches of downloads, editors' files)."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(HIDDEN) for part in relative.parts):
            yield path, relative.as_posix()


# ------------------------------------------------------------------ packing


def _pack(output: Path, path: str, kind: str, source: Path, part_bytes: int) -> dict[str, Any]:
    """Copies one file into the bundle, in parts if it is larger than `part_bytes`; returns its manifest entry."""
    size = source.stat().st_size
    digest = hashlib.sha256()
    parts = []
    count = max(1, -(-size // part_bytes))
    with open(source, "rb") as stream:
        for index in range(count):
            part_path = path if count == 1 else f"parts/{path}.{index + 1:03d}-of-{count:03d}"
            target = output / part_path
            target.parent.mkdir(parents=True, exist_ok=True)
            block = stream.read(part_bytes)
            target.write_bytes(block)
            digest.update(block)
            parts.append({"path": part_path, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
    return {"path": path, "kind": kind, "bytes": size, "sha256": digest.hexdigest(), "parts": parts}
