"""Every command: --help prints usage and examples and starts nothing; every printed command is one that it takes."""

import functools
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf

from breviary.config.cli import words as command_words
from breviary.config.cli.choices import choices_with, config_groups, group_choices
from breviary.config.cli.words import check_words, config_name, runs_and_settings
from breviary.config.errors import run_cli
from breviary.config.keys import known_keys
from breviary.report.page.runs import reading_maps
from breviary.report.tables.command import read_words
from breviary.report.tables.form import table_file
from breviary.runtime.checkout import ROOT
from breviary.runtime.spelling import command, next_line

SCRIPTS = ["train.py", "eval.py", *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "scripts").rglob("*.py")))]


def module_of(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def examples(text):
    """The commands of a text: lines that begin with four spaces, and a program."""
    lines = re.findall(r"^    ((?:[A-Z_]+=\S+ )?(?:python|make|torchrun|bash) .*(?:\\\n.*)*)$", text, re.MULTILINE)
    return [line.replace("\\\n", " ") for line in lines]


@functools.cache
def keys_of(config):
    return known_keys(config, [])


def check_command(line, monkeypatch, page=""):
    """Parses a shell line as its script would; asserts that nothing in it is wrong. Runs count as existing.

    page  text that shows further YAML files of configs/, with their keys
    """
    bash = line.replace("$'", "'")  # which shlex does not know; only keys are checked
    parts = [part for part in shlex.split(bash, comments=True) if not re.match(r"[A-Z_]+=", part)]
    if parts[0] not in ("python", "torchrun"):
        assert parts[0] != "make" or re.search(rf"^{parts[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    at = next(i for i, part in enumerate(parts) if part.endswith(".py"))
    script, given = Path(parts[at]), parts[at + 1 :]
    script = str(script.relative_to(ROOT) if script.is_absolute() else script)
    module = module_of(script)
    monkeypatch.setattr(command_words, "find_run", lambda word, *_: Path(word))
    if not hasattr(module, "run_cli"):
        options = module.build_parser().parse_intermixed_args(given)
        if script == "scripts/table.py":
            table_file(read_words(options.table_words, options.device)[0])
        both = getattr(options, "words_given", getattr(options, "words", None))
        for form, needs_run in (("RUN|KEY=VALUE", True), ("[RUN]|KEY=VALUE", False)):
            if both and f" {form} " in module.build_parser().format_help():
                assert runs_and_settings(both, needs_run)[2] == [], line
        return
    config = config_name(given, module.CONFIG)
    found, problems = check_words(given, config)
    assert problems == [], line
    check_settings_exist(found, config, line, page)


def check_settings_exist(words, config, line, page):
    """Every group has the choice, every key exists, with some choice of its group."""
    new_choices = set(re.findall(r"configs/\w+/(\w+)\.yaml", page))
    new_keys = {f"compressor.{name}" for name in re.findall(r"^(\w+): ", page, re.MULTILINE)}
    for word in (word for word in words if "=" in word):
        read = OverridesParser.create().parse_override(word)
        key = read.key_or_group
        if key in config_groups():
            if isinstance(read.value(), Glob):  # dataset=glob(ruler_*): names some
                assert read.value().filter(group_choices(key)), f"{word}: {line}"
                continue
            values = [str(one) for one in (read.sweep_iterator() if read.is_sweep_override() else [read.value()])]
            assert set(values) <= {*group_choices(key)} | new_choices, f"{word}: {line}"
        elif not key.startswith("hydra") and key not in new_keys:
            parent = key.rpartition(".")[0]  # of a mapping with names of the user's, such as dataset.weights.NAME
            assert key in keys_of(config) or choices_with(key) or choices_with(parent), f"{word}: {line}"


# ------------------------------------------------------------------ --help


@pytest.fixture(params=SCRIPTS)
def help_of(request, monkeypatch, capsys, tmp_path):
    """(script, what --help prints); the working folder stays empty."""
    module = module_of(request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [request.param, "--help"])
    if hasattr(module, "run_cli"):
        for name in ("get_backbone", "train", "run_study", "make_reading_map", "TrainingSession", "EvaluationSession"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("started"))
        run_cli(module.main, module.CONFIG, has_flags=request.param != "scripts/demo.py")
    else:
        with pytest.raises(SystemExit) as exit:
            module.main(["--help"])
        assert exit.value.code == 0
    assert list(tmp_path.iterdir()) == []
    return request.param, capsys.readouterr().out


def test_help_shows_usage_and_three_examples_that_the_script_takes(help_of, monkeypatch):
    script, text = help_of
    lines = examples(text)
    assert len(lines) >= 3 and sum(script in line for line in lines) >= 1, text
    assert "usage:" in text or "Keys, KEY=VALUE" in text
    for line in lines:
        check_command(line, monkeypatch)


def test_help_of_a_hydra_command_shows_groups_keys_and_comments(monkeypatch, capsys):
    training = module_of("train.py")
    monkeypatch.setattr(sys, "argv", ["train.py", "--help", "experiment=ram_facts", "dataset=nq"])
    run_cli(training.main, training.CONFIG)
    text = capsys.readouterr().out
    assert re.search(r"^  compressor +ram \(now\), \w+, ", text, re.MULTILINE)
    assert re.search(r"^  train.steps=\d+ +optimizer steps", text, re.MULTILINE)
    assert re.search(r"^  compressor.keep=\S+ +\w+", text, re.MULTILINE) and "compressor.alpha" not in text
    assert re.search(r"^  dataset.passage_format=numbered +layout of passages", text, re.MULTILINE)
    assert "compressor=ram" in text and "hydra." not in text.partition("Flags:")[0]
    shown = re.findall(r"^  ([a-z_]+(?:\.[a-z_0-9]+)*=.*?)(?:  |$)", text, re.MULTILINE)
    for word in shown:  # each can be pasted
        if "${" not in word:
            [one] = shlex.split(word) if not word.startswith("$'") else [word]
            OverridesParser.create().parse_override(one)
    assert len(shown) > 60


def test_help_of_eval_begins_with_its_own_keys(monkeypatch, capsys):
    evaluation = module_of("eval.py")
    monkeypatch.setattr(sys, "argv", ["eval.py", "-h"])
    run_cli(evaluation.main, evaluation.CONFIG)
    keys = capsys.readouterr().out.partition("Keys, KEY=VALUE")[2]
    assert keys.index("  run=null") < keys.index("  train.steps=")


def test_help_of_a_study_names_its_other_forms(monkeypatch, capsys):
    study = module_of("scripts/studies/data_gap.py")
    monkeypatch.setattr(sys, "argv", ["x", "--help", "--config-name", "study/data_gap_small"])
    run_cli(study.main, study.CONFIG)
    text = capsys.readouterr().out
    assert "study/data_gap_smoke" in text and re.search(r"^  held_out=0.4", text, re.MULTILINE)


# ------------------------------------------------------------------ the next command


def next_commands(text):
    """The commands that a command printed last."""
    last = text[text.rindex("next: ") + len("next: ") :]
    return [line.strip() for line in last.splitlines() if line.strip()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_ends_with_the_next_one(script):
    source = (ROOT / script).read_text(encoding="utf-8")
    assert "next_line(" in source or "next, there" in source or script == "scripts/check_links.py"


def test_commands_are_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = command("eval.py", "outputs/a b/RUN", "variants=[{compressor.ratio: 8}]")
    assert shlex.split(line) == ["python", str(ROOT / "eval.py"), "outputs/a b/RUN", "variants=[{compressor.ratio: 8}]"]
    monkeypatch.chdir(ROOT)
    assert command("train.py", processes=4) == "torchrun --nproc_per_node 4 train.py"
    assert next_commands(f"done\n{next_line('a', 'b')}\n") == ["a", "b"]


def called(script, monkeypatch, capsys, fakes, *words):
    """What a script prints with some of its functions replaced."""
    module = module_of(script)
    monkeypatch.chdir(ROOT)
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    module.main(list(words))
    return capsys.readouterr().out


def nothing(*args, **kwargs):
    """In place of a function that measures."""


class Named:
    """In place of a configuration, a reader or a session."""

    def __init__(self, **values):
        self.__dict__ |= values


RUN_FOLDER = "outputs/comi facts/20260101T000000_abcdef"

CALLS = {
    "scripts/curves.py": (
        {
            "find_run": Path,
            "load_config": lambda run: Named(name="x"),
            "read_curve": nothing,
            "write_curves": nothing,
            "draw_curves": nothing,
        },
        [RUN_FOLDER, "outputs/b"],
    ),
    "scripts/compare.py": ({"load_evaluations": lambda words: []}, [RUN_FOLDER, "outputs/b"]),
    "scripts/report.py": ({"evaluate_missing": lambda *_: [], "make_report": lambda *_: "x"}, [RUN_FOLDER]),
    "scripts/table.py": (
        {"load_published_table": lambda *_: {}, "add_runs": nothing, "print_published_table": nothing},
        [],
    ),
    "scripts/export.py": (
        {
            "find_run": Path,
            "ExportSource": Named(open=lambda *_: Named(backbone=Named(dtype="float32"))),
            "export_run": lambda *_: 1,
        },
        [RUN_FOLDER, "--output", "exported/a b"],
    ),
    "scripts/ask_text.py": ({"find_run": Path, "ask": nothing}, [RUN_FOLDER, "--text", "a book.txt", "Who?"]),
    "scripts/gold_recall.py": (
        {
            "runs_and_settings": lambda words, needs_run: ([RUN_FOLDER], ["dataset=nq_gold4"], []),
            "run_config": nothing,
            "EvaluationSession": lambda text: Named(check=lambda cfg: ([cfg], [])),
            "measure_recall": lambda *_: [],
            "show": nothing,
        },
        [RUN_FOLDER],
    ),
    "scripts/fit_selector.py": (
        {
            "runs_and_settings": lambda words, needs_run: ([], ["experiment=attention_nq_small"], []),
            "compose_config": lambda *_: Named(reader="attention"),
            "fit_selector": lambda *_: Path(RUN_FOLDER),
        },
        ["experiment=attention_nq_small"],
    ),
    "scripts/passkey_map.py": (
        {
            "runs_and_settings": lambda words: ([RUN_FOLDER], [], []),
            "run_config": nothing,
            "EvaluationSession": lambda text: Named(check=lambda cfg: ([cfg], [])),
            "measure_passkey": lambda *_: [],
            "draw_passkey_maps": nothing,
        },
        [RUN_FOLDER],
    ),
    "scripts/import_checkpoint.py": (
        {"import_checkpoint": lambda *_, **__: (Path("runs/a b"), {})},
        ["--format", "comi", "--source", "x", "--backbone", "y", "--output", "z"],
    ),
    "scripts/get_backbone.py": ({"get_backbone": nothing}, ["--output", "models/a b"]),
    "scripts/prepare_data.py": (
        {"prepare": lambda *_: (Path("my data/nq"), {"test": Named(report=lambda: "")})},
        ["nq", "--test", "x"],
    ),
    "scripts/plan_pipeline.py": ({"print_plans": nothing}, ["--model", "qwen3_4b", "--cases", "131072:2"]),
    "scripts/readme_figure.py": (
        {name: nothing for name in ("speed_rows", "quality_rows", "write_figure", "write_join_figure")},
        [],
    ),
    "scripts/make_data.py": ({"generate": lambda home: [], "state_lines": lambda home: []}, []),
}


@pytest.mark.parametrize("script", CALLS)
def test_the_printed_next_command_is_right(script, monkeypatch, capsys):
    fakes, words = CALLS[script]
    words = ["comi_main"] if script == "scripts/table.py" else words
    lines = next_commands(called(script, monkeypatch, capsys, fakes, *words))
    assert lines
    for line in lines:
        check_command(line, monkeypatch)


def test_the_commands_that_a_report_lacks_reading_maps_for(tmp_path, monkeypatch):
    found = reading_maps({tmp_path / "a b": Named(label="ram")}, 3)
    for line in found["missing"]:
        check_command(line, monkeypatch)
    assert len(found["missing"]) == 1


def test_the_commands_after_an_evaluation(tmp_path, monkeypatch):
    evaluation = module_of("eval.py")
    monkeypatch.chdir(ROOT)
    baseline = tmp_path / "eval" / "0123" / "full context"
    baseline.mkdir(parents=True)
    results = [{"run": RUN_FOLDER}, {"run": str(baseline)}, {"run": "gone"}]
    lines = evaluation.next_commands(Named(run=RUN_FOLDER), results, [])
    assert shlex.split(lines[0]) == ["python", "scripts/compare.py", RUN_FOLDER, str(baseline)] and len(lines) == 3
    for line in lines:
        check_command(line, monkeypatch)


@pytest.mark.parametrize(
    "words, after",
    [
        ([], "experiment=comi_facts"),
        (
            ["compressor=bm25", "backbone=smollm2_135m", "dataset=nq", "examples=4"],
            "compressor=comi backbone=smollm2_135m dataset=nq",
        ),
        (["experiment=comi_nq", "compressor=no_context", "compressor.keep=none"], "experiment=comi_nq"),
        (
            ["prompt.instruction='Answer it.'", "split=validation"],
            "compressor=comi 'prompt.instruction='\"'\"'Answer it.'",
        ),
    ],
)
def test_after_a_baseline_the_same_backbone_and_data_are_trained(words, after, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = OmegaConf.create({"_target_": "data.invented_facts.InventedFacts"})
    [line] = module_of("eval.py").next_commands(Named(run=None, dataset=data), [], words)
    assert line.startswith(f"python train.py {after}")
    check_command(line, monkeypatch)


@pytest.mark.parametrize(
    "splits, after",
    [
        (("train", "validation", "test"), "dataset=nq dataset.max_documents=5"),
        (("train", "test"), "dataset=nq dataset.max_documents=5 train.eval_examples=0"),
        (("test",), ""),  # such as a suite: other data are trained on
    ],
)
def test_after_a_baseline_only_what_can_be_trained_on_is_suggested(splits, after, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = {split: __file__ if split in splits else None for split in ("train", "validation", "test")}
    data = OmegaConf.create({"_target_": "data.jsonl.Jsonl", **files})
    words = ["compressor=bm25", "backbone=smollm2_135m", "dataset=nq", "dataset.max_documents=5"]
    [line] = module_of("eval.py").next_commands(Named(run=None, dataset=data), [], words)
    assert line == f"python train.py compressor=comi backbone=smollm2_135m {after}".rstrip()
    check_command(line, monkeypatch)


@pytest.mark.parametrize(
    ("splits", "words"), [("train validation test", []), ("train validation", ["split=validation"])]
)
def test_after_a_training_the_next_command_reads_a_split_that_exists(splits, words, monkeypatch):
    module = module_of("train.py")
    files = {split: __file__ if split in splits.split() else None for split in ("train", "validation", "test")}
    data = OmegaConf.create({"_target_": "data.jsonl.Jsonl", **files})
    monkeypatch.setattr(module, "load_config", lambda run: Named(dataset=data))
    assert module.evaluation_words(RUN_FOLDER) == words


def test_a_setting_among_the_runs_of_a_report_is_refused_before_anything_is_evaluated(monkeypatch, capsys):
    report = module_of("scripts/report.py")
    monkeypatch.setattr(report, "evaluate_missing", None)
    with pytest.raises(SystemExit) as ended:
        report.main([RUN_FOLDER, "examples=10"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: examples=10: no RUN, and this command takes no settings; its options are written --examples 100, "
        "--metric em\n"
    )


def test_the_curves_of_a_sweep_are_those_of_all_its_runs(tmp_path, monkeypatch, capsys):
    curves, drawn = module_of("scripts/curves.py"), {}
    sweep = tmp_path / "sweeps" / "ratios"
    sweep.mkdir(parents=True)
    for number, ratio in enumerate((2, 4, 4)):
        (tmp_path / f"run{number}").mkdir()
        settings = ["name=x", f"compressor.ratio={ratio}"]
        (sweep / f"run{number}.run.json").write_text(json.dumps({"run": f"../../run{number}", "settings": settings}))
    monkeypatch.setattr(curves, "read_curve", lambda run: run.name)
    monkeypatch.setattr(curves, "write_curves", lambda file, lines: drawn.update(lines))
    monkeypatch.setattr(curves, "draw_curves", lambda file, lines, levels: file.touch())
    curves.main([str(sweep)])
    assert drawn == {"compressor.ratio=2": "run0", "compressor.ratio=4/run1": "run1", "compressor.ratio=4/run2": "run2"}
    assert (sweep / "curves.png").exists() and next_commands(capsys.readouterr().out)[0].endswith(f"report.py {sweep}")


# ------------------------------------------------------------------ pages


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_are_taken(page, monkeypatch):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for line in (line for block in blocks for line in block.replace("\\\n", " ").splitlines()):
        if re.match(r"(python|torchrun \S+ \d+) \S*\.py ", line):
            check_command(line, monkeypatch, text)
