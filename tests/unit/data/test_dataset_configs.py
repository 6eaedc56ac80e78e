"""Every data set YAML: keys equal to the constructor's, a comment on each, and valid values."""

import inspect
import re
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from breviary.config.compose import load_choice
from data.babilong.worlds import TASKS as BABILONG_TASKS
from data.checks import SPLITS
from data.converters.suites import SUITES as FILE_SUITE_FORMATS
from data.ruler.tasks import TASKS as RULER_TASKS

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "configs" / "dataset").glob("*.yaml"))
DEFAULTS = {"invented_facts", "passkey"}  # the YAML repeats the defaults of the constructor
BASES = {"ruler", "babilong"}  # of a suite's tasks; each asks for one of them
SUITES = {f"ruler_{task}" for task in RULER_TASKS} | {f"babilong_{task}" for task in BABILONG_TASKS}
GENERATED = DEFAULTS | BASES | SUITES | {"key_values", "helmet_json_kv"}
MIXTURES = {"pwc_texts", "qa_mixture", "qa_texts", "scrolls_mixture"}
FILE_SUITES = set(FILE_SUITE_FORMATS)
BACKBONE = {"_target_": "breviary.backbones.tiny.TinyBackbone"}


def load(file: Path, data: str = "nowhere"):
    config = OmegaConf.merge({"paths": {"data": data}, "backbone": BACKBONE}, {"dataset": load_choice(file)})
    return config.dataset


def test_the_files_exist():
    assert {f.stem for f in FILES} >= GENERATED | {
        "jsonl",
        "nq",
        "nq_gold4",
        "nq_plain",
        "contract_nli",
        "fairytaleqa",
        "hotpotqa",
        "2wikimultihopqa",
        "qasper",
        "narrativeqa",
        "multinews",
        "musique",
        "qmsum",
        "quality",
        "gov_report",
        "kv_retrieval",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_keys_equal_the_constructor_s(file):
    config = load_choice(file)
    keys = list(config)
    assert keys[0] == "_target_"
    parameters = inspect.signature(get_class(config._target_)).parameters
    if all(
        parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values()
    ):  # fields of a base class first
        assert sorted(keys[1:]) == sorted(parameters)
    else:
        assert keys[1:] == list(parameters)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_header_and_a_comment_on_every_key(file):
    header, target, *lines = file.read_text(encoding="utf-8").partition("\ntasks: ")[0].splitlines()
    if target.startswith("defaults: "):
        target, *lines = lines
    assert re.match(r"# \w.*\.$", header) and target.startswith("_target_: ")
    assert all(re.match(r"\w+: \S.* +# \S", line) for line in lines), lines


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_values_are_valid_and_missing_files_are_reported(file):
    config = load(file)
    problems = instantiate(config).problems(list(SPLITS))
    named = [
        (split, name)
        for split in SPLITS
        if split in config
        for name in ([config[split]] if isinstance(config[split], (str, type(None))) else config[split])
    ]
    if file.stem in FILE_SUITES:  # a test split alone
        assert [problem.split(":")[0] for problem in problems[:2]] == ["dataset.train", "dataset.validation"]
        assert problems[2].startswith(
            f"dataset.task={config.task}: no file nowhere/{file.stem}/{config.task}.jsonl.gz: "
        )
        return
    if file.stem in MIXTURES:
        found = [one.partition(" is ")[0] for one in instantiate(config).problems(["train"])]
        assert found == [f"dataset.parts.{name}.train" for name in config.parts]
        return
    assert bool(named) == (file.stem not in GENERATED)
    if file.stem in BASES | {"ruler_qa_1", "ruler_qa_2"}:  # a task, or a file of questions, is missing
        assert [problem.split()[0] for problem in problems] == [
            "dataset.task" if file.stem in BASES else "dataset.documents"
        ]
        return
    assert len(problems) == len(named)
    assert all(problem.startswith(f"dataset.{split} is ") for problem, (split, _) in zip(problems, named))


def test_files_are_in_the_data_folder():
    dataset = instantiate(load(ROOT / "configs/dataset/nq_gold4.yaml", data="somewhere"))
    assert dataset.files == {split: f"somewhere/nq/{split}.jsonl.gz" for split in SPLITS}
    assert dataset.max_documents == 5


@pytest.mark.parametrize("stem", sorted(DEFAULTS))
def test_values_of_generated_data_sets_equal_the_defaults(stem):
    config = OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/dataset/{stem}.yaml"))
    parameters = inspect.signature(get_class(config.pop("_target_"))).parameters
    assert config == {name: parameter.default for name, parameter in parameters.items()}
