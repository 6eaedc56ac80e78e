"""Peak memory of a loss over the vocabulary: in chunks of rows, and unchunked on one chunk and on all rows.

Shape letters: R rows, D hidden width, V vocabulary, K = the teacher's largest logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from breviary.backbones.head import Head, chunks_of, row_losses, token_nll
from breviary.backbones.pretrained import DTYPES
from breviary.evaluation.bench.rows import Row
from breviary.evaluation.timing import peak_resident_bytes, reset_peak_memory
from breviary.objectives.distillation import TopKDivergence, topk_kl_divergence

LOSSES = ("answer", "distill")
TOP = 64  # K
MIB = 2**20


def measure_loss_memory(loss: str, trained: bool, dtype: str, rows: int, vocabulary: int, width: int) -> Row:
    """Peak resident MiB of a loss, forward and backward, without its inputs and the returned gradients.

    loss     answer: cross-entropy | distill: KL against a teacher's 64 largest logits
    trained  whether the head's weights have a gradient
    Returns chunk_rows and, in MiB: logits_mib of a chunk in float32, chunk_mib (plain, one chunk), ours_mib (all rows,
    in chunks), plain_mib (all rows at once); ratio = ours / chunk.
    """
    torch.manual_seed(0)
    head = Head(width, vocabulary, bias=False).to(DTYPES[dtype]).requires_grad_(trained)
    states = torch.randn(rows, width, dtype=DTYPES[dtype], requires_grad=True)
    teacher, ids = torch.randn_like(states).detach(), torch.randint(0, vocabulary, (rows,))
    chunk = next(chunks_of(rows, vocabulary)).stop
    compute = {"answer": _answer, "distill": _distill}[loss]
    calls = {
        "chunk": lambda: compute(head, states[:chunk], ids[:chunk], teacher[:chunk], True),
        "ours": lambda: compute(head, states, ids, teacher, False),
        "plain": lambda: compute(head, states, ids, teacher, True),
    }
    results = {"chunk": chunk, "ours": rows, "plain": rows}
    peaks = {}
    for name, call in calls.items():
        returned = results[name] * width + (head.weight.numel() if trained else 0)
        peaks[name] = (_peak_bytes(head, states, call) - returned * head.weight.itemsize) / MIB
    return {
        "loss": loss,
        "head": "trained" if trained else "frozen",
        "dtype": dtype,
        "tokens": rows,
        "chunk_rows": chunk,
        "logits_mib": chunk * vocabulary * 4 / MIB,
        **{f"{name}_mib": peak for name, peak in peaks.items()},
        "ratio": peaks["ours"] / peaks["chunk"],
    }


def _peak_bytes(head: Head, states: Tensor, loss: Callable[[], Tensor]) -> int:
    """Increase of peak resident memory in a forward and backward pass, bytes. Linux only."""
    head.weight.grad = states.grad = None
    before = reset_peak_memory()
    loss().sum().backward()
    return peak_resident_bytes() - before


def _answer(head: Head, states: Tensor, ids: Tensor, teacher: Tensor, plain: bool) -> Tensor:
    if plain:
        return cross_entropy(nn.functional.linear(states, head.weight).float(), ids, reduction="none")
    return token_nll(head, states, ids)


def _distill(head: Head, states: Tensor, ids: Tensor, teacher: Tensor, plain: bool) -> Tensor:
    if not plain:
        return row_losses(head, states, TopKDivergence(teacher, TOP))
    with torch.no_grad():
        target = nn.functional.linear(teacher, head.weight).float()
    return topk_kl_divergence(nn.functional.linear(states, head.weight).float(), target, TOP)
