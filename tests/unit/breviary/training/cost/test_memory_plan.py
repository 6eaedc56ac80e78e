"""scripts/plan_memory.py, and the estimate and refusal of train.py."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from breviary.backbones.shape import BackboneShape
from breviary.backbones.tiny import TinyBackbone
from breviary.config.build import ReaderSpec
from breviary.config.keys import known_keys
from breviary.contract import Batch, Tokens
from breviary.runs.folders import config_hash
from breviary.runtime.checkout import ROOT
from breviary.training.cost import devices
from breviary.training.cost.devices import DEVICES, device_memory, parse_gpus
from breviary.training.cost.parts import TextLengths
from breviary.training.cost.plan import MemoryPlan, RunCost, split_lengths
from scripts import plan_memory
from tests.tiny import compose_tiny

WORDS = ["experiment=comi_nq", "backbone=qwen2_7b", "engine=zero2", "gpus=8x80GB", "--context", "8192", "131072"]
TEXTS = TextLengths(400, 20, 20)


@pytest.fixture(scope="module")
def printed():
    """What the script prints for WORDS, as lines."""
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(plan_memory, "print", lambda text: lines.extend(text.splitlines()), raising=False)
        patch.setattr(plan_memory, "print_block", lambda console, columns, rows: lines.extend(map(" ".join, rows)))
        plan_memory.main(WORDS)
    return lines


def test_the_plan_states_moments_largest_batch_length_and_hours(printed):
    assert printed[0].startswith("COMI on Qwen2-7B-Instruct, engine zero, 8 x 80 GB, bfloat16; ")
    moments = [line.split()[:2] for line in printed[1:9]]
    assert [name for _, name in moments] == ["loss", "backward", "optimizer", "validation"] * 2
    peaks = [line for line in printed[1:9] if "peak" in line]
    assert len(peaks) == 2 and peaks[0].endswith("peak") and peaks[1].endswith("does NOT fit")
    text = "\n".join(printed[9:])
    assert re.search(r"^8,192 tokens: largest train.batch_size [1-9]", text, re.MULTILINE)
    assert "131,072 tokens: largest train.batch_size none: not even 1" in text and " hours on 8 x A100" in text
    assert printed[-1].startswith("next: torchrun --nproc_per_node 8 train.py experiment=comi_nq")


def test_the_largest_batch_and_length_fit_and_the_next_do_not():
    cfg = compose_tiny(["compressor=full_context"])
    plan = MemoryPlan.of(cfg, 1, 200e6)
    batch, context = plan.largest_batch(TEXTS), plan.longest_context(TEXTS)
    assert batch > 1 and plan.fits(plan.estimate(TEXTS, f"train.batch_size={batch}"))
    assert not plan.fits(plan.estimate(TEXTS, f"train.batch_size={batch + 1}"))
    assert plan.fits(plan.estimate(replace(TEXTS, context=context)))
    assert not plan.fits(plan.estimate(replace(TEXTS, context=round(1.01 * context) + 16)))


@pytest.mark.parametrize(
    "words, message",
    [
        (["gpus=8"], "gpus=8: must be their number and the memory of each, e.g. gpus=8x80GB"),
        (["backbone.path=/nowhere/else"], "/nowhere/else: no backbone of known sizes"),
        (["train.batch=2"], "train.batch"),
        (["--context", "0"], "--context 0: must be at least 1 token, e.g. 64"),
        (["--device", "z80"], "device=z80: allowed are cpu, "),
    ],
)
def test_wrong_words_are_one_message(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        plan_memory.main(["backbone=qwen2_7b", *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err


# ------------------------------------------------------------------ train.py


def run_cost(memory, *words):
    cfg = compose_tiny(["compressor=full_context", "train.eval_examples=0", *words])
    shape = BackboneShape.from_config(TinyBackbone(layers=4).config)
    return RunCost(MemoryPlan(cfg, shape, 1, memory), TEXTS, TEXTS, "this machine's memory")


@pytest.mark.parametrize("memory", [25e6, 12e6, 1e6])
def test_a_training_that_cannot_fit_is_refused_in_one_sentence_of_settings_that_exist(memory):
    cost = run_cost(memory, "train.batch_size=4")
    [message] = cost.problems()
    assert "do not fit the" in message and message.endswith("train.check_memory=false to skip this check")
    words = re.findall(r"[a-z_.]+=[a-z0-9_]+", message)
    assert len(words) >= 2
    for word in words:
        assert OverridesParser.create().parse_override(word).key_or_group in (*known_keys("train", []), "engine")
    advised = [word for word in words if "check" not in word and "engine" not in word]
    if advised:
        assert run_cost(memory, "train.batch_size=4", *advised).problems() == []
    assert run_cost(memory, "train.batch_size=4", "train.check_memory=false").problems() == []


def test_a_validation_that_cannot_fit_is_advised_a_smaller_batch():
    [message] = run_cost(45e6, "train.batch_size=1", "train.eval_examples=9", "eval_batch_size=512").problems()
    assert "(validation: " in message and "set eval_batch_size=1, or train.check_memory=false" in message


def test_what_fits_is_stated_on_one_line():
    cost = run_cost(1e9)
    assert cost.problems() == []
    assert re.fullmatch(
        r"estimate: \d+\.\d MB of the 1\.0 GB of this machine's memory at the peak .*FLOPs", cost.line()
    )


def test_the_check_changes_no_hash():
    hashes = {config_hash(compose_tiny([f"train.check_memory={value}"])) for value in ("true", "false")}
    assert len(hashes) == 1


def test_lengths_are_those_of_the_longest_batch_as_the_objective_supervises_it():
    class Items(list):
        lengths, other_lengths = [3, 9, 5], [2, 2, 2]

    texts = [TextLengths(n, 0, 0) for n in (3, 9, 5)]

    def collate(rows):
        width = max(row.context for row in rows)
        one = Tokens(torch.zeros(len(rows), width, dtype=torch.long), torch.ones(len(rows), width, dtype=torch.bool))
        two = Tokens(one.ids[:, :2], one.mask[:, :2])
        return Batch(two, one, two, two, two, None, None, [])

    train = compose_tiny(["train.batch_size=2"]).train
    plain = ReaderSpec.of(compose_tiny([]))
    assert split_lengths(plain, Items(texts), collate, train) == (TextLengths(5, 4, 2), TextLengths(9, 4, 2))
    copies = ReaderSpec.of(compose_tiny(["objective=reconstruct"]))
    assert split_lengths(copies, Items(texts), collate, train)[1] == TextLengths(9, 4, 10)


def test_memory_of_this_machine_is_shared_by_its_processes(monkeypatch, tmp_path):
    (tmp_path / "limit").write_text("4096000000\n")
    monkeypatch.setattr(devices, "CGROUP", tmp_path / "limit")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_memory(torch.device("cpu")) == (2048000000.0, "this machine's memory")
    assert parse_gpus("8x80GB") == (8, 80e9)


def test_the_table_of_the_page_is_what_the_plan_counts():
    """docs/scale.md: GB at 8k, 32k and 128k tokens, the longest context, and hours of 1,000 steps on eight H100."""
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    shared = re.search(r"for Qwen2-7B with `([^`]+)`", " ".join(page.split()))[1].split()
    rows = re.findall(r"^\| `((?:compressor|experiment)=[^`]+)` \|(.+)\|$", page, re.MULTILINE)
    assert len(rows) == 8
    for words, cells in rows:
        cfg = plan_memory.read_config(["backbone=qwen2_7b", *words.split(), *shared])
        plan, flops = MemoryPlan.of(cfg, 8, 80e9), 8 * DEVICES["h100"].flops * 3600
        costs = [plan.estimate(TextLengths(tokens, 64, 64)) for tokens in (8192, 32768, 131072)]
        hours = [f"{cost.flops / cfg.train.steps * 1000 / flops:.1f}" for cost in costs]
        longest = f"{plan.longest_context(TextLengths(8192, 64, 64)) // 1000}k"
        expected = [*(f"{cost.bytes / 1e9:.0f}" for cost in costs), longest, *hours]
        assert [cell.strip() for cell in cells.split("|")] == expected, words
