"""What checkpoints hold, the size that is printed, and the engines that resume from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from breviary.backbones.sharding import cast_unpartitioned
from breviary.backbones.trainable import freeze_learned
from breviary.runs.checkpoints import (
    OPTIMIZER_SHARDS,
    WEIGHTS,
    checkpoints,
    load_trained,
    read_metadata,
    read_weights,
    save_shard,
    save_weights,
    shard_file,
    weights_hash,
)
from breviary.runtime.files import hash_tensors
from breviary.training.saving import assign_shards, check_optimizer_state, describe_checkpoint, save_learned

PRINT = {"name": "net", "sha256": "ab" * 32}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 100), nn.Linear(100, 10), nn.Linear(10, 5))
    net[1].requires_grad_(False)
    freeze_learned(net[2])
    return net


def test_learned_weights_are_stored_once_in_float32(net, tmp_path):
    save_learned(tmp_path, net.bfloat16(), PRINT, is_sharded=True)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    weights = read_weights(tmp_path)
    assert weights.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert weights_hash(tmp_path) == hash_tensors(weights)


def test_shards_are_read_as_one_checkpoint(net, tmp_path):
    whole = {name: weight.detach().clone() for name, weight in net.named_parameters() if not name.startswith("1")}
    names, sha256 = sorted(whole), hash_tensors(whole)
    for number, owned in enumerate((names[::2], names[1::2])):
        save_shard(tmp_path, {name: whole[name] for name in owned}, PRINT, sha256, number, 2)
    save_weights(tmp_path / "one", whole, PRINT)
    assert weights_hash(tmp_path) == weights_hash(tmp_path / "one") and read_metadata(tmp_path)["shards"] == 2
    with torch.no_grad():
        net[0].weight.zero_()
    assert load_trained(tmp_path, net, PRINT) == []
    assert torch.equal(net[0].weight, whole["0.weight"])
    assert read_weights(tmp_path, lambda name: name == "0.bias").keys() == {"0.bias"}
    shard_file(tmp_path, 1).unlink()
    with pytest.raises(ValueError, match=r"trained-1.safetensors: this file of a sharded checkpoint is missing"):
        read_weights(tmp_path)


def test_new_weights_get_the_dtype_of_partitioned_ones():
    """Else DeepSpeed refuses a bfloat16 model with adapters in float32. A module that is loaded whole is left to it."""
    module = nn.ModuleDict({"loaded": nn.Linear(2, 2, bias=False), "new": nn.Linear(2, 2, bias=False)})
    cast_unpartitioned(module, torch.bfloat16)
    assert module["new"].weight.dtype == torch.float32
    module["loaded"].weight.ds_id = 0  # as DeepSpeed marks it
    cast_unpartitioned(module, torch.bfloat16)
    assert (module["new"].weight.dtype, module["loaded"].weight.dtype) == (torch.bfloat16, torch.float32)


def test_the_ranks_share_weights_by_size():
    assert assign_shards([8, 1, 1, 6, 2], 2) == [0, 1, 1, 1, 0]
    assert assign_shards([3, 4], 1) == [0, 0]


@pytest.mark.parametrize(
    "optimizer, whole, state", [("adamw", "13", "8.8"), ("adamw_8bit", "6.8", "2.2"), ("sgd", "4.6", "0.0")]
)
def test_the_size_counts_learned_weights_and_the_state_of_trained_ones(net, optimizer, whole, state):
    """1,100 trained weights and 55 frozen ones; the 1,010 of the backbone do not count."""
    line = describe_checkpoint(net, optimizer, False, 2, False)
    assert line.startswith(f"a checkpoint takes {whole} kB: weights 4.6 kB, optimizer {state} kB; at most 2 stay")


def test_a_checkpoint_is_complete_when_its_optimizer_is_written(tmp_path):
    folder = tmp_path / "checkpoints" / "checkpoint-2"
    (folder / OPTIMIZER_SHARDS).mkdir(parents=True)
    for name in (WEIGHTS, "trainer_state.json"):
        (folder / name).touch()
    assert checkpoints(tmp_path) == []
    (folder / OPTIMIZER_SHARDS / ".metadata").touch()  # torch writes it last
    assert checkpoints(tmp_path) == [folder]


def test_a_run_resumes_with_its_engine_and_number_of_processes(tmp_path):
    for kind, file in (("plain", "optimizer.pt"), ("zero", "global_step2/a_optim_states.pt"), ("fsdp", "optimizer/0")):
        (tmp_path / kind / file).parent.mkdir(parents=True)
        (tmp_path / kind / file).touch()
        check_optimizer_state(tmp_path / kind, kind, 1)
        for other in {"plain", "zero", "fsdp"} - {kind}:
            with pytest.raises(ValueError, match="resume a run with the engine that started it"):
                check_optimizer_state(tmp_path / kind, other, 1)
    with pytest.raises(
        ValueError, match=r"in 1 shards, one per process; start 1 processes, for any engine.ranks, not 2"
    ):
        check_optimizer_state(tmp_path / "zero", "zero", 2)
