"""Where public data sets come from: each format and configuration has a source, its command parses, the page agrees."""

import json
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from breviary.config.compose import load_choice
from breviary.config.keys import CONFIGS
from breviary.runtime.checkout import ROOT
from data.checks import SPLITS
from data.converters import CONVERTERS
from data.converters.prepare import _output_folder
from data.converters.suites import SUITES
from data.jsonl import Jsonl
from data.public.generated import KV_FOLDER, generate, key_value_rows, state_lines
from data.public.sources import SOURCES, commands, markdown_table, missing_hint
from scripts import make_data, prepare_data
from tests.tiny import compose_tiny

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_format_has_a_source():
    assert sorted({source.format for source in SOURCES}) == sorted((*CONVERTERS, *SUITES))


def test_every_dataset_on_prepared_files_has_a_source():
    known = {name: source.folder for source in SOURCES for name in source.datasets}
    for file in sorted((CONFIGS / "dataset").glob("*.yaml")):
        cfg = load_choice(file)
        if cfg._target_ == "data.public.suites.SuiteTask":
            assert Path(cfg._get_node("folder")._value()).name == known[file.stem]
        if cfg._target_ != "data.jsonl.Jsonl" or file.stem == "jsonl":
            continue
        paths = {OmegaConf.to_container(cfg)[split] for split in SPLITS} - {None}
        assert {path.rsplit("/", 2)[-2] for path in paths} == {known[file.stem]}, file.stem


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.folder)
def test_the_command_of_a_source_is_one_of_the_script_and_fills_its_folder(source, monkeypatch, tmp_path):
    monkeypatch.setenv("BREVIARY_DATA", str(tmp_path))
    program, script, *words = shlex.split(source.command())
    assert (program, script) == ("python", "scripts/prepare_data.py")
    args = prepare_data.build_parser().parse_args(words)
    assert {split: tuple(getattr(args, split)) for split in SPLITS if getattr(args, split)} == dict(source.splits)
    assert _output_folder(args.format, args.output, args.name) == tmp_path.resolve() / source.folder


def test_the_page_holds_the_table_and_the_commands():
    assert markdown_table() in PAGE, "docs/data.md: replace its table by data.public.sources.markdown_table()"
    assert f"```sh\n{commands()}```" in PAGE, "docs/data.md: replace its commands by data.public.sources.commands()"


def test_a_missing_file_of_a_public_data_set_states_where_it_comes_from(tmp_path):
    [problem] = Jsonl(str(tmp_path / "hotpotqa" / "train.jsonl.gz"), None, None).problems(["train"])
    assert "download HotpotQA, distractor setting from https://hotpotqa.github.io and run `python scripts/" in problem
    [problem] = Jsonl(None, str(tmp_path / "hotpotqa" / "validation.jsonl.gz"), None).problems(["validation"])
    assert "HotpotQA, distractor setting has train and test here, and no validation files" in problem
    assert (
        compose_tiny(["train.eval_examples=0"]).train.eval_examples == 0 and "set train.eval_examples=0, or" in problem
    )
    assert missing_hint(tmp_path / "mine" / "train.jsonl.gz") == missing_hint("hotpotqa/mine.jsonl") == ""


def test_generated_data_loads_and_is_not_written_twice(tmp_path):
    [line] = generate(tmp_path, examples=3)
    assert line.startswith(f"{KV_FOLDER}: generated, test: 3 examples")
    examples = Jsonl(None, None, str(tmp_path / KV_FOLDER / "test.jsonl.gz")).examples("test")
    rows = list(key_value_rows(75, 3))
    assert [example.answers for example in examples] == [(row["value"],) for row in rows]
    assert all(len(json.loads(example.context)) == 75 for example in examples)
    assert generate(tmp_path) == []
    ready = [line for line in state_lines(tmp_path) if "ready: " in line]
    assert len(ready) == 1 and ready[0].split() == [KV_FOLDER, "ready:", "test"]


def test_make_data_lists_every_source(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BREVIARY_DATA", str(tmp_path))
    monkeypatch.setattr(make_data, "generate", lambda home: [])
    make_data.main([])
    printed = capsys.readouterr().out
    assert all(source.command() in printed and source.page in printed for source in SOURCES)
