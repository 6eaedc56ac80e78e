"""RUN: a run folder, a folder inside or above runs, `latest`; and what is wrong with a RUN that names nothing."""

import json
import os
import re

import pytest

from breviary.config.cli.run_names import find_results_folder, find_run, runs_below
from breviary.config.cli.words import check_settings, check_words, runs_and_settings
from breviary.config.keys import CONFIGS

RUN = "20260102T000000_bbbbbb"


def make_run(folder, finished=True):
    """A folder that passes for a run."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("compressor: {keep: none}\n")
    if finished:
        (folder / "finished").touch()
    return folder


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """outputs/ of the working folder: two finished runs and a newer unfinished one of `a`, an older one of `b/deep`."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "outputs"
    make_run(home / "a" / "20260101T000000_ffffff")
    make_run(home / "a" / RUN)
    make_run(home / "a" / "20260103T000000_cccccc", finished=False)
    make_run(home / "b" / "deep" / "20251231T000000_dddddd")
    (home / "a" / RUN / "eval" / "0123" / "comi").mkdir(parents=True)
    (home / "a" / RUN / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (home / "empty").mkdir()
    return home


@pytest.mark.parametrize(
    "word, run, printed",
    [
        (f"outputs/a/{RUN}", f"outputs/a/{RUN}", ""),
        (f"outputs/a/{RUN}/", f"outputs/a/{RUN}", ""),
        ("outputs/a/20260103T000000_cccccc", "outputs/a/20260103T000000_cccccc", ""),
        ("outputs/a", f"outputs/a/{RUN}", f"RUN outputs/a: the newest of 2 finished runs, outputs/a/{RUN}\n"),
        ("outputs", f"outputs/a/{RUN}", f"RUN outputs: the newest of 3 finished runs, outputs/a/{RUN}\n"),
        ("latest", f"outputs/a/{RUN}", f"RUN latest: the newest of 3 finished runs, outputs/a/{RUN}\n"),
        (f"outputs/a/{RUN}/eval/0123/comi", f"outputs/a/{RUN}", None),
        (f"outputs/a/{RUN}/config.yaml", f"outputs/a/{RUN}", None),
        (
            "outputs/b",
            "outputs/b/deep/20251231T000000_dddddd",
            "RUN outputs/b: the only finished run, outputs/b/deep/20251231T000000_dddddd\n",
        ),
    ],
)
def test_a_word_names_a_run(outputs, capsys, word, run, printed):
    assert str(find_run(word)) == run
    out = capsys.readouterr().out
    assert out == printed if printed is not None else out == f"RUN {word}: inside the run {run}\n"


def test_a_sweep_lists_its_runs(outputs):
    sweep = outputs / "sweeps" / "ratios"
    sweep.mkdir(parents=True)
    for run in ("20260101T000000_ffffff", RUN):
        (sweep / f"{run}.run.json").write_text(json.dumps({"run": f"../../a/{run}", "settings": []}))
    assert [run.name for run in runs_below(sweep)] == ["20260101T000000_ffffff", RUN]
    assert find_run("outputs/sweeps/ratios").samefile(outputs / "a" / RUN)
    assert len(runs_below(outputs)) == 4  # each once


def test_a_run_without_a_time_in_its_name_has_that_of_its_configuration(outputs):
    old = make_run(outputs / "imported")
    os.utime(old / "config.yaml", (0, 0))
    assert find_run("latest").name == RUN
    new = make_run(outputs / "exported")
    assert find_run("latest").name == "exported" and new.exists()


@pytest.mark.parametrize(
    "word, message",
    [
        ("outputs/aa", "no such folder; RUN is .*; the nearest right one is outputs/a; finished runs: outputs/a/2026"),
        (f"outputs/a/{RUN[:-1]}x", f"no such folder; .*; the nearest right one is outputs/a/{RUN}; "),
        (
            "nowhere/at/all",
            "no such folder; RUN is .*; finished runs: outputs/a/20260102T000000_bbbbbb, outputs/a/2026",
        ),
        ("outputs/empty", r"no run folder \(no config.yaml in it or below\); it is empty; RUN is a run folder"),
        (f"outputs/a/{RUN}/checkpoints/checkpoint-2", "a checkpoint is no run; give its run, and checkpoint=best or"),
    ],
)
def test_a_wrong_word_is_answered_with_what_there_is(outputs, word, message):
    with pytest.raises(ValueError) as raised:
        find_run(word)
    assert re.match(f"RUN {re.escape(word)}: {message}", str(raised.value))


def test_unfinished_runs_alone_must_be_named(outputs):
    make_run(outputs / "c" / "20260103T000000_cccccc", finished=False)
    with pytest.raises(ValueError, match="must be named itself: outputs/c/20260103T000000_cccccc"):
        find_run("outputs/c")


def test_latest_without_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="RUN latest: there is no folder outputs yet; train first"):
        find_run("latest")


