"""breviary.runtime.device: selection of the faster dtype."""

from __future__ import annotations

import itertools

import pytest

from breviary.runtime import device as runtime


@pytest.mark.parametrize("slower, expected", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_fast_dtype_returns_the_faster_dtype(slower, expected, monkeypatch):
    """Simulates six measurements of bfloat16, then six of float32; the slower dtype takes three times as long."""
    spans = [3 if slower == "bfloat16" else 1] * 6 + [3 if slower == "float32" else 1] * 6
    clock = itertools.chain.from_iterable((100 * n, 100 * n + span) for n, span in enumerate(spans))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: False)
    assert runtime.fast_dtype() == expected


def test_fast_dtype_is_bfloat16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: True)
    assert runtime.fast_dtype() == "bfloat16"
