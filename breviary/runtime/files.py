"""Atomic writes of text and JSON, the hash of named tensors, and messages for files that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values; independent of the order of `tensors`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        update_hash(digest, name, tensor)
    return digest.hexdigest()


def update_hash(digest: Any, name: str, tensor: Tensor) -> None:
    """Adds one tensor to the digest of `hash_tensors`. Call in the order of the names."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Writes a file atomically: a killed process leaves the old file or the new one, never a partial one."""
    with written_aside(path) as part, open(part, "wb") as file:
        file.write(_encode(text))


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yields a file beside `path` to write, which replaces `path` once it is on the disk.

    After an error `path` is as before. Raises: OSError naming `path` where the disk is full, in place of what the
    writing library raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with named_errors(path):
            yield part
            sync_path(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def usual_mode(path: str | Path) -> None:
    """Gives a file the permissions of any new file: safetensors writes files that only their owner can read."""
    umask = os.umask(0o077)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def sync_path(path: str | Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_text(path: str | Path, text: str) -> None:
    """Appends to a file. Where the disk is full, the file stays as it was: no part of `text` remains in it."""
    with named_errors(path), open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        rest = memoryview(_encode(text))
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def parse_json(text: str | bytes) -> Any:
    """As json.loads, for what others wrote: a value nested too deeply for Python raises JSONDecodeError as well."""
    try:
        return json.loads(text)
    except RecursionError as error:
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        raise json.JSONDecodeError("nested too deeply", shown, 0) from error


def read_object(path: str | Path, *keys: str, kind: type = object) -> dict[str, Any]:
    """A JSON file that this program wrote: an object with at least `keys`, whose values are of type `kind`.

    Raises: ValueError naming the file where it is missing or holds anything else.
    """
    try:
        value = parse_json(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: this file is missing; use another copy of the folder") from error
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}); use another copy of the folder") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged, it must be a JSON object; use another copy of the folder")
    if missing := [key for key in keys if key not in value]:
        raise ValueError(f"{path}: damaged, without {', '.join(missing)}; use another copy of the folder")
    for key in keys:
        if not isinstance(value[key], kind):
            raise ValueError(f"{path}: damaged, {key} is {value[key]!r}; use another copy of the folder")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


# ------------------------------------------------------------------ what cannot be written

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
# What safetensors and torch raise on a full disk, which are no OSErrors. torch closes its file after the failed write,
# which fails at an "unexpected pos".
FULL_TEXTS = (
    *("os error 27", "os error 28", "os error 122", "PytorchStreamWriter failed writing", ". unexpected pos "),
    *(os.strerror(code) for code in FULL),
)


@contextlib.contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Adds the file to an error of a full disk that names none. What libraries raise about it becomes an OSError.

    path  the file, or a folder in which files are written: its newest file, which was being written, is then named
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or _written_in(Path(path))
        raise
    except Exception as error:
        if not any(text in str(error) for text in FULL_TEXTS):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _written_in(Path(path))) from error


def _written_in(path: Path) -> str:
    """The newest file of a folder; any other path as it is."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return str(max(files, key=lambda file: file.stat().st_mtime_ns, default=path))


def storage_message(error: BaseException) -> str | None:
    """The message of an error of the disk: full, or a folder that cannot be written. None for any other error."""
    if isinstance(error, OSError) and error.errno in FULL + REFUSED:
        code, reason, name = error.errno, os.strerror(error.errno), str(error.filename or "a file")
    elif any(text in str(error) for text in FULL_TEXTS):
        code, reason, name = errno.ENOSPC, os.strerror(errno.ENOSPC), "a file"
    else:
        return None
    if code in FULL:
        return (
            f"{name}: cannot be written ({reason}); what was written before is complete. Free space, then give the "
            "same command again: an evaluation goes on after its predictions, a training with resume=auto after its "
            "last checkpoint"
        )
    return (
        f"{name}: no access ({reason}); set paths.outputs and paths.cache to folders that you may write, e.g. "
        "paths.outputs=outputs"
    )


def folder_problem(key: str, folder: str | Path, variable: str | None = None) -> list[str]:
    """An error message where `folder`, the value of `key`, is empty or could not be created and written to.

    variable  environment variable from which the value comes by default
    """
    default = f"; the environment variable {variable} may be set to nothing: unset it, or" if variable else ";"
    example = f"e.g. {key}={key.rpartition('.')[2]}"
    if not str(folder).strip():
        return [f"{key} is empty{default} give a folder, {example}"]
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [f"{key}={folder}: {existing} is a file; give a folder, {example}"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{key}={folder}: {existing} cannot be written; give a folder that you may write, {example}"]
    return []


def variable_folder(variable: str, default: str | Path) -> Path:
    """The folder in an environment variable; the default where it is not set. Raises: ValueError where it is empty."""
    value = os.environ.get(variable)
    if value is not None and not value.strip():
        raise ValueError(f"the environment variable {variable} is empty; unset it, or set it to a folder")
    return Path(default if value is None else value).expanduser()


def _encode(text: str) -> bytes:
    # A lone surrogate has no UTF-8 encoding. Its escape is valid JSON and is parsed back to the same character.
    return text.encode("utf-8", "backslashreplace")
