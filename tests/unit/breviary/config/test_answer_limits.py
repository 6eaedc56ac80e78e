"""Answer limits and stop rules: those of the data set's benchmark, and references that they cut."""

import json

import pytest
from omegaconf import OmegaConf

from breviary.backbones.tiny import tiny_tokenizer
from breviary.config.answer_limits import answer_notes
from breviary.config.compose import compose_config
from breviary.config.defaults import fill_defaults, release_defaults
from breviary.config.keys import CONFIGS, validate_keys
from breviary.contract import Example
from breviary.evaluation.resolve import compose_evaluation
from breviary.runtime.markup import QUESTION_TEMPLATE
from data.prompts import Prompt
from data.tokenised import tokenise_split
from tests.tiny import evaluate_tiny

# As the benchmarks of configs/dataset specify (LongBench, Lost in the Middle, SCROLLS).
BENCHMARKS = {
    "nq": (100, ["\n"]),
    "nq_gold4": (100, ["\n"]),
    "nq_plain": (100, ["\n"]),
    "kv_retrieval": (100, []),
    "hotpotqa": (32, []),
    "2wikimultihopqa": (32, []),
    "musique": (32, []),
    "narrativeqa": (128, []),
    "fairytaleqa": (128, []),
    "qasper": (128, []),
    "gov_report": (512, []),
    "multinews": (512, []),
    "qmsum": (512, []),
    "contract_nli": (256, ["\n"]),
    "quality": (256, ["\n"]),
}
BENCHMARKS |= {file.stem: (512, []) for file in (CONFIGS / "dataset").glob("scrolls*.yaml")}  # of CoMeT's code
BENCHMARKS |= {file.stem: (128, []) for file in (CONFIGS / "dataset").glob("ruler*.yaml")}
BENCHMARKS |= {"ruler_vt": (30, []), "ruler_cwe": (120, []), "ruler_fwe": (50, [])}
BENCHMARKS |= {"ruler_qa_1": (32, []), "ruler_qa_2": (32, []), "key_values": (100, []), "helmet_json_kv": (100, [])}
BENCHMARKS |= {file.stem: (20, []) for file in (CONFIGS / "dataset").glob("babilong*.yaml")}
BENCHMARKS |= {"longbench_v1": (32, []), "longbench_v2": (128, []), "zero_scrolls": (128, []), "helmet": (20, [])}
BENCHMARKS |= {"infinitebench": (40, []), "scbench": (40, [])}  # of the task that each YAML chooses
BENCHMARKS |= {"pwc": (512, []), "chatml": (512, []), "ram_nq": (100, ["\n"]), "qa_mixture": (100, ["\n"])}
BENCHMARKS |= {"pwc_texts": (560, []), "qa_texts": (3200, [])}  # a context is restored whole
DEFAULT = (16, ["\n"])  # of data sets without a benchmark
# An experiment's own limits; they do not follow the data set.
EXPERIMENTS = {"nq_small": DEFAULT, "ram_small": DEFAULT, "comi_ablation": DEFAULT, "ram_recall": DEFAULT}
EXPERIMENTS |= {"comet_documents": DEFAULT, "comet_fairytaleqa": (24, ["\n"]), "comet_qmsum": (128, ["\n"])}
EXPERIMENTS |= {"comet_contract_nli": (8, ["\n"]), "comet_nq": (32, ["\n"]), "ram_nq": (100, []), "comi_nq": (20, [])}
EXPERIMENTS |= {"comi_multinews": (512, []), "ram_hotpotqa": (32, []), "reconstruct_small": (300, [])}


def limits(words, config="train"):
    generation = validate_keys(compose_config(config, words))[0].generation
    return generation.max_new_tokens, list(generation.stop)


