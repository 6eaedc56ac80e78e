"""The language-model head, and losses computed in chunks of rows, so that the full logits are never materialised.

Shape letters: R rows, r rows of a chunk, D hidden width, V vocabulary.

Logits of 8,192 tokens over a vocabulary of 152,064 take 5 GB in float32, and the plain cross-entropy allocates tensors
of the same size. Here the logits of a chunk are freed before those of the next are computed. With a frozen head (LoRA)
the forward pass also computes the gradient of the rows, at the cost of the plain loss. With a trained head the backward
pass recomputes each chunk's logits: one additional matrix product.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**26  # logits of a chunk: 268 MB in float32; 441 rows of 152,064 tokens

LIGER = (0, 8, 5)  # oldest version that is used: earlier ones have wrong gradients of single tokens' losses

Project = Callable[[Tensor], Tensor]  # rows (r, D) -> logits (r, V), float32 or wider


class Head(nn.Linear):
    """A head without bias, (..., D) -> (..., V), whose losses are computed inside one call of the module.

    ZeRO-3 and FSDP gather a module's weights when it is called. One call makes the number of gathers independent of the
    number of chunks, which differs between ranks.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> Head:
        """Converts the module in place; its weights, its hooks and references to it stay valid."""
        assert type(linear) in (nn.Linear, Head) and linear.bias is None, f"{linear} as a head"
        linear.__class__ = cls
        return linear  # type: ignore[return-value]

    def forward(self, rows: Tensor, compute: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
        """Logits of the rows; with `compute`, its result for the rows and the weights (V, D)."""
        return super().forward(rows) if compute is None else compute(rows, self.weight)


class RowLoss:
    """A loss of each row's logits that does not depend on the other rows."""

    def values(self, logits: Tensor, rows: slice, project: Project) -> Tensor:
        """Losses (r,) of a chunk. It may overwrite its logits (r, V).

        rows     indices of the chunk's rows
        project  the head, for extra rows, such as a teacher's
        """
        raise NotImplementedError

    def values_and_gradient(self, logits: Tensor, rows: slice, project: Project) -> tuple[Tensor, Tensor]:
        """Losses (r,), and the gradient of each by its row's logits, (r, V). It may overwrite the logits."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = self.values(leaf, rows, project)
            [gradient] = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


class CrossEntropy(RowLoss):
    """Negative log likelihood in nats of the tokens `ids` (R,). Overwrites the logits and needs no second copy."""

    def __init__(self, ids: Tensor):
        self.ids = ids

    def values(self, logits: Tensor, rows: slice, project: Project | None = None) -> Tensor:
        """As `RowLoss.values`."""
        return self._exponentials(logits, rows)[0]

    def values_and_gradient(self, logits: Tensor, rows: slice, project: Project) -> tuple[Tensor, Tensor]:
        """As `RowLoss.values_and_gradient`: probabilities, less 1 at the token."""
        values, total_r1 = self._exponentials(logits, rows)
        logits.div_(total_r1).scatter_add_(1, self.ids[rows, None], -torch.ones_like(total_r1))
        return values, logits

    def _exponentials(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Losses (r,), and the sums (r, 1) of the exponentials that replace the logits."""
        logits -= logits.amax(1, keepdim=True)
        own_r1 = logits.gather(1, self.ids[rows, None])
        total_r1 = logits.exp_().sum(1, keepdim=True)
        return (total_r1.log() - own_r1)[:, 0], total_r1


# ------------------------------------------------------------------ losses


def token_nll(head: Head, rows: Tensor, ids: Tensor, *extra: Head) -> Tensor:
    """Negative log likelihood in nats of tokens `ids` (...), float32 or wider, from normed rows (..., D).

    extra  heads whose logits follow those of `head`
    On CUDA, Liger's fused kernel computes more than one chunk where it is installed.
    """
    flat_ids = ids.flatten()
    fused = None if extra or flat_ids.numel() * head.out_features <= CHUNK_LOGITS else liger_loss(rows.device)
    if fused is None:
        return row_losses(head, rows, CrossEntropy(flat_ids), *extra)
    compute = lambda flat, weight: fused(weight, flat, flat_ids)
    return head(rows.flatten(0, -2), compute=compute).view(ids.shape)


def row_losses(head: Head, rows: Tensor, loss: RowLoss, *extra: Head) -> Tensor:
    """`loss` of each normed row, (..., D) -> (...), float32 or wider; `extra` as in `token_nll`."""
    flat = rows.flatten(0, -2)
    losses = _with_weights([head, *extra], flat, functools.partial(_losses, loss))
    return losses.view(rows.shape[:-1])


@torch.no_grad()
def row_values(
    head: Head, rows: Tensor, values: Callable[[Tensor, slice], Sequence[Tensor]], *extra: Head
) -> tuple[Tensor, ...]:
    """`values(logits (r, V), chunk)`, tensors (r, ...) of each chunk of normed rows (..., D), joined: (..., ...).

    Without gradients, for evaluation. The logits are float32 or wider and may be overwritten.
    """

    def compute(flat: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        product = _Product(flat, weights)
        parts = [values(product.logits(flat[chunk]), chunk) for chunk in product.chunks(flat)]
        return tuple(torch.cat(part) for part in zip(*parts))

    joined = _with_weights([head, *extra], rows.flatten(0, -2), compute)
    return tuple(value.view(*rows.shape[:-1], *value.shape[1:]) for value in joined)


def nll_and_hits(head: Head, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """In evaluation: `token_nll`, and whether each token of `ids` (...) is the most likely one, bool (...)."""
    loss, flat_ids = CrossEntropy(ids.flatten()), ids.flatten()

    def values(logits: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        hits = logits.argmax(1) == flat_ids[chunk]
        return loss.values(logits, chunk), hits

    nll, hits = row_values(head, rows, values)
    return nll, hits


def chunks_of(rows: int, vocabulary: int) -> Iterator[slice]:
    """Equal chunks of at most CHUNK_LOGITS logits, or of one row; one empty chunk for no row."""
    count = max(-(-rows // max(CHUNK_LOGITS // vocabulary, 1)), 1)
    size = max(-(-rows // count), 1)
    return (slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size))


def loss_bytes(rows: int, vocabulary: int, itemsize: int) -> int:
    """Peak bytes of logits and their gradient in the cross-entropy of `rows` rows.

    itemsize  bytes per element of the head's product: 4 or 2
    """
    size = next(chunks_of(rows, vocabulary)).stop
    return size * vocabulary * (4 + (itemsize if itemsize < 4 else 0))


# ------------------------------------------------------------------ Liger


@functools.cache
def _installed_liger() -> Any:
    """Liger's fused loss as a function of (weights, rows, ids); None where it is not installed or too old."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    if tuple(map(int, re.findall(r"\d+", metadata.version("liger_kernel"))[:3])) < LIGER:
        return None
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="none")


def liger_loss(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Liger's fused cross-entropy: (weights (V, D), rows (R, D), ids (R,)) -> (R,).

    None on devices other than CUDA, and where liger-kernel is not installed or older than LIGER.
    """
    return _installed_liger() if device.type == "cuda" else None


# ------------------------------------------------------------------ chunks


def _with_weights(heads: Sequence[Head], rows: Tensor, compute: Callable[[Tensor, Sequence[Tensor]], Any]) -> Any:
    """`compute(rows, weights)` inside a call of every head."""

    def nested(rows: Tensor, remaining: Sequence[Head], weights: list[Tensor]) -> Any:
        if not remaining:
            return compute(rows, weights)
        return remaining[0](rows, compute=lambda rows, weight: nested(rows, remaining[1:], [*weights, weight]))

    return nested(rows, heads, [])


def _losses(loss: RowLoss, rows: Tensor, weights: Sequence[Tensor]) -> Tensor:
    if torch.is_grad_enabled():
        return _ChunkedLosses.apply(loss, rows, *weights)
    product = _Product(rows, weights)
    return torch.cat([loss.values(product.logits(rows[c]), c, product.logits) for c in product.chunks(rows)])


class _Product:
    """Matrix products of rows with all heads, in autocast's dtype where autocast is enabled."""

    def __init__(self, rows: Tensor, weights: Sequence[Tensor]):
        self.device = rows.device.type
        enabled = torch.is_autocast_enabled(self.device)
        self.dtype = torch.get_autocast_dtype(self.device) if enabled else rows.dtype
        self.weights = [weight.detach().to(self.dtype) for weight in weights]
        self.widths = [len(weight) for weight in weights]

    def chunks(self, rows: Tensor) -> Iterator[slice]:
        """See `chunks_of`."""
        return chunks_of(len(rows), sum(self.widths))

    def logits(self, rows: Tensor) -> Tensor:
        """Logits of rows (r, D), those of all heads concatenated, in float32 or wider."""
        rows = rows.detach().to(self.dtype)
        with torch.autocast(self.device, enabled=False):
            parts = [rows @ weight.mT for weight in self.weights]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return joined.to(torch.promote_types(self.dtype, torch.float32))

    def row_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of the rows, (r, D), from that of their logits (r, V)."""
        parts = gradient.to(self.dtype).split(self.widths, 1)
        with torch.autocast(self.device, enabled=False):
            return functools.reduce(torch.add, [part @ weight for part, weight in zip(parts, self.weights)])

    def add_weight_gradients(self, gradient: Tensor, rows: Tensor, totals: Sequence[Tensor | None]) -> None:
        """Adds the weights' gradients to `totals`, in place, where their dtype is the product's without a copy."""
        rows, parts = rows.to(self.dtype), gradient.to(self.dtype).split(self.widths, 1)
        with torch.autocast(self.device, enabled=False):
            for part, total in zip(parts, totals):
                if total is not None and total.dtype == self.dtype:
                    total.addmm_(part.mT, rows)
                elif total is not None:
                    total += part.mT @ rows


class _ChunkedLosses(torch.autograd.Function):
    """Losses (R,) of rows (R, D), chunk by chunk, forward and backward."""

    @staticmethod
    def forward(ctx: Any, loss: RowLoss, rows: Tensor, *weights: Tensor) -> Tensor:
        """Losses; with frozen weights also saves the gradient of each row's loss by the row."""
        device, losses, gradients = rows.device.type, [], []
        ctx.autocast = dict(dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))
        ctx.is_frozen = not any(ctx.needs_input_grad[2:])
        product = _Product(rows, weights)
        for chunk in product.chunks(rows):
            logits = product.logits(rows[chunk])
            if ctx.is_frozen and ctx.needs_input_grad[1]:
                values, gradient = loss.values_and_gradient(logits, chunk, product.logits)
                gradients.append(product.row_gradient(gradient).to(rows.dtype))
                del gradient
            else:
                values = loss.values(logits, chunk, product.logits)
            losses.append(values)
            del logits  # before those of the next chunk exist
        if ctx.is_frozen:
            ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        else:
            ctx.loss = loss
            ctx.save_for_backward(rows, *weights)
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        """Gradients of rows and weights; those of the weights are summed in their own dtype."""
        [loss_gradient] = outputs
        if ctx.is_frozen:
            [gradient] = ctx.saved_tensors
            return None, gradient * loss_gradient[:, None].to(gradient.dtype), *[None] * (len(ctx.needs_input_grad) - 2)
        rows, *weights = ctx.saved_tensors
        row_gradient = torch.empty_like(rows) if ctx.needs_input_grad[1] else None
        weight_gradients = [torch.zeros_like(w) if need else None for w, need in zip(weights, ctx.needs_input_grad[2:])]
        with torch.autocast(rows.device.type, **ctx.autocast):
            product = _Product(rows, weights)
        for chunk in product.chunks(rows):
            _, gradient = ctx.loss.values_and_gradient(product.logits(rows[chunk]), chunk, product.logits)
            gradient *= loss_gradient[chunk, None]
            if row_gradient is not None:
                row_gradient[chunk] = product.row_gradient(gradient)
            product.add_weight_gradients(gradient, rows[chunk], weight_gradients)
            del gradient
        return None, row_gradient, *weight_gradients
