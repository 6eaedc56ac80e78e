"""docs/own_method.md, carried out: the page's files are trained, evaluated, swept, and held to the contract."""

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
from breviary.config.compose import load_choice
from breviary.config.errors import run_cli
from breviary.config.keys import CONFIGS, constructor_keys, target_class, validate_keys
from breviary.contract import Context, Question
from breviary.readers.cache_selection import CacheSelection
from tests.tiny import disturb, greedy_ids

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_method.md").read_text(encoding="utf-8")
FILE = re.compile(r"`([\w/]+\.(?:py|yaml))`[^`]*\n\n```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(FILE.findall(PAGE))
COMMANDS = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
METHODS = ("every_kth", "decay_pool", "spread_pool")
SCORER = "value_norm"
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
AT_DEPTH = ["compressor.join=depth", "compressor.encoder_layers=2"]


def commands(entry):
    """The words of each command of the page that calls `entry`."""
    return [shlex.split(line)[2:] for line in COMMANDS if line.startswith(f"python {entry} ")]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """The page's files in a folder of their own; gives the override that finds the YAML."""
    for file, text in FILES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, module)
    return f"hydra.searchpath=[file://{tmp_path}/configs]"


@pytest.fixture
def call(search, monkeypatch, tmp_path):
    """call(entry, *words): train.py or eval.py in this process; returns the exit code."""

    def called(entry, *words):
        paths = [f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
        words = [*words, *paths, *([] if any(word.startswith("run=") for word in words) else [search])]
        monkeypatch.setattr(sys, "argv", [entry.__file__, *words])
        try:
            run_cli(entry.main, entry.CONFIG)
        except SystemExit as exit:
            return exit.code
        return 0

    return called


def compressed(reader, batch):
    """Encoded contexts of a batch, and their memory. No method of the page uses the question."""
    encoded = reader.compressor.encode(Context(batch.context.ids, batch.context.mask, batch.prefix))
    nothing = torch.zeros(len(batch), 1, reader.decoder.width)
    question = Question(batch.query.ids, batch.query.mask, nothing, nothing[..., 0] == 0)
    return encoded, reader.compressor.compress(encoded, question)


# ---- every example ----


def test_the_page_has_a_code_file_and_a_yaml_for_each_method():
    names = (*METHODS, SCORER)
    assert list(FILES) == [file for name in names for file in (f"mine/{name}.py", f"configs/compressor/{name}.yaml")]
    assert len(re.findall(r"^```(?:python|yaml)$", PAGE, re.MULTILINE)) == len(FILES)


@pytest.mark.parametrize("name", [*METHODS, SCORER])
def test_the_yaml_has_the_constructor_s_keys(search, tmp_path, name):
    for base in ("mean_pool.yaml", "knorm.yaml"):
        (tmp_path / "configs" / "compressor" / base).symlink_to(CONFIGS / "compressor" / base)
    settings = load_choice(tmp_path / "configs" / "compressor" / f"{name}.yaml")
    cls = target_class(OmegaConf.create({"compressor": settings}), "compressor")
    assert set(settings) == set(constructor_keys(cls))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert hydra_compose("train", [search, f"compressor={name}"]).compressor == settings


@pytest.mark.parametrize("name, join", [("every_kth", "input"), *((name, "depth") for name in METHODS), (SCORER, None)])
def test_a_batch_of_n_equals_n_batches_of_one(search, build, name, join, ragged_examples, collate):
    words = ["compressor.encoder_layers=2", f"compressor.join={join}"] if join else ["compressor.scorer.recent=2"]
    reader = build([search, f"compressor={name}", *words])
    disturb(reader)
    with torch.no_grad():
        together = reader.loss(collate(ragged_examples, side="left"))
        alone = [reader.loss(collate([example])) for example in ragged_examples]
        torch.testing.assert_close(together.nll, torch.cat([one.nll for one in alone]), rtol=1e-5, atol=0)
        for term, (value, count) in together.terms().items():
            torch.testing.assert_close(value, sum(one.terms()[term][0] for one in alone), rtol=1e-5, atol=0)
            assert count == sum(one.terms()[term][1] for one in alone) == reader.counts(collate(ragged_examples))[term]
        reader.eval()
        ids = [greedy_ids(reader, collate([example]))[0] for example in ragged_examples]
        assert greedy_ids(reader, collate(ragged_examples)) == ids


def test_every_training_command_of_the_page_composes(search):
    assert len(commands("train.py")) == 4
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for words in commands("train.py"):
            sweep = words[0] == "-m"
            for value in words[-1].partition("=")[2].split(",") if sweep else [None]:
                last = [f"{words[-1].partition('=')[0]}={value}"] if sweep else words[-1:]
                chosen = [word for word in words[:-1] if word != "-m"] + last
                assert validate_keys(hydra_compose("train", [search, *chosen]))[1] == []


# ---- the first ----


def test_from_two_files_to_a_row_in_the_table(call, tmp_path, capsys):
    assert call(training, "compressor=every_kth", *SMALL) == 0
    [run] = (tmp_path / "outputs" / "default").iterdir()
    assert call(evaluation, f"run={run}") == 0
    rows = json.loads((run / "table.json").read_text())
    assert [row["reader"] for row in rows] == ["every_kth", "full_context", "no_context"]
    assert rows[0]["n"] == 4 and rows[0]["requested_ratio"] == 4 and 3 < rows[0]["effective_ratio"] <= 4
    printed = capsys.readouterr().out
    assert f"run {run}" in printed and "every_kth" in printed


def test_slots_are_every_kth_state(search, build, ragged):
    reader = build([search, "compressor=every_kth", *AT_DEPTH]).eval()
    with torch.no_grad():
        encoded, memory = compressed(reader, ragged)
    for b, length in enumerate(ragged.context.lengths.tolist()):
        kept = [*range(3, length, 4)] + ([length - 1] if length % 4 else [])
        assert memory.mask[b].sum() == len(kept) and memory.positions[b, : len(kept)].tolist() == kept
        torch.testing.assert_close(memory.embeds[b, : len(kept)], encoded.states[b, 0, kept])


# ---- an argument of its own ----


def test_the_argument_is_swept_and_set_in_variants(call, tmp_path):
    [sweep] = [words for words in commands("train.py") if words[0] == "-m"]
    assert sweep[-1] == "compressor.decay=0.25,0.5,1"
    small = [word for word in SMALL if word != "train.steps=2"] + ["train.steps=1"]
    assert call(training, "-m", "compressor=decay_pool", *AT_DEPTH, *small, "compressor.decay=0.25,1") == 0
    runs = sorted((tmp_path / "outputs" / "default").iterdir())
    assert {OmegaConf.load(run / "config.yaml").compressor.decay for run in runs} == {0.25, 1}
    [variants] = [words[-1] for words in commands("eval.py") if words[-1].startswith("variants=[{compressor.decay")]
    assert call(evaluation, f"run={runs[0]}", variants, "baselines=[]") == 0
    names = [row["reader"] for row in json.loads((runs[0] / "table.json").read_text())]
    assert names == ["decay_pool", "decay_pool, decay=0.25", "decay_pool, decay=1"]


def test_wrong_values_of_the_argument_are_reported(call, search, capsys):
    assert call(training, "compressor=decay_pool", *SMALL, "compressor.decay=0") == 2
    assert capsys.readouterr().err == "error: compressor.decay=0: must be above 0, up to 1, e.g. 0.5\n"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra_compose("train", [search, "compressor=decay_pool", "compressor.decay=slow", "+compressor.decya=1"])
    assert sorted(validate_keys(cfg)[1]) == [
        "compressor.decay=slow: must be a number, e.g. 0.5",
        "compressor.decya: unknown key; the nearest right one is compressor.decay",
    ]


def test_weights_fall_off_from_the_end_of_a_group(search, build, ragged):
    for decay in (0.5, 1.0):
        reader = build([search, "compressor=decay_pool", *AT_DEPTH, f"compressor.decay={decay}"]).eval()
        with torch.no_grad():
            encoded, memory = compressed(reader, ragged)
        for b, length in enumerate(ragged.context.lengths.tolist()):
            groups = [range(start, min(start + 4, length)) for start in range(0, length, 4)]
            weights = [torch.tensor([decay**d for d in range(len(group))][::-1])[:, None] for group in groups]
            slots = [(encoded.states[b, 0, list(g)] * w / w.sum()).sum(0) for g, w in zip(groups, weights)]
            assert memory.mask[b].sum() == len(slots)
            for slot, expected in zip(memory.embeds[b], slots):
                torch.testing.assert_close(slot, expected)


# ---- a loss of its own ----


def test_the_loss_is_trained_and_logged(call, tmp_path, capsys):
    assert call(training, "compressor=spread_pool", *AT_DEPTH, *SMALL, "train.log_every=1") == 0
    [run] = (tmp_path / "outputs" / "default").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(0 < row["spread"] <= 0.1 for row in rows)
    assert f"spread {rows[0]['spread']:.4f}" in capsys.readouterr().out


def test_the_loss_is_the_mean_squared_cosine_of_neighbours(search, build, ragged):
    reader = build([search, "compressor=spread_pool", *AT_DEPTH, "decoder.train=full"]).train()
    _, memory = compressed(reader, ragged)
    value, count = memory.losses["spread"]
    expected = 0.0
    for slots, mask in zip(memory.embeds.detach(), memory.mask):
        units = torch.nn.functional.normalize(slots[mask], dim=-1)
        squares = [float(a @ b) ** 2 for a, b in zip(units, units[1:])]
        expected += 0.1 * sum(squares) / max(len(squares), 1)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4) and int(count) == 4  # one context is empty
    value.backward()
    gradient = reader.decoder.embed_tokens.weight.grad
    assert torch.isfinite(gradient).all() and gradient.any()
    off = build([search, "compressor=spread_pool", *AT_DEPTH, "compressor.spread_weight=0"]).train()
    assert compressed(off, ragged)[1].losses == {} and "spread" not in off.counts(ragged)
    assert compressed(reader.eval(), ragged)[1].losses == {}


