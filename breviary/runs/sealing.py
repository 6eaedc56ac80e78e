"""The list of a checkpoint's files and their hashes. It is written last: without it a checkpoint is incomplete.

Order of writes: an empty list, the files, the files to the disk, the list aside, the list in place. A process or a
machine that stops at any moment leaves an incomplete checkpoint or a whole one, and an older one is deleted after that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from breviary.runtime.files import file_sha256, sync_path, write_json

MANIFEST = "files.json"  # {name: [sha256, ...]}, names relative to the checkpoint; null = incomplete


def begin_checkpoint(folder: str | Path) -> None:
    """Marks a checkpoint as incomplete, before its first file is written."""
    write_json(Path(folder) / MANIFEST, None)


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


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint's list is written. Checkpoints of versions before this list count as complete."""
    return not (Path(folder) / MANIFEST).is_file() or _read(Path(folder)) is not None


def damage(folder: str | Path) -> str | None:
    """What differs between a checkpoint's files and its list, in one sentence; None = nothing, or there is no list."""
    folder = Path(folder)
    for name, hashes in (_read(folder) or {}).items():
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
