"""Backbones, and the files that the authors' code writes of each method."""

import pytest
from released_forms import PublishedCoMeT, PublishedCOMI, PublishedRAM, plain_model, save_backbone, state_of


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return plain_model("qwen2"), save_backbone(plain_model("qwen2"), tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return plain_model("qwen3"), save_backbone(plain_model("qwen3"), tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def comi(qwen2):
    return state_of(PublishedCOMI(qwen2[0]))


@pytest.fixture(scope="module")
def ram(qwen3):
    return state_of(PublishedRAM(qwen3[0]))


@pytest.fixture
def comet(qwen3, tmp_path):
    return PublishedCoMeT(qwen3[0]).save(tmp_path / "comet")
