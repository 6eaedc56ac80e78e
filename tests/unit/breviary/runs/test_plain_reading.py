"""The optimizer files of DeepSpeed and FSDP are read as plain data: a file that names a function does not call it."""

from __future__ import annotations

import io
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp

from breviary.runs.plain_reading import METADATA, load_shards, read_deepspeed_files


class Hostile:
    """Calls os.mkdir when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def mark(tmp_path):
    """A folder that a hostile file would make."""
    return tmp_path / "was_run"


# ---- DeepSpeed ----


@pytest.fixture
def load():
    engine = SimpleNamespace(checkpoint_engine=SimpleNamespace())
    read_deepspeed_files(engine)
    return engine.checkpoint_engine.load


def test_deepspeeds_own_files_are_read(load, tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    stored = {
        "loss_scaler": LossScaler(scale=2.0),
        "zero_stage": ZeroStageEnum.gradients,
        "param_slice_mappings": [{"weight": fragment_address(numel=4, start=8)}],
        "base_optimizer_state": {"state": {0: {"exp_avg": torch.arange(4.0), "step": 3}}},
    }
    torch.save(stored, tmp_path / "state.pt")
    read = load(str(tmp_path / "state.pt"), map_location="cpu")
    assert read["loss_scaler"].cur_scale == 2.0 and read["zero_stage"] == 2
    assert read["param_slice_mappings"] == stored["param_slice_mappings"]
    assert read["base_optimizer_state"]["state"][0]["exp_avg"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_file_of_deepspeed_is_refused(load, tmp_path, mark, legacy):
    file = tmp_path / "state.pt"
    torch.save({"state": Hostile(mark)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="state.pt cannot be read as plain data"):
        load(str(file))
    assert not mark.exists()


def test_a_missing_file_is_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="state.pt"):
        load(str(tmp_path / "state.pt"))


# ---- FSDP ----


def values():
    groups = {"lr": 0.5, "betas": (0.9, 0.99), "fused": None, "params": ["a", "b"]}
    return {"weight": torch.arange(6.0), "step": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16), **groups}


@pytest.fixture
def stored(tmp_path):
    dcp.save(values(), checkpoint_id=tmp_path / "optimizer", no_dist=True)
    return tmp_path / "optimizer"


def zeros():
    return {key: torch.zeros_like(value) if torch.is_tensor(value) else None for key, value in values().items()}


def test_shards_are_read(stored):
    state = zeros()
    load_shards(state, stored, no_dist=True)
    for key, value in values().items():
        assert torch.equal(state[key], value) if torch.is_tensor(value) else state[key] == value, key


def test_hostile_metadata_are_refused(stored, mark):
    (stored / METADATA).write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(ValueError, match=rf"{METADATA} cannot be read as plain data \(posix.mkdir is none"):
        load_shards(zeros(), stored, no_dist=True)
    assert not mark.exists()


def test_a_hostile_value_is_refused(tmp_path, mark):
    folder = tmp_path / "optimizer"
    dcp.save({**values(), "lr": Hostile(mark)}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(ValueError, match="lr cannot be read as plain data"):
        load_shards(zeros(), folder, no_dist=True)
    assert not mark.exists()


def test_truncated_metadata_are_named(stored):
    data = (stored / METADATA).read_bytes()
    (stored / METADATA).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{METADATA} cannot be read as plain data"):
        load_shards(zeros(), stored, no_dist=True)


def test_the_hostile_object_is_hostile(mark):
    """The check of the checks: an ordinary unpickler calls the function."""
    pickle.Unpickler(io.BytesIO(pickle.dumps(Hostile(mark)))).load()
    assert mark.exists()
