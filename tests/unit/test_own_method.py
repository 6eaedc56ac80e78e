"""docs/own_method.md, carried out: the page's two files are trained, evaluated, and held to the contract."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

import eval as evaluation
import train as training
from breviary.config.errors import run_cli
from breviary.config.keys import constructor_keys, target_class, validate_keys
from breviary.contract import Context, Question
from tests.tiny import disturb, greedy_ids

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_method.md").read_text(encoding="utf-8")
SMALL = [
    "backbone.layers=4",
    "compressor.encoder_layers=2",
    "dataset.train_size=4",
    "dataset.test_size=4",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_examples=0",
    "generation.max_new_tokens=2",
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def search(tmp_path, monkeypatch):
    """The page's files in a folder of their own; gives the override that finds the YAML."""
    [code], [settings] = blocks("python"), blocks("yaml")
    for file, text in (("mine/every_kth.py", code), ("configs/compressor/every_kth.yaml", settings)):
        assert f"`{file}`" in PAGE
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine.every_kth", raising=False)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return f"hydra.searchpath=[file://{tmp_path}/configs]"


def call(monkeypatch, entry, *words):
    monkeypatch.setattr(sys, "argv", [entry.__file__, *words])
    run_cli(entry.main, entry.CONFIG)


def test_from_two_files_to_a_row_in_the_table(search, monkeypatch, tmp_path, capsys):
    paths = [f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
    call(monkeypatch, training, search, "compressor=every_kth", *SMALL, *paths)
    [run] = (tmp_path / "outputs" / "default").iterdir()
    call(monkeypatch, evaluation, f"run={run}", *paths)
    rows = json.loads((run / "table.json").read_text())
    assert [row["reader"] for row in rows] == ["every_kth", "full_context", "no_context"]
    assert rows[0]["n"] == 4 and rows[0]["requested_ratio"] == 4 and 3 < rows[0]["effective_ratio"] <= 4
    printed = capsys.readouterr().out
    assert f"run {run}" in printed and "every_kth" in printed


def test_the_yaml_has_the_constructor_s_keys(search):
    cfg = OmegaConf.create({"compressor": OmegaConf.create(blocks("yaml")[0])})
    assert set(cfg.compressor) == set(constructor_keys(target_class(cfg, "compressor")))


@pytest.mark.parametrize("join", ["input", "depth"])
def test_a_batch_of_n_equals_n_batches_of_one(search, build, join, ragged_examples, collate):
    reader = build([search, "compressor=every_kth", "compressor.encoder_layers=2", f"compressor.join={join}"]).eval()
    disturb(reader)
    with torch.no_grad():
        together = reader.loss(collate(ragged_examples, side="left"))
        alone = [collate([example]) for example in ragged_examples]
        torch.testing.assert_close(together.nll, torch.cat([reader.loss(one).nll for one in alone]), rtol=1e-5, atol=0)
        assert greedy_ids(reader, collate(ragged_examples)) == [greedy_ids(reader, one)[0] for one in alone]


def test_slots_are_every_kth_state(search, build, ragged):
    reader = build([search, "compressor=every_kth", "compressor.encoder_layers=2", "compressor.join=depth"]).eval()
    with torch.no_grad():
        encoded = reader.compressor.encode(Context(ragged.context.ids, ragged.context.mask, ragged.prefix))
        nothing = torch.zeros(len(ragged), 1, reader.decoder.width)
        question = Question(ragged.query.ids, ragged.query.mask, nothing, nothing[..., 0] == 0)
        memory = reader.compressor.compress(encoded, question)
    for b, length in enumerate(ragged.context.lengths.tolist()):
        kept = [*range(3, length, 4)] + ([length - 1] if length % 4 else [])
        assert memory.mask[b].sum() == len(kept) and memory.positions[b, : len(kept)].tolist() == kept
        torch.testing.assert_close(memory.embeds[b, : len(kept)], encoded.states[b, 0, kept])


def test_every_training_command_of_the_page_composes(search):
    commands = [
        shlex.split(line)[2:]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("python train.py")
    ]
    assert len(commands) == 2
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for words in commands:
            assert validate_keys(hydra_compose("train", [search, *words]))[1] == []
