"""Out of memory, on the host or on a GPU: one sentence with what was computed, its sizes, and the keys to change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from breviary.contract import Batch

TRAINING = (
    "set a smaller train.batch_size and as much more train.accumulation (equal optimizer steps), "
    "limits.max_context_tokens, train.gradient_checkpointing=true or backbone.dtype=bfloat16"
)
EVALUATION = (
    "set a smaller eval_batch_size, generation.max_new_tokens, limits.max_context_tokens or backbone.dtype=bfloat16"
)
LOADING = (
    "set backbone.dtype=bfloat16, a smaller backbone, another backbone.device, or for a training on several GPUs "
    "engine=zero3 or engine=fsdp"
)
IN_PYTHON = "give shorter texts, fewer of them at a time or fewer max_new_tokens, or load the reader on another device"
FEWER_WORKERS = "set train.workers=0 or fewer"

HOST, GPU = "the host", "the GPU"
WORKER = "the host, whose kernel killed a data loader process,"
# What torch raises as a plain RuntimeError.
TEXTS = {
    "DefaultCPUAllocator: ": HOST,
    "Cannot allocate memory": HOST,
    "CUDA error: out of memory": GPU,
    "CUBLAS_STATUS_ALLOC_FAILED": GPU,
}
# A killed data loader process: by the kernel when memory is exhausted, with SIGBUS where shared memory is.
KILLED_WORKER = re.compile(r"DataLoader worker \(pid\D*\d+\) is killed by signal: (Killed|Bus error)")


class OutOfMemory(MemoryError):
    """Memory is exhausted; the message is complete. Command lines print it and exit with code 2."""


@contextlib.contextmanager
def memory_errors(doing: str, advice: str, batch: Batch | None = None, receives: bool = False) -> Iterator[None]:
    """Raises OutOfMemory in place of any error that means exhausted memory; it also works as a decorator.

    doing     what is computed: "a training step"
    advice    what to change, a clause
    batch     whose sizes are named
    receives  from data loader processes: a connection that breaks is that of a killed one
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        place = WORKER if receives and isinstance(error, ConnectionError | EOFError) else _exhausted(error)
        if place is None:
            raise
        sizes = f", {batch_sizes(batch)}" if batch is not None else ""
        advice = f"{FEWER_WORKERS}; {advice}" if place == WORKER else advice
        raise OutOfMemory(f"out of memory on {place} in {doing}{sizes}{_amount(error)}: {advice}") from error


def batch_sizes(batch: Batch) -> str:
    """The number of examples and the longest part of each kind, without a computation on the device."""
    context, question, answer = (part.ids.shape[1] for part in (batch.context, batch.prompt, batch.answer))
    return f"a batch of {len(batch)} with up to {context} context, {question} question and {answer} answer tokens"


def _exhausted(error: BaseException | None) -> str | None:
    """HOST, GPU or WORKER; None for an error that does not mean exhausted memory, and whose causes do not."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return GPU
        if isinstance(error, MemoryError):
            return HOST
        text = str(error)
        if KILLED_WORKER.search(text):
            return WORKER
        place = next((place for part, place in TEXTS.items() if part in text), None)
        if place is not None:
            return place
        error = error.__cause__
    return None


def _amount(error: Exception) -> str:
    """ " (tried to allocate 20.00 MiB)" where the error names it."""
    found = re.search(r"to allocate ([\d.,]+ \w+)", str(error))
    return f" (tried to allocate {found[1]})" if found else ""