def test_an_evaluation_stays_itself_for_commands_that_take_one(outputs):
    assert find_results_folder(f"outputs/a/{RUN}/eval") == (outputs / "a" / RUN / "eval").relative_to(outputs.parent)
    assert find_results_folder("outputs/a").name == RUN


# ------------------------------------------------------------------ on a command line


@pytest.mark.parametrize("config", ["eval", "reading_map"])
@pytest.mark.parametrize("word", ["outputs/a", "latest", "run=outputs/a", "run=latest", "++run=latest"])
def test_run_is_positional(outputs, config, word):
    words, problems = check_words(["dataset=nq", word, "compressor.keep=all"], config)
    start = "++" if word.startswith("++") else ""
    assert problems == [] and sorted(words) == sorted(
        ["dataset=nq", f"{start}run=outputs/a/{RUN}", "++compressor.keep=all"]
    )


@pytest.mark.parametrize("name", ["a=b", "a, b", "a b", "it's", "[x]", "${x}", "#1", "größe", "a:b", "1"])
def test_a_folder_s_name_may_hold_signs_that_hydra_reads(outputs, compose, name):
    run = make_run(outputs / name / RUN)
    for word in (str(run), f"outputs/{name}", f"./outputs/{name}/{RUN}"):
        words, problems = check_words([word], "eval")
        assert problems == []
        assert os.path.samefile(compose(words, config="eval").run, run)
        assert runs_and_settings([word, "a=1"])[1:] == (["a=1"], [])


def test_paths_outputs_decides_where_latest_is(outputs, tmp_path):
    other = make_run(tmp_path / "other" / RUN)
    words, problems = check_words(["latest", f"paths.outputs={tmp_path}/other"], "eval")
    assert problems == [] and words[0] == f"run={other}"
    runs, settings, problems = runs_and_settings([f"paths.outputs={tmp_path}/other", "latest"])
    assert (runs, problems) == ([str(other)], [])


def test_other_keys_that_take_a_run(outputs):
    words, problems = check_words(["init_from=outputs/a"], "train")
    assert (words, problems) == ([f"init_from=outputs/a/{RUN}"], [])
    words, problems = check_words(["latest", "compare=[outputs/b,outputs/a]"], "eval")
    assert problems == [] and words[1] == f"compare=[outputs/b/deep/20251231T000000_dddddd,outputs/a/{RUN}]"
    checkpoint = f"init_from=outputs/a/{RUN}/checkpoints/checkpoint-2"
    assert check_words([checkpoint], "train") == ([checkpoint], [])


def test_several_runs(outputs):
    _, [problem] = check_words(["outputs/a", "outputs/b"], "eval")
    assert problem == 'outputs/a, outputs/b: give one RUN, once; "compare=[outputs/b]" adds rows to its table'
    _, [problem] = check_words(["outputs/a", "run=outputs/b"], "eval")
    assert problem.startswith("outputs/a: give one RUN, once")
    assert (CONFIGS / "eval.yaml").is_file()


def test_a_script_without_a_run(outputs):
    assert runs_and_settings(["seed=1"])[2][0].startswith("no RUN given; RUN is a run folder")


def test_resume_takes_the_newest_unfinished_run(outputs, capsys):
    unfinished = outputs / "a" / "20260103T000000_cccccc"
    make_run(outputs / "a" / "20260104T000000_eeeeee", finished=False)  # interrupted before its first checkpoint
    assert check_settings(["resume=outputs/a"], False)[1] == [
        "resume=outputs/a: no run below it is unfinished and has a checkpoint; give never, auto, or a run folder that "
        "train.py printed"
    ]
    (unfinished / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    name = f"outputs/a/{unfinished.name}"
    for word in ("outputs/a", "latest"):
        assert check_settings([f"resume={word}"], False) == ([f"resume={name}"], [])
        assert capsys.readouterr().out == f"resume={word}: the only unfinished run, {name}\n"
    for word in ("never", "auto", name, f"outputs/a/{RUN}", "outputs/nowhere"):  # the last one is reported by train.py
        assert check_settings([f"resume={word}"], False) == ([f"resume={word}"], [])
