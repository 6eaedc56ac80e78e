"""scripts/export.py: one folder that gives the run's answers, in another process too, and describes itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT, page_blocks, run_block, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from breviary import load_reader
from breviary.backbones.tiny import TinyBackbone
from breviary.evaluation.results import source_of
from breviary.runs.checkpoints import WEIGHTS, read_metadata, save_weights
from breviary.runs.folders import load_config, write_config
from breviary.runs.importing import RECORD
from breviary.serving.export import ExportSource, dataset_source
from scripts import export
from tests.tiny import compose_tiny, evaluate_tiny

FORMS = {"comi": ["compressor=comi", "compressor.encoder_train=lora"], "comet": ["compressor=comet"]}
OPTIONS = {"weights": [], "backbone": ["--include-backbone"], "merged": ["--merge"]}
CODE = """import json, sys
sys.path.insert(0, {root!r})
import breviary
texts, questions = json.load(open("questions.json"))
json.dump(breviary.load_reader("outputs/comi/RUN").answer(texts, questions), open("answers.json", "w"))
{block}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: run folder}, trained and evaluated."""
    home = tmp_path_factory.mktemp("runs")
    found = {}
    for name, words in FORMS.items():
        found[name] = tiny_run(home, *words, f"reader={name}")
        words = [
            f"run={found[name]}",
            f"paths.outputs={home}/outputs",
            f"paths.cache={home}/cache",
            f"baselines=[{'full_context' if name == 'comi' else ''}]",
        ]
        evaluate_tiny(words)
    return found


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    """exported(name, form) -> the exported folder, made once per module."""
    home, made = tmp_path_factory.mktemp("exported"), {}

    def exported(name, form):
        if (name, form) not in made:
            made[name, form] = home / f"{name}-{form}"
            export.main([str(runs[name]), "--output", str(made[name, form]), *OPTIONS[form]])
        return made[name, form]

    return exported


def evaluated(run, name):
    """The run's own predictions, with their texts and questions."""
    [file] = run.glob(f"eval/*/{name}/predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    examples = {example.id: example for example in instantiate(load_config(run).dataset).examples("test")}
    answered = [examples[row["id"]] for row in rows]
    predictions = [row["prediction"] for row in rows]
    assert len(set(predictions)) > 1 and all(predictions)
    return predictions, [example.context for example in answered], [example.question for example in answered]


@pytest.mark.parametrize("name, form", [*(("comi", form) for form in OPTIONS), ("comet", "merged")])
def test_an_exported_folder_gives_the_answers_of_the_run(runs, folders, name, form):
    predictions, *batch = evaluated(runs[name], name)
    assert load_reader(folders(name, form)).answer(*batch) == predictions


def test_another_checkout_gives_the_same_answers_in_a_clean_process(runs, folders, tmp_path, monkeypatch):
    """The COMI section of docs/python.md: the second block answers there from the memory that the first saved here."""
    predictions, *batch = evaluated(runs["comi"], "comi")
    (tmp_path / "questions.json").write_text(json.dumps(batch))
    shutil.copytree(folders("comi", "backbone"), tmp_path / "outputs" / "comi" / "RUN")
    monkeypatch.chdir(tmp_path)
    names = run_block(page_blocks()["COMI-0"])
    for package in ("breviary", "comi", "ram", "comet", "data", "configs"):
        shutil.copytree(ROOT / package, tmp_path / "checkout" / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = CODE.format(root=str(tmp_path / "checkout"), block=page_blocks()["COMI-1"])
    clean = {key: os.environ[key] for key in ("PATH", "HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS") if key in os.environ}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "answers.json").read_text()) == predictions
    assert done.stdout.decode() == f"{names['questions'][0]} {names['answers'][0]}\n"


def test_eval_accepts_an_exported_folder_as_a_run(runs, folders, tmp_path):
    predictions, *_ = evaluated(runs["comi"], "comi")
    shutil.copytree(folders("comi", "merged"), tmp_path / "given")
    words = [f"run={tmp_path}/given", f"paths.cache={tmp_path}/cache", "baselines=[]"]
    evaluate_tiny(words)
    assert evaluated(tmp_path / "given", "comi")[0] == predictions


@pytest.mark.parametrize("form", OPTIONS)
def test_the_files_of_an_exported_folder(folders, form):
    folder = folders("comi", form)
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    own = {"config.yaml", "environment.json", "training.json", "README.md", WEIGHTS}
    own |= {"tokenizer.json", "tokenizer_config.json"}
    assert own == {name for name in names if not name.startswith("backbone/")}
    assert ("backbone/model.safetensors" in names) == (form != "weights")
    assert {Path(name).suffix for name in names} == {".yaml", ".json", ".md", ".safetensors"}
    texts = "".join((folder / name).read_text() for name in own - {WEIGHTS})
    assert str(folder.parent.parent) not in texts and str(Path.home()) not in texts
    with pytest.raises(ValueError, match="is an exported folder already"):
        ExportSource.open(str(folder), "best", "elsewhere")


def test_merged_weights_are_a_plain_model(runs, folders):
    """Adapters are merged: the plain model computes the decoder's logits."""
    folder = folders("comi", "merged")
    ids = AutoTokenizer.from_pretrained(folder)("The moon is white.", return_tensors="pt")["input_ids"]
    model, reader = AutoModelForCausalLM.from_pretrained(folder / "backbone"), load_reader(runs["comi"]).reader
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        states = reader.decoder.run(reader.decoder.embed(ids), range(len(reader.decoder)), positions)
        torch.testing.assert_close(
            model(ids).logits, reader.decoder.head(reader.decoder.norm(states)), rtol=1e-4, atol=1e-4
        )
        plain = TinyBackbone(layers=4).load()(ids).logits
    assert (model(ids).logits - plain).abs().max() > 0.1 and read_metadata(folder)["merged"]


