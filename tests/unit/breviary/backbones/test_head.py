"""breviary.backbones.head: losses in chunks of rows equal plain ones, with no more logits than a chunk has."""

import sys
import types
from importlib import machinery, metadata

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from breviary.backbones import head as heads
from breviary.backbones.head import Head, RowLoss, chunks_of, nll_and_hits, row_losses, row_values, token_nll
from breviary.objectives.distillation import TopKDivergence, topk_kl_divergence

B, A, D, V = 2, 7, 16, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of four rows."""
    monkeypatch.setattr(heads, "CHUNK_LOGITS", 4 * V)


def problem(dtype=torch.float32, trained=True, bias=3.0):
    """Head, rows (B, A, D), ids (B, A) and a weight for each token's loss, 0 on every third."""
    torch.manual_seed(0)
    head = Head(D, V, bias=False).to(dtype).requires_grad_(trained)
    nn.init.normal_(head.weight)
    rows = torch.randn(B, A, D, dtype=dtype).mul(bias).requires_grad_()
    ids = torch.randint(0, V, (B, A))
    weights = torch.rand(B, A) * (torch.arange(B * A).view(B, A) % 3 > 0)
    return head, rows, ids, weights


def plain(head, rows, ids):
    logits = (rows @ head.weight.mT).to(torch.promote_types(rows.dtype, torch.float32))
    return cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)


def compare(head, rows, actual, expected, weights, tolerance=1e-6):
    """Values and gradients relative to the largest of each."""
    trained = [x for x in (rows, head.weight) if x.requires_grad]
    pairs = [(actual, expected)]
    pairs += zip(*(torch.autograd.grad((loss * weights).sum(), trained) for loss in (actual, expected)))
    for ours, theirs in pairs:
        close(ours, theirs, tolerance)


