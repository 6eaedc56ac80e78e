"""The hub: one short try a process; a machine without a network gets one line and uses the cache."""

import time

import pytest
from huggingface_hub import constants

from breviary.backbones import hub
from breviary.backbones.pretrained import Backbone
from breviary.serving.loading import hub_folder


@pytest.fixture
def network(monkeypatch):
    """network(answer) -> list of tries; `answer` is called for each request to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.hub_problem.cache_clear()
    tries = []

    def install(answer):
        class Session:
            def head(self, url, timeout):
                tries.append((url, timeout))
                return answer()

        monkeypatch.setattr(hub, "get_session", Session)
        return tries

    yield install
    hub.hub_problem.cache_clear()


def unreachable():
    raise OSError("[Errno -3] Temporary failure in name resolution\nsecond line")


def test_an_unreachable_hub_is_tried_once_and_named_on_one_line(network, tmp_path):
    tries = network(unreachable)
    backbone = Backbone("someone/no-such-model")
    for _ in range(2):
        [problem] = backbone.problems()
        assert problem == (
            "backbone.path=someone/no-such-model: no such folder, the hub's cache has no configuration of that name, "
            "and the hub cannot be reached: [Errno -3] Temporary failure in name resolution; give a folder in Hugging "
            "Face format"
        )
    with pytest.raises(ValueError, match="the hub cannot be reached") as error:
        hub_folder("someone/no-such-model")
    assert "\n" not in str(error.value)
    assert tries == [(constants.ENDPOINT, hub.TIMEOUT_S)]


def test_a_name_lookup_that_hangs_ends_after_the_timeout(network, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.05)
    network(lambda: time.sleep(1))
    start = time.monotonic()
    assert hub.hub_problem() == "the hub cannot be reached: no answer within 0.05 s"
    assert time.monotonic() - start < 0.9


def test_a_reachable_hub_is_no_problem(network):
    network(lambda: None)
    assert hub.hub_problem() is None and hub.hub_options() == {}


def test_a_local_folder_asks_nobody(network, tmp_path):
    tries = network(unreachable)
    (tmp_path / "config.json").write_text("{")
    Backbone(str(tmp_path)).problems()
    assert tries == []