# ---- a scorer of its own ----


def test_the_scorer_has_a_row_beside_others_over_one_prefill(call, tmp_path, monkeypatch):
    [words] = [words for words in commands("eval.py") if words[0] == f"compressor={SCORER}"]
    small = [word for word in words if word.startswith(("compressor=", "variants="))]
    encoded, encode = [], CacheSelection.encode

    def counted(self, context):
        encoded.extend(context.ids)
        return encode(self, context)

    monkeypatch.setattr(CacheSelection, "encode", counted)
    assert call(evaluation, *small, "backbone=tiny", "baselines=[]", "dataset.test_size=3", "backbone.layers=2") == 0
    rows = json.loads((tmp_path / "outputs" / "eval" / "table.json").read_text())
    assert [row["reader"] for row in rows] == [SCORER, "knorm", "streaming_llm"] and len(encoded) == 3
    assert len({row["memory_bytes"] for row in rows}) == 1 and 3 < rows[0]["effective_ratio"] <= 4


def test_the_scorer_keeps_recent_and_long_values(search, build, ragged):
    reader = build([search, f"compressor={SCORER}", "compressor.scorer.recent=2"]).eval()
    with torch.no_grad():
        encoded, memory = compressed(reader, ragged)
    for layer, kept in enumerate(memory.layers):
        values = encoded.keys_values[layer][1][:, 0]
        for b, (prefix, length) in enumerate(zip(ragged.prefix.lengths.tolist(), ragged.context.lengths.tolist())):
            for head, count in enumerate(kept.counts[b]):
                norms = values[b, head, prefix : prefix + length].norm(dim=-1)
                recent = [*range(max(length - 2, 0), length)][::-1]
                best = sorted(range(max(length - 2, 0)), key=lambda j: -norms[j])
                places = sorted((recent + best)[: -(-length // 4)])
                expected = torch.cat([values[b, head, :prefix], values[b, head, prefix:][places]])
                assert torch.equal(kept.rows([b]).values.split(kept.counts[b])[head], expected) and count == len(
                    expected
                )


def test_wrong_values_of_the_scorer_are_reported(call, capsys):
    assert call(evaluation, f"compressor={SCORER}", "backbone=tiny", "compressor.scorer.recent=-1") == 2
    assert capsys.readouterr().err == "error: compressor.scorer.recent=-1: must be 0 or more tokens, e.g. 16\n"
