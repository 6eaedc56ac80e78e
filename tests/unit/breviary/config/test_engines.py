"""Section engine, and optimizers that need a package or a GPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from deepspeed.runtime.config import get_communication_data_type
from hydra.utils import get_class
from omegaconf import OmegaConf

from breviary.config.checks import check_engine, check_fsdp, check_optimizer, optimizer_name
from breviary.runs.folders import config_hash
from tests.tiny import composed_choice

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("engine, package", [("ddp", "bitsandbytes"), ("zero2", "bitsandbytes"), ("fsdp", "torchao")])
def test_the_8_bit_optimizer_names_its_missing_package(monkeypatch, engine, package):
    cfg = composed_choice(f"engine={engine}").copy()
    cfg.train.optimizer = "adamw_8bit"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [problem] = check_optimizer(cfg.train, cfg.engine)
    assert f"the package {package}, which is not installed; python -m pip install {package}, or set" in problem
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == package else None)
    assert check_optimizer(cfg.train, cfg.engine) == []


def test_adamw_is_fused_on_gpus_only():
    assert optimizer_name("adamw", "single", GPU) == "adamw_torch_fused"
    assert optimizer_name("adamw", "single", CPU) == "adamw_torch"
    assert optimizer_name("adamw_8bit", "zero2", GPU) == "adamw_bnb_8bit"
    assert optimizer_name("adamw_8bit", "fsdp", GPU) == "adamw_torch_8bit"


def test_settings_of_fsdp_are_checked():
    engine = composed_choice("engine=fsdp").engine.copy()
    assert check_fsdp(engine) == []
    engine.fsdp.param_dtype, engine.fsdp.offload, engine.fsdp.smallest = "float8", "disk", -1
    assert check_fsdp(engine) == [
        "engine.fsdp.param_dtype=float8: allowed are auto, float32, bfloat16",
        "engine.fsdp.offload=disk: allowed are none, cpu",
        "engine.fsdp.smallest=-1: elements of a weight, must be 0 or more, e.g. 1e5",
    ]
    engine.fsdp = None
    [problem] = check_fsdp(engine)
    assert "choose both by name, e.g. engine=fsdp" in problem


def test_readers_of_unequal_chunks_are_refused():
    compressor = get_class(composed_choice("compressor=comet").compressor._target_)
    [problem] = check_engine(composed_choice("engine=fsdp").engine, compressor, 2)
    assert problem.startswith("engine=fsdp: ") and problem.endswith("use engine=zero2")


@pytest.mark.parametrize("engine", ["single", "zero2"])
def test_keys_of_later_versions_do_not_change_a_run_s_hash(engine):
    cfg = composed_choice(f"engine={engine}")
    former = cfg.copy()
    OmegaConf.set_struct(former, False)
    del former.engine["fsdp"]
    if engine == "zero2":
        del former.engine.deepspeed["communication_data_type"]
    assert config_hash(cfg) == config_hash(former)
    other = cfg.copy()
    if engine == "zero2":  # as CoMeT's recipe asks
        other.engine.deepspeed.communication_data_type = "fp32"
        deepspeed = OmegaConf.to_container(other.engine.deepspeed)
        assert get_communication_data_type(deepspeed) == torch.float32
    else:
        other.engine.fsdp = {}
    assert config_hash(other) != config_hash(cfg)