def close(ours, theirs, tolerance=1e-6):
    """Differences relative to the largest number."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=1e-30)) <= tolerance


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_equals_the_plain_one(dtype, trained):
    head, rows, ids, weights = problem(dtype, trained)
    compare(head, rows, token_nll(head, rows, ids), plain(head, rows, ids), weights)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_bfloat16_head_rounds_as_the_plain_one(trained):
    head, rows, ids, weights = problem(torch.bfloat16, trained)
    compare(head, rows, token_nll(head, rows, ids), plain(head, rows, ids), weights, tolerance=2e-2)
    assert token_nll(head, rows, ids).dtype == torch.float32


def test_autocast_multiplies_in_half_precision_and_sums_the_weights_gradient_in_float32():
    head, rows, ids, weights = problem()
    with torch.autocast("cpu", torch.bfloat16):
        ours = token_nll(head, rows, ids)
        logits = head(rows).float()
    assert logits.detach().equal(logits.detach().bfloat16())
    theirs = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    compare(head, rows, ours, theirs, weights, tolerance=2e-2)


def test_a_tied_head_sums_both_gradients():
    head, _, ids, weights = problem()
    table = nn.Embedding(V, D)
    table.weight = head.weight
    gradients = []
    for loss in (token_nll, plain):
        [gradient] = torch.autograd.grad((loss(head, table(ids) * 2, ids) * weights).sum(), [head.weight])
        gradients.append(gradient)
    close(*gradients)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_rows_that_are_all_masked_and_no_rows_have_zero_gradients(trained):
    head, rows, ids, weights = problem(trained=trained)
    for width in (A, 0):
        rows.grad = head.weight.grad = None
        loss = token_nll(head, rows[:, :width], ids[:, :width]).masked_fill(weights[:, :width] >= 0, 0).sum()
        loss.backward()
        assert loss == 0 and not rows.grad.any() and (not trained or not head.weight.grad.any())


def test_further_heads_follow_the_vocabulary():
    head, rows, ids, weights = problem(torch.float64)  # the products of both heads have another order of sums
    more = Head(D, 5, bias=False).double()
    whole = Head(D, V + 5, bias=False)
    whole.weight = nn.Parameter(torch.cat([head.weight, more.weight]).detach())
    losses = [token_nll(head, rows, ids, more), plain(whole, rows, ids)]
    close(*losses, 1e-12)
    own, new, rows_gradient = torch.autograd.grad((losses[0] * weights).sum(), [head.weight, more.weight, rows])
    expected, expected_rows = torch.autograd.grad((losses[1] * weights).sum(), [whole.weight, rows])
    close(torch.cat([own, new]), expected, 1e-12)
    close(rows_gradient, expected_rows, 1e-12)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("top", [3, V])
def test_distillation_equals_the_plain_divergence(top, trained):
    head, rows, _, weights = problem(trained=trained, bias=1.0)
    teacher = torch.randn(B * A, D)
    ours = row_losses(head, rows, TopKDivergence(teacher, top, temperature=2.0))
    with torch.no_grad():
        target = head(teacher)
    theirs = topk_kl_divergence(head(rows).flatten(0, 1), target, top, 2.0).view(B, A)
    compare(head, rows, ours, theirs, weights)


def test_evaluation_has_the_same_losses_and_the_most_likely_tokens():
    head, rows, ids, _ = problem()
    with torch.no_grad():
        ids[:, :3] = head(rows).argmax(-1)[:, :3]
        nll, hits = nll_and_hits(head, rows, ids)
        assert torch.equal(nll, token_nll(head, rows, ids)) and torch.equal(hits, head(rows).argmax(-1) == ids)
        close(nll, plain(head, rows, ids))
        [largest] = row_values(head, rows, lambda logits, chunk: [logits.topk(2).values])
        torch.testing.assert_close(largest, head(rows).topk(2).values)
    assert hits[:, :3].all() and not hits.all()
    nll, hits = nll_and_hits(head, rows[:, :0], ids[:, :0])
    assert nll.shape == hits.shape == (B, 0)


def test_chunks_are_equal_and_within_the_limit():
    assert [chunk.stop - chunk.start for chunk in chunks_of(9, V)] == [3, 3, 3]
    assert [chunk.stop - chunk.start for chunk in chunks_of(10, V)] == [4, 4, 2]
    assert list(chunks_of(0, V)) == [slice(0, 0)] and len(list(chunks_of(3, 100 * V))) == 3
    assert all(
        (chunk.stop - chunk.start) * 45 <= heads.CHUNK_LOGITS for rows in range(40) for chunk in chunks_of(rows, 45)
    )


class LargestLogits(TorchDispatchMode):
    """The most rows of a result as wide as the vocabulary, and the number of such results of a product."""

    rows = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_weight = getattr(result, "shape", ()) == (D, V)  # transposed
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (V,) and result.dim() > 1 and not is_weight:
            self.rows = max(self.rows, result.numel() // V)
            self.products += function is torch.ops.aten.mm.default
        return result


@pytest.mark.parametrize("trained, products", [(True, 8), (False, 4)], ids=["trained", "frozen"])
def test_no_result_has_more_rows_of_logits_than_a_chunk(trained, products):
    head, rows, ids, weights = problem(trained=trained)
    with LargestLogits() as seen:  # backward passes on this thread: the mode is of one thread
        (token_nll(head, rows, ids) * weights).sum().backward()
        assert seen.rows == 4 and seen.products == products
        row_losses(head, rows, TopKDivergence(rows.detach().flatten(0, 1), top=3)).sum().backward()
        with torch.no_grad():
            nll_and_hits(head, rows, ids)
    assert seen.rows == 4


def test_the_head_is_called_once_for_all_chunks():
    calls, (head, rows, ids, _) = [], problem()
    head.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    token_nll(head, rows, ids)
    nll_and_hits(head, rows, ids)
    assert calls == [(B * A, D)] * 2


def test_the_losses_module_is_the_given_one_with_its_hooks():
    linear = nn.Linear(D, V, bias=False)
    linear.register_forward_hook(lambda module, inputs, output: output + 1)
    rows = torch.randn(3, D)
    expected = linear(rows)
    assert Head.of(linear) is linear and isinstance(linear, Head) and torch.equal(linear(rows), expected)
    with pytest.raises(AssertionError):
        Head.of(nn.Linear(D, V))


def test_a_loss_without_its_own_gradient_is_differentiated():
    class Square(RowLoss):
        def values(self, logits, rows, project):
            return logits.square().sum(1)

    head, rows, _, weights = problem()
    compare(head, rows, row_losses(head, rows, Square()), head(rows).square().sum(-1), weights)


# ------------------------------------------------------------------ Liger


@pytest.fixture
def liger(monkeypatch):
    """A fake liger_kernel; the returned list has an entry for each call."""
    calls = []

    class Loss(nn.Module):
        def __init__(self, reduction):
            super().__init__()
            assert reduction == "none"

        def forward(self, lin_weight, _input, target):
            calls.append(_input.shape)
            return cross_entropy((_input @ lin_weight.mT).float(), target, reduction="none")

    def install(version):
        for name in ("liger_kernel", "liger_kernel.transformers", f"{NAME}"):
            module = types.ModuleType(name)
            module.__spec__ = machinery.ModuleSpec(name, None, is_package=True)
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules[NAME].LigerFusedLinearCrossEntropyLoss = Loss
        monkeypatch.setattr(metadata, "version", lambda name: version)
        heads._installed_liger.cache_clear()
        return calls

    yield install
    heads._installed_liger.cache_clear()


NAME = "liger_kernel.transformers.fused_linear_cross_entropy"


def test_liger_is_used_on_cuda_where_it_is_installed_and_new_enough(liger):
    heads._installed_liger.cache_clear()
    assert heads.liger_loss(torch.device("cuda")) is None  # not installed
    liger("0.8.4")
    assert heads.liger_loss(torch.device("cuda")) is None  # wrong gradients of single tokens' losses
    liger("0.8.5")
    assert heads.liger_loss(torch.device("cuda", 1)) is not None and heads.liger_loss(torch.device("cpu")) is None


def test_liger_computes_more_than_one_chunk(liger, monkeypatch):
    calls = liger("0.8.10")
    on_cuda = heads.liger_loss
    monkeypatch.setattr(heads, "liger_loss", lambda device: on_cuda(torch.device("cuda")))
    head, rows, ids, weights = problem()
    compare(head, rows, token_nll(head, rows, ids), plain(head, rows, ids), weights)
    assert calls == [(B * A, D)]
    token_nll(head, rows[:, :2], ids[:, :2])
    token_nll(head, rows, ids, Head(D, 2, bias=False))
    assert calls == [(B * A, D)]  # few rows, and more than one head, take the chunks
