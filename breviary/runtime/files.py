"""Atomic writes of text and JSON, and the hash of named tensors."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values; independent of the order of `tensors`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Writes a file atomically: a killed process leaves the old file or the new one, never a partial one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(_encode(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _encode(text: str) -> bytes:
    # A lone surrogate has no UTF-8 encoding. Its escape is valid JSON and is parsed back to the same character.
    return text.encode("utf-8", "backslashreplace")
