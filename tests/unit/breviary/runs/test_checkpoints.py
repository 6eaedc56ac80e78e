"""Checkpoints: what they hold, and what is refused when loading."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from breviary.backbones.trainable import freeze_learned, trained_state
from breviary.runs.checkpoints import SCHEMA, WEIGHTS, load_trained, read_metadata, save_trained
from breviary.runtime.files import hash_tensors

PRINT = {"name": "tiny_llama", "sha256": "a" * 64}


def model(width=3, dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.ModuleDict({"frozen": nn.Linear(2, 2), "head": nn.Linear(2, width), "scale": nn.Linear(1, 1, bias=False)})
    net["frozen"].requires_grad_(False)
    return net.to(dtype)


def stored(folder):
    with safe_open(folder / WEIGHTS, framework="pt") as stream:
        names = stream.keys()
        return {name: stream.get_tensor(name) for name in names}


def test_only_trained_weights_are_saved_with_the_backbone_s_name(tmp_path):
    net = model()
    assert save_trained(tmp_path / "new", net, PRINT) == tmp_path / "new" / WEIGHTS
    assert stored(tmp_path / "new").keys() == {"head.weight", "head.bias", "scale.weight"}
    assert read_metadata(tmp_path / "new") == {
        "schema": SCHEMA,
        "backbone": PRINT,
        "merged": False,
        "sha256": hash_tensors(stored(tmp_path / "new")),
        "shards": 1,
    }


def test_the_hash_is_of_names_types_shapes_and_values():
    first = {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)}
    others = [
        {"a": torch.zeros(3, 2), "b": first["b"]},
        {"a": first["a"], "c": first["b"]},
        {"a": first["a"]},
        {"a": first["a"], "b": first["b"].float()},
        {"a": first["a"] + 1e-30, "b": first["b"]},
    ]
    hashes = [hash_tensors(tensors) for tensors in (first, *others)]
    assert len(set(hashes)) == 6 and hash_tensors(dict(reversed(first.items()))) == hashes[0]


def test_a_checkpoint_without_a_hash_is_read(tmp_path):
    """As all were before hashes were stored."""
    net = model()
    save_file(trained_state(net), tmp_path / WEIGHTS, metadata={"schema": str(SCHEMA), "backbone": json.dumps(PRINT)})
    load_trained(tmp_path, net, PRINT)


def test_loading_is_exact_and_leaves_frozen_weights(tmp_path):
    net, other = model(), model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    frozen = other["frozen"].weight.clone()
    save_trained(tmp_path, net, PRINT)
    load_trained(tmp_path, other, PRINT)
    assert torch.equal(other["head"].weight, net["head"].weight) and torch.equal(other["frozen"].weight, frozen)
    assert other["head"].weight.requires_grad


def test_weights_are_kept_in_float32_and_loaded_into_any_type(tmp_path):
    half = model(dtype=torch.bfloat16)
    save_trained(tmp_path, half, PRINT)
    assert {tensor.dtype for tensor in stored(tmp_path).values()} == {torch.float32}
    again = model(dtype=torch.bfloat16)
    load_trained(tmp_path, again, PRINT)
    assert torch.equal(again["head"].weight, half["head"].weight)


def test_a_gathered_state_stands_in_for_the_parameters(tmp_path):
    net = model()
    gathered = {name: torch.full_like(p, 5) for name, p in net.named_parameters()}
    assert all((tensor == 5).all() for tensor in trained_state(net, gathered).values())
    save_trained(tmp_path, net, PRINT, gathered)
    assert all((tensor == 5).all() for tensor in stored(tmp_path).values())


def test_a_frozen_reader_round_trips(tmp_path):
    net = model().requires_grad_(False)
    save_trained(tmp_path, net, PRINT)
    load_trained(tmp_path, net, PRINT)
    assert stored(tmp_path) == {}


def test_what_an_earlier_run_trained_is_kept_with_the_trained(tmp_path):
    net, again = model(), model()
    with torch.no_grad():
        net["head"].weight += 1
    for one in (net, again):
        freeze_learned(one["head"])
    assert not net["head"].weight.requires_grad
    save_trained(tmp_path, net, PRINT)
    assert stored(tmp_path).keys() == {"head.weight", "head.bias", "scale.weight"}
    assert load_trained(tmp_path, again, PRINT) == []
    assert torch.equal(again["head"].weight, net["head"].weight)


def test_a_start_may_lack_what_the_earlier_run_did_not_train(tmp_path):
    first, second = model(), model()
    first["scale"].requires_grad_(False)
    with torch.no_grad():
        first["head"].weight += 1
    scale = second["scale"].weight.clone()
    save_trained(tmp_path, first, PRINT)
    assert load_trained(tmp_path, second, PRINT, is_start=True) == ["scale.weight"]
    assert torch.equal(second["head"].weight, first["head"].weight) and torch.equal(second["scale"].weight, scale)
    with pytest.raises(ValueError, match="missing: scale.weight"):
        load_trained(tmp_path, second, PRINT)
    second["head"].requires_grad_(False)
    with pytest.raises(ValueError, match="missing: scale.weight .*\n.*unknown: head.bias"):  # nothing in common
        load_trained(tmp_path, second, PRINT, is_start=True)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no such checkpoint"):
        read_metadata(tmp_path)


def test_another_schema(tmp_path):
    save_file({}, tmp_path / WEIGHTS, metadata={"schema": "99", "backbone": json.dumps(PRINT)})
    with pytest.raises(ValueError, match=f"checkpoint of schema 99, this version reads {SCHEMA}"):
        read_metadata(tmp_path)


def test_another_backbone(tmp_path):
    save_trained(tmp_path, model(), PRINT)
    other = {"name": "smollm2", "sha256": "b" * 64}
    with pytest.raises(ValueError, match="checkpoint of backbone tiny_llama .* smollm2 .*backbone"):
        load_trained(tmp_path, model(), other)


def test_every_difference_is_listed_and_nothing_loaded(tmp_path):
    net = model()
    net["haed"] = nn.Linear(2, 3, bias=False)
    del net["scale"]
    save_trained(tmp_path, net, PRINT)
    reader = model(width=4)
    before = reader["head"].weight.clone()
    with pytest.raises(ValueError) as caught:
        load_trained(tmp_path, reader, PRINT)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "  missing: scale.weight (nearest in the file: haed.weight)",
        "  unknown: haed.weight",
        "  shape of head.bias: (3,) in the file, (4,) in the reader",
        "  shape of head.weight: (3, 2) in the file, (4, 2) in the reader",
    ]
    assert torch.equal(reader["head"].weight, before)


def test_the_nearest_name_is_given_and_long_lists_are_cut(tmp_path):
    save_trained(tmp_path, nn.ModuleDict({f"layer_{i}": nn.Linear(1, 1) for i in range(20)}), PRINT)
    with pytest.raises(ValueError) as caught:
        load_trained(tmp_path, nn.ModuleDict({"layre_3": nn.Linear(1, 1)}), PRINT)
    lines = str(caught.value).splitlines()
    assert "missing: layre_3.bias (nearest in the file: layer_3.bias)" in lines[1]
    assert lines[-1] == "  and 32 more" and len(lines) == 12
