"""Measured peak of a training step on the CPU, for comparison with the estimate: bytes of live tensors.

A torch dispatch mode counts the storages of all results of operations until they are freed. Temporary memory inside a
kernel is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from breviary.contract import Batch, Reader

CLIP = 1.0  # gradient norm, as train.max_grad_norm


class LiveBytes(TorchDispatchMode):
    """Context manager: `live` bytes of the tensors that operations created, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def track(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.track(leaf)
        return result


def measured_step(reader: Reader, batch: Batch, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> int:
    """Peak of live bytes in the second training step, in which the optimizer state already exists. One process."""
    trained = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    adam = optimizer(trained, lr=1e-5)
    reader.train()
    with LiveBytes() as bytes_:
        for tensor in (*reader.parameters(), *reader.buffers()):
            bytes_.track(tensor)
        for step in range(2):
            bytes_.peak = bytes_.live
            reader.begin_step(step, 0)
            terms = reader(batch)["terms"].values()
            sum(value / count.clamp(min=1).to(value.dtype) for value, count in terms).backward()
            del terms
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            adam.step()
            adam.zero_grad()
    return bytes_.peak
