"""Reads the optimizer files of DeepSpeed and FSDP without running code that a file may contain.

Both libraries read their own files with Python's unpickler, which calls whatever a file names. A run folder may come
from somebody else, so only the classes that their own files hold are admitted here.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

METADATA = ".metadata"
FSDP_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # Python 3.13
}


def read_deepspeed_files(engine: Any) -> None:
    """Makes an engine of `deepspeed.initialize` read its files of a checkpoint as plain data.

    Reading raises: ValueError where a file holds anything else, or is damaged.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler  # deepspeed is imported where it is used
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def load(path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return _read(path, lambda: torch.load(path, map_location=map_location, weights_only=True))

    engine.checkpoint_engine.load = load


def load_shards(state: dict[str, Any], folder: str | Path, no_dist: bool = False) -> None:
    """Reads a folder of sharded tensors and plain values, into `state`, in place. Called by all ranks.

    no_dist  this process alone
    Raises: ValueError on every rank where a file holds anything else, or is damaged; OSError.
    """
    reader = _PlainReader(folder)
    reader.read_metadata()  # whose errors `dcp.load` would raise as an AssertionError
    try:
        dcp.load(state, storage_reader=reader, planner=_PlainPlanner(), no_dist=no_dist)
    except dcp.CheckpointException as error:  # of all ranks' errors, and no Exception
        raise next(iter(error.failures.values()))[0] from error


class _PlainReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As in the base class, whose unpickler can run code."""
        file = Path(self.path) / METADATA
        metadata = _read(file, lambda: _MetadataUnpickler(io.BytesIO(file.read_bytes())).load())
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """As in the base class, whose unpickler can run code."""
        name = read_item.dest_index.fqn
        plain = _read(name, lambda: torch.load(value, weights_only=True))
        super().load_bytes(read_item, _to_bytes(plain))


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in FSDP_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is none of the classes of such a file")
        return getattr(importlib.import_module(module), name)


def _to_bytes(value: Any) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


def _read(name: str | Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise
    except Exception as error:  # unpicklers raise errors of many types for damaged bytes
        reason = (str(error).splitlines() or ["the file ends too early"])[0]
        raise ValueError(
            f"resume: {name} cannot be read as plain data ({reason}); it is damaged or contains other objects, which "
            "are never loaded. Use another checkpoint, or take its weights alone: init_from=RUN"
        ) from error
