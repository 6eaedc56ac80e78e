"""The list of a checkpoint's files and their hashes. It is written last: without it a checkpoint is incomplete.

Order of writes: an empty list, the files, the files to the disk, the list aside, the list in place. A process or a
machine that stops at any moment leaves an incomplete checkpoint or a whole one, and an older one is deleted after that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from breviary.runtime.files import file_sha256, sync_path, write_json

MANIFEST = "files.json"  # {name: [sha256, ...]}, names relative to the checkpoint; null = incomplete


DELETED = ".deleted"  # ending of a checkpoint's name while it is deleted


def begin_checkpoint(folder: str | Path) -> None:
    """Makes an empty folder, marked as incomplete. A checkpoint of a killed or passed over run at its place goes."""
    delete_checkpoint(folder)
    write_json(Path(folder) / MANIFEST, None)


def delete_checkpoint(folder: str | Path) -> None:
    """Deletes a checkpoint. Renamed first: a process killed meanwhile leaves nothing that looks complete."""
    folder = Path(folder)
    doomed = folder if folder.suffix == DELETED else folder.with_name(folder.name + DELETED)
    if doomed.is_dir():  # left by a killed process
        shutil.rmtree(doomed)
    if folder.is_dir():
        folder.replace(doomed)
        shutil.rmtree(doomed)


def seal_checkpoint(folder: str | Path) -> None:
    """Marks a checkpoint as complete: all files are on the disk, and their hashes are listed."""
    folder = Path(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    for path in [*files, *{path.parent for path in files}]:
        sync_path(path)
    write_json(folder / MANIFEST, {path.relative_to(folder).as_posix(): [file_sha256(path)] for path in files})
    sync_path(folder)
    sync_path(folder.parent)


def replace_file(folder: str | Path, name: str, new: Path) -> None:
    """Replaces one file of a complete checkpoint by `new`; at any moment the list holds the hash of the present one."""
    folder, files = Path(folder), _read(Path(folder))
    if files is not None:
        write_json(folder / MANIFEST, files | {name: [*files.get(name, [])[-1:], file_sha256(new)]})
    sync_path(new)
    new.replace(folder / name)
    sync_path(folder)


def is_sealed(folder: str | Path) -> bool:
    """Whether a checkpoint has a list, complete or not. Those of versions before this list have none."""
    return (Path(folder) / MANIFEST).is_file()


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint's list is written, damaged ones included (`damage`). Those without a list count, too."""
    try:
        return not is_sealed(folder) or json.loads((Path(folder) / MANIFEST).read_bytes()) is not None
    except ValueError:
        return True


def damage(folder: str | Path) -> str | None:
    """What differs between a checkpoint's files and its list, in one sentence; None = nothing, or there is no list."""
    folder = Path(folder)
    files = _read(folder)
    if files is None and is_sealed(folder):
        return f"{folder / MANIFEST}: this file of a checkpoint is damaged, it holds no list of files"
    for name, hashes in (files or {}).items():
        path = folder / name
        if not path.is_file():
            return f"{path}: this file of a checkpoint is missing"
        if file_sha256(path) not in hashes:
            return f"{path}: this file of a checkpoint is damaged, its sha256 differs from the one in {MANIFEST}"
    return None


def _read(folder: Path) -> dict[str, Any] | None:
    """The list; None where there is none, or an empty or a damaged one."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return files if isinstance(files, dict) else None