def test_the_card_states_code_data_training_and_results(runs, folders):
    card = (folders("comi", "weights") / "README.md").read_text()
    front, text = card.split("---\n")[1:3]
    assert OmegaConf.create(front).license == "none: random weights, made in code"
    commit = json.loads((runs["comi"] / "environment.json").read_text())["commit"]
    for needed in (
        f"commit {commit}",
        "sha256 ",
        "Steps: 2 of 8 examples",
        "data.invented_facts.InventedFacts (generated)",
        "3 questions of the test split",
        "| comi (2 steps",
        "| full_context (untrained) | ",
        "Licence of the backbone: none",
    ):
        assert needed in text, needed
    assert len(re.findall(r"\d\.\d\d \[\d\.\d\d, \d+\.\d\d\]", text)) >= 2  # NLL with its interval, two rows


def test_dataset_source_names_every_file():
    cfg = compose_tiny(
        [
            "dataset=passages",
            "dataset.train=[/data/nq/train.jsonl,/data/hotpotqa/train.jsonl]",
            "dataset.test=/data/nq/test.jsonl",
        ]
    )
    assert dataset_source(cfg.dataset, "train") == "nq/train.jsonl, hotpotqa/train.jsonl"
    assert dataset_source(cfg.dataset, "test") == "nq/test.jsonl"
    assert source_of(cfg.dataset, "train") == "/data/nq/train.jsonl, /data/hotpotqa/train.jsonl"
    generated = compose_tiny(["dataset=invented_facts"]).dataset
    assert dataset_source(generated, "test") == "data.invented_facts.InventedFacts (generated)"
    assert source_of(generated, "test") == "data.invented_facts.InventedFacts"


def test_the_configuration_holds_no_path_of_this_machine(runs, tmp_path):
    """Also for a dataset of several files."""
    run = shutil.copytree(runs["comi"], tmp_path / "run")
    cfg = load_config(run)
    cfg.dataset = {
        "_target_": "data.passages.Passages",
        "train": [f"{cfg.paths.data}/nq/train.jsonl", "/elsewhere/own/texts.jsonl"],
        "validation": None,
        "test": f"{cfg.paths.data}/nq/test.jsonl",
    }
    write_config(run, cfg)
    export.main([str(run), "--output", str(tmp_path / "out")])
    stored = OmegaConf.to_container(OmegaConf.load(tmp_path / "out" / "config.yaml"), resolve=False)["dataset"]
    assert stored["train"] == ["${paths.data}/nq/train.jsonl", "own/texts.jsonl"]
    assert stored["test"] == "${paths.data}/nq/test.jsonl"


def test_the_code_of_the_card_runs(folders, tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"^```python\n(.*?)^```$", (folders("comi", "backbone") / "README.md").read_text(), re.M | re.S)
    assert len(code.splitlines()) <= 10 + 2 and "path/to/this/folder" in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace("path/to/this/folder", str(folders("comi", "backbone"))), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("What is the official metal") and lines[2].endswith("as keys and values")
    assert lines[0].endswith(lines[3]) and lines[1].endswith(lines[4])


def test_an_evaluation_of_another_checkpoint_is_not_on_the_card(runs, tmp_path):
    shutil.copytree(runs["comi"], tmp_path / "run")
    [checkpoint] = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    weights = {name: 2 * weight for name, weight in load_file(checkpoint / WEIGHTS).items()}
    save_weights(checkpoint, weights, read_metadata(checkpoint)["backbone"])
    export.main([str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--license", "mit"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated" in card and "Licence of the backbone: mit." in card


def test_the_card_of_imported_weights_names_their_source(runs, tmp_path):
    run = shutil.copytree(runs["comi"], tmp_path / "run")
    record = {"format": "comi", "source": str(tmp_path), "files": {"model.safetensors": "ab" * 32}}
    (run / RECORD).write_text(json.dumps(record))
    export.main([str(run), "--output", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "not trained here; imported from the authors' files, format comi: model.safetensors (sha256 abababababab)."
        in card
    )
    assert "Steps:" not in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "config.yaml").unlink(), "no run folder (no config.yaml in it"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no run folder with a complete checkpoint"),
        (lambda run: (run / "config.yaml").write_text("schema: 2\nname: x\n"), "missing: backbone, compressor, engine"),
        (
            lambda run: save_file(
                {},
                next(run.rglob(WEIGHTS)),
                metadata={"schema": "1", "backbone": json.dumps({"name": "other", "sha256": "0" * 64})},
            ),
            "checkpoint of backbone other",
        ),
    ],
)
def test_a_run_that_cannot_be_exported_raises_and_nothing_is_written(runs, tmp_path, capsys, damage, message):
    shutil.copytree(runs["comi"], tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        export.main([str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_weights_shared_with_an_encoder_are_not_merged(tmp_path, capsys):
    """The encoder of memory tokens uses the decoder's weights without adapters."""
    run = tiny_run(tmp_path, "compressor=icae", "compressor.memory_tokens=4")
    with pytest.raises(SystemExit):
        export.main([str(run), "--output", str(tmp_path / "out"), "--merge"])
    assert "--merge: the encoder of breviary.readers.memory_tokens.MemoryTokens uses" in capsys.readouterr().err
    export.main([str(run), "--output", str(tmp_path / "out"), "--include-backbone"])
    assert load_reader(tmp_path / "out").answer(["red"], ["Who?"]) == load_reader(run).answer(["red"], ["Who?"])


def test_an_existing_folder_is_not_overwritten(runs, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        export.main([str(runs["comi"]), "--output", str(tmp_path / "mine")])
    assert "exists already" in capsys.readouterr().err and (tmp_path / "mine").read_text() == "mine"