@pytest.mark.parametrize("file", sorted((CONFIGS / "dataset").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_data_set_has_the_limits_of_its_benchmark(file):
    assert limits([f"dataset={file.stem}"]) == BENCHMARKS.get(file.stem, DEFAULT)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_keeps_its_limits(name):
    assert limits([f"experiment={name}"]) == EXPERIMENTS[name]


@pytest.mark.parametrize("section", ["dataset", "generation"])
def test_the_command_line_overrides_the_limits(section):
    words = ["dataset=qmsum", f"{section}.max_new_tokens=7", f"{section}.stop=[x]"]
    assert limits(words) == (7, ["x"])
    assert limits(["experiment=nq_small", "generation.max_new_tokens=7"]) == (7, ["\n"])


@pytest.mark.parametrize(
    "trained, words, expected",
    [
        (["dataset=nq"], [], (100, ["\n"])),
        (["dataset=nq"], ["dataset=qmsum"], (512, [])),
        (["dataset=nq"], ["dataset=qmsum", "generation.stop=[x]"], (512, ["x"])),
        (["dataset=nq"], ["dataset.stop=[x]"], (100, ["x"])),
        (["dataset=nq", "generation.max_new_tokens=9"], ["dataset=qmsum"], (9, ["\n"])),
        (["experiment=nq_small"], ["dataset=qmsum"], (16, ["\n"])),
        ([], ["dataset=qmsum"], (512, [])),
    ],
)
def test_limits_of_another_data_set_than_the_run_was_trained_on(tmp_path, trained, words, expected):
    OmegaConf.save(validate_keys(compose_config("train", trained))[0], tmp_path / "config.yaml")
    generation = validate_keys(compose_evaluation([f"run={tmp_path}", *words]))[0].generation
    assert (generation.max_new_tokens, list(generation.stop)) == expected


# ------------------------------------------------------------------ prompt and truncation of the data set

OWN = ["dataset=jsonl", "++dataset.instruction=Read.", "++dataset.template='{question}!'", "++dataset.chat=true"]


def texts(cfg):
    cfg = fill(cfg)
    return cfg.prompt.instruction, cfg.prompt.template, cfg.prompt.chat, cfg.prompt.answer_template


def fill(cfg):
    cfg = cfg.copy()
    fill_defaults(cfg)
    return cfg


def test_a_data_set_has_its_own_prompt_and_truncation():
    default = ("", QUESTION_TEMPLATE, False, " {answer}")
    assert texts(compose_config("train", [])) == default
    assert texts(compose_config("train", OWN)) == ("Read.", "{question}!", True, "{answer}")
    assert texts(compose_config("train", [*OWN, "prompt.chat=false"])) == ("Read.", "{question}!", False, " {answer}")
    assert texts(compose_config("train", [*OWN, "prompt.instruction=''"]))[0] == ""
    cut = [fill(compose_config("train", words)).limits.truncation for words in ([], ["++dataset.truncation=head"])]
    assert cut == ["middle", "head"]


@pytest.mark.parametrize(
    "trained, words, expected",
    [
        ([], [], ("", QUESTION_TEMPLATE, False, " {answer}")),
        ([], OWN, ("Read.", "{question}!", True, "{answer}")),
        (["prompt.instruction=Look."], OWN, ("Look.", QUESTION_TEMPLATE, False, " {answer}")),  # set by hand
        (OWN, ["dataset=nq"], ("", QUESTION_TEMPLATE, False, " {answer}")),
        (OWN, [], ("Read.", "{question}!", True, "{answer}")),
    ],
)
def test_a_run_is_evaluated_with_the_prompt_of_the_data_set(trained, words, expected):
    run, keys = fill(compose_config("train", trained)), [word.lstrip("+").partition("=")[0] for word in words]
    release_defaults(run, keys)
    run.dataset = compose_config("train", words).dataset if words else run.dataset
    assert texts(run) == expected


def test_the_keys_of_a_task_fill_those_of_its_data_set():
    tasks = {"one": {"template": "1 {question}", "stop": []}, "two": {"template": "2 {question}"}}
    cfg = compose_config("train", [])
    cfg.dataset = OmegaConf.create({"task": "one", "template": None, "stop": ["."], "tasks": tasks})
    filled = fill(cfg)
    assert filled.dataset == {"task": "one", "template": "1 {question}", "stop": ["."], "tasks": None}
    assert filled.prompt.template == "1 {question}" and filled.generation.stop == ["."]
    cfg.dataset.task = "three"
    assert fill(cfg).dataset.tasks == tasks  # reported by the data set


# ------------------------------------------------------------------ references

SUMMARY = "The council met on Monday and agreed to build a harbour.\nIt refused to pay for a bridge."


def notes(answers, **generation):
    cfg = validate_keys(compose_config("train", []))[0]
    cfg.generation.update(generation)
    examples = [Example(str(n), "text", "What?", texts) for n, texts in enumerate(answers)]
    return answer_notes(tokenise_split(examples, tiny_tokenizer(), Prompt(), None, None), cfg, False)


def test_references_that_would_be_cut_are_counted():
    tokens = len(Prompt().answer(SUMMARY, tiny_tokenizer()))
    assert notes([(SUMMARY,), ("Monday", SUMMARY)]) == [
        f"2 of 3 references are longer than generation.max_new_tokens=16 tokens and would be cut; "
        f"generation.max_new_tokens={tokens} would suffice",
        "2 of 3 references contain one of generation.stop=['\\n'], where an answer ends; "
        '"generation.stop=[]" waits for the end token',
    ]
    assert notes([(SUMMARY,)], max_new_tokens=tokens - 1, stop=[]) == []  # complete without the end token
    assert len(notes([(SUMMARY,)], max_new_tokens=tokens - 2, stop=[])) == 1


def test_a_stop_string_after_the_reference_cuts_nothing_and_one_of_the_template_cuts_all():
    assert notes([("yes\n",)]) == []
    assert notes([("yes",)], stop=[" "])[0].startswith("1 of 1 references contain one of generation.stop=[' ']")


def test_references_shorter_than_the_shortest_answer_are_counted():
    [note] = notes([("yes",), (SUMMARY,)], max_new_tokens=100, min_new_tokens=20, stop=[])
    assert note.startswith("1 of 2 references are shorter than generation.min_new_tokens=20 tokens")


def test_the_count_is_printed_before_an_evaluation(tmp_path, capsys):
    row = {"context": "The council of Velm met.", "question": "Summarise the meeting.", "answers": [SUMMARY]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    words = ["compressor=full_context", "reader=full_context", "baselines=[]", "dataset=jsonl"]
    paths = [f"paths.{name}={tmp_path}/{name}" for name in ("outputs", "cache")]
    evaluate_tiny([*words, *paths, f"dataset.test={tmp_path}/s.jsonl", "generation.max_new_tokens=4"])
    printed = capsys.readouterr().out
    assert printed.index("1 of 1 references are longer than generation.max_new_tokens=4 tokens") < printed.index("1/1")
    assert "1 of 1 references contain one of generation.stop=['\\n']" in printed
