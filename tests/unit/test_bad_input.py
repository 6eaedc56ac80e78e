"""Wrong input: one clear error message per problem, all of a call at once, exit code 2, before any weight is loaded."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from calling import ROW, SMALL, call, jsonl, write
from omegaconf import OmegaConf
from transformers import LlamaConfig

import eval as evaluation
import train as training
from breviary.backbones.tiny import TinyBackbone, tiny_tokenizer
from breviary.contract import Example, Generation
from breviary.runs.checkpoints import save_trained
from breviary.studies.small_models import train_tokenizer
from scripts import reading_map as mapping
from tests.forms import representative_forms

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------ data


def test_bad_lines_are_reported_with_file_and_line(refused, tmp_path):
    rows = [ROW, "nothing", {"context": "c", "question": "q"}, {**ROW, "question": "  "}]
    [message] = refused(training, *jsonl(tmp_path, rows), *SMALL)
    assert message.splitlines()[:-1] == [
        f"dataset.train: 3 bad lines in {tmp_path}/train.jsonl",
        "  line 2: not JSON (Expecting value at column 1)",
        "  line 3: the field 'answers' is missing (fields: 'context', 'question')",
        "  line 4: 'question' is empty; it must hold a question",
    ]
    assert message.splitlines()[-1].startswith('Each line must be {"id"')


def test_problems_of_both_splits_and_the_configuration_are_reported_together(refused, tmp_path):
    train, validation = write(tmp_path / "train.jsonl", ["["]), write(tmp_path / "validation.jsonl", ["{}"])
    messages = refused(
        training, "compressor.ratio=0", "dataset=jsonl", f"dataset.train={train}", f"dataset.validation={validation}"
    )
    assert [message.splitlines()[0] for message in messages] == [
        "compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
        f"dataset.train: 1 bad line in {train}",
        f"dataset.validation: 1 bad line in {validation}",
    ]


def test_a_truncated_file(refused, tmp_path):
    whole = gzip.compress(json.dumps(ROW).encode() * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    [message] = refused(training, "dataset=jsonl", f"dataset.train={tmp_path}/cut.jsonl.gz", "train.eval_examples=0")
    assert message == (
        f"dataset.train: {tmp_path}/cut.jsonl.gz breaks off after 0 examples (Compressed file ended "
        "before the end-of-stream marker was reached); it must be complete UTF-8 text, gzipped if and "
        "only if its name ends in .gz"
    )


def test_examples_without_what_a_baseline_reads_are_refused(refused, tmp_path):
    rows = [{**ROW, "id": "a", "compressed_context": "blue"}, {**ROW, "id": "b"}]
    test = f"dataset.test={write(tmp_path / 'test.jsonl', rows)}"
    for name, lacks in (("gold", "mark no gold passage"), ("external", "have no compressed_context")):
        count, first = ("2", "a") if name == "gold" else ("1", "b")
        for entry, split, files in (
            (training, "train", jsonl(tmp_path, rows)),
            (evaluation, "test", ["dataset=jsonl", test, "baselines=[]"]),
        ):
            [message] = refused(entry, *files, f"compressor={name}")
            assert message.startswith(f"dataset {split}: {count} of 2 examples {lacks} (first id: '{first}')")


def test_errors_of_a_dataset_constructor_are_reported(refused, tmp_path, monkeypatch):
    (tmp_path / "own_dataset.py").write_text(
        "class OwnDataset:\n    def __init__(self, sort: str = 'none'):\n"
        "        raise ValueError(f'dataset.sort={sort}: allowed are new, old')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert refused(
        training,
        "dataset._target_=own_dataset.OwnDataset",
        "~dataset.facts",
        "~dataset.train_size",
        "~dataset.validation_size",
        "~dataset.test_size",
        "~dataset.seed",
        "compressor.ratio=0",
    ) == ["compressor.ratio=0: must be a whole number of at least 1, e.g. 4", "dataset.sort=none: allowed are new, old"]


@pytest.mark.parametrize("overrides", representative_forms().values(), ids=representative_forms().keys())
def test_a_batch_of_empty_contexts_has_no_slots(build, collate, overrides):
    batch = collate([Example(str(i), "", "What colour is the sky?", ("blue",)) for i in range(2)])
    reader = build(overrides)
    output = reader.loss(batch)
    assert torch.isfinite(output.nll).all() and output.slots.tolist() == [0, 0]
    output.nll.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in reader.parameters() if p.grad is not None)
    assert len(reader.answer(batch, Generation(max_new_tokens=2))) == 2


def test_empty_contexts_train_and_evaluate(monkeypatch, capsys, tmp_path):
    rows = [{**ROW, "context": "", "id": f"empty-{i}"} for i in range(4)] + [{**ROW, "id": "full"}]
    file = write(tmp_path / "some.jsonl", rows)
    files = [f"dataset.{split}={file}" for split in ("train", "validation", "test")]
    assert call(monkeypatch, tmp_path, training, *SMALL, "dataset=jsonl", *files) == 0, capsys.readouterr().err
    [run] = (tmp_path / "outputs" / "default").iterdir()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] > 0
    code = call(monkeypatch, tmp_path, evaluation, f"run={run}", "baselines=[full_context]")
    assert code == 0, capsys.readouterr().err
    for reader in ("comi", "full_context"):
        [predictions] = run.glob(f"eval/*/{reader}/predictions.jsonl")
        slots = {row["id"]: row["memory_slots"] for row in map(json.loads, predictions.read_text().splitlines())}
        assert slots.pop("full") > 0 and slots == {f"empty-{i}": 0 for i in range(4)}


# ------------------------------------------------------------------ lengths and processes


def long_context(words):
    return {**ROW, "context": "blue " * words}


def test_segments_longer_than_the_positions(refused, tmp_path):
    [message] = refused(training, *jsonl(tmp_path, [long_context(100)]), *SMALL, "backbone.positions=128")
    match = re.fullmatch(
        r"dataset train: the longest context of (\d+) tokens does not fit beside (\d+) further ones in the backbone's "
        r"128 positions \(at most (\d+) here\); set limits.max_context_tokens=(\d+) to cut contexts or "
        r"compressor.segment_size=(\d+)",
        message,
    )
    longest, others, most, cut, segment = map(int, match.groups())
    assert longest >= 200 and most == cut == segment == 128 - others


def test_more_slots_than_positions_at_the_input(refused, tmp_path):
    [message] = refused(
        training,
        *jsonl(tmp_path, [long_context(600)]),
        *SMALL,
        "backbone.positions=128",
        "compressor.ratio=2",
        "compressor.segment_size=64",
    )
    match = re.search(r"context of (\d+) tokens .* beside (\d+) further .* or compressor.ratio=(\d+)$", message)
    longest, others, ratio = map(int, match.groups())

    def slots(ratio):
        segments, rest = divmod(longest, 64)
        return segments * -(-64 // ratio) + -(-rest // ratio)

    assert slots(ratio) <= 128 - others < slots(ratio - 1)


def test_segments_longer_than_the_positions_of_a_separate_encoder(refused, tmp_path):
    path = backbone_folder(tmp_path / "short", positions=100)
    [message] = refused(training, *jsonl(tmp_path, [long_context(100)]), *SMALL, f"compressor.encoder={path}")
    match = re.search(r"beside (\d+) further ones .* or compressor.segment_size=(\d+)$", message)
    assert sum(map(int, match.groups())) == 100


def test_contexts_longer_than_the_positions_at_depth(refused, tmp_path):
    [message] = refused(
        training,
        *jsonl(tmp_path, [long_context(120)]),
        *SMALL,
        "backbone.positions=128",
        "compressor.join=depth",
        "compressor.segment_size=16",
        "compressor.ratio=16",
    )
    assert re.search(
        r"in the backbone's 128 positions \(at most \d+ here\); set limits.max_context_tokens=\d+ to cut "
        r"contexts$",
        message,
    )


def test_prompts_longer_than_the_positions(refused, tmp_path):
    rows = [{**ROW, "question": "blue " * 200}]
    [message] = refused(training, *jsonl(tmp_path, rows), *SMALL, "backbone.positions=128")
    assert re.fullmatch(
        r"dataset train: prefix, question and answer take up to \d+ tokens, the backbone has 128 "
        r"positions; shorten prompt.template or generation.max_new_tokens",
        message,
    )


def test_prompts_longer_than_the_positions_in_evaluation(refused, tmp_path):
    file = write(tmp_path / "test.jsonl", [{**ROW, "question": "blue " * 200}])
    [message] = refused(
        evaluation, "dataset=jsonl", f"dataset.test={file}", "backbone.positions=128", "compressor=full_context"
    )
    assert re.fullmatch(
        r"question and answer take up to \d+ tokens of the backbone's 128 positions; shorten "
        r"prompt.template, generation.max_new_tokens or compressor.slots",
        message,
    )


def test_more_processes_than_examples(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert refused(training, *jsonl(tmp_path, [ROW, {**ROW, "id": "b"}]), *SMALL, "engine=ddp") == [
        "3 processes for 2 examples: start at most 2, or raise the size of the train split"
    ]
    assert refused(evaluation, "compressor=full_context", "examples=2") == [
        "3 processes for 2 examples: start at most 2, or raise examples"
    ]
    assert refused(training, *SMALL) == ["engine=single with 3 processes: use engine=ddp, zero1, zero2, zero3 or fsdp"]


# ------------------------------------------------------------------ backbones and checkpoints


def backbone_folder(path, width=64, layers=4, vocabulary=512, positions=2048, weights=True, tokenizer=None):
    """A backbone folder that passes for complete until its weights are loaded."""
    path.mkdir()
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        intermediate_size=64,
        num_attention_heads=4,
        max_position_embeddings=positions,
    )
    config.save_pretrained(path)
    if weights:
        (path / "model.safetensors").write_bytes(b"")
        (tokenizer or tiny_tokenizer()).save_pretrained(path)
    return path


def test_a_backbone_folder_without_weights(refused, tmp_path):
    path = backbone_folder(tmp_path / "no_weights", weights=False)
    messages = refused(training, "backbone=smollm2_135m", f"backbone.path={path}", "compressor.encoder_layers=2")
    assert messages[0] == (
        f"backbone.path={path}: folder without weights; it needs one of model.safetensors, "
        "model.safetensors.index.json, pytorch_model.bin"
    )
    assert messages[1].startswith(f"backbone.path={path}: no tokenizer can be read (")


def test_a_backbone_folder_with_a_missing_shard(refused, tmp_path):
    path = backbone_folder(tmp_path / "shards", weights=False)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model-1.safetensors").write_bytes(b"")
    messages = refused(training, "backbone=smollm2_135m", f"backbone.path={path}", "compressor.encoder_layers=2")
    assert messages[0] == f"backbone.path={path}: weights are incomplete, model-2.safetensors is missing"


def test_a_folder_without_a_config(refused, tmp_path):
    assert refused(training, "backbone=smollm2_135m", f"backbone.path={tmp_path}") == [
        f"backbone.path={tmp_path}: no config.json in this folder; give a folder in Hugging Face format"
    ]


def test_an_encoder_of_another_width(refused, tmp_path):
    path = backbone_folder(tmp_path / "wide", width=128, layers=1, vocabulary=300)
    assert refused(training, *SMALL, f"compressor.encoder={path}") == [
        f"compressor.encoder_layers=2: must be from 1 to 1, the layers of compressor.encoder={path}",
        f"compressor.encoder={path}: its width 128 differs from the decoder's 64, which compressor.alignment=lsa "
        "cannot bridge; give an encoder of the same width, or compressor.alignment=linear_lsa (or linear)",
        f"compressor.encoder={path}: has embeddings for 300 tokens, but its tokenizer has 512; give the folder the "
        "tokenizer that the model was trained with",
    ]


def test_an_encoder_without_a_tokenizer(refused, tmp_path):
    path = backbone_folder(tmp_path / "no_tokenizer")
    for file in path.glob("tokenizer*"):
        file.unlink()
    [message] = refused(training, *SMALL, f"compressor.encoder={path}")
    assert message.startswith(f"compressor.encoder={path}: no tokenizer can be read (")


def test_an_encoder_with_another_tokenizer(refused, tmp_path):
    """It may produce more tokens for a text than the decoder's, and RAM needs the decoder's tokens."""
    path = backbone_folder(tmp_path / "bytes", vocabulary=258, tokenizer=train_tokenizer([], 258))
    long = jsonl(tmp_path, [long_context(100)])
    [message] = refused(
        training,
        *long,
        *SMALL,
        f"compressor.encoder={path}",
        "backbone.positions=160",
        "compressor.ratio=2",
        "compressor.segment_size=64",
    )
    match = re.search(
        r"longest context is (\d+) tokens of .* at most (\d+) fit .* limits.max_context_tokens=(\d+)", message
    )
    longest, most, cut = map(int, match.groups())
    assert longest > most >= 2 * cut > 0
    ram = ["compressor=ram", f"compressor.encoder={path}"]
    [message] = refused(training, *long, *SMALL, *ram)
    assert "set compressor.keep=none compressor.contrastive_weight=0" in message
    [message] = refused(mapping, *SMALL, *ram, "compressor.keep=none", "compressor.contrastive_weight=0")
    assert "uses another tokenizer" in message


@pytest.fixture
def trained_run(compose, tmp_path):
    """A run folder as train.py writes it, of a reader without trained weights on the tiny backbone with seed 0."""
    cfg = compose(["compressor=full_context", "decoder.train=frozen", "reader=full_context"])
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "checkpoint-2"
    save_trained(checkpoint, torch.nn.Module(), TinyBackbone(layers=4).fingerprint)
    (checkpoint / "trainer_state.json").write_text("{}")
    (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return run


def test_a_checkpoint_of_another_backbone(refused, trained_run):
    stored, here = (TinyBackbone(layers=4, seed=seed).fingerprint["sha256"][:12] for seed in (0, 1))
    message = (
        f"{trained_run}/checkpoints/checkpoint-2: checkpoint of backbone tiny_llama ({stored}), but the backbone "
        f"here is tiny_llama ({here}); set backbone accordingly, e.g. backbone.path"
    )
    changed = ["backbone.seed=1", "compressor=truncate", "compressor.ratio=0"]
    assert refused(evaluation, f"run={trained_run}", *changed) == [
        "compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
        f"run: {message}",
    ]
    another = ["compressor=full_context", "backbone.layers=4", "backbone.seed=1"]
    assert refused(training, *another, f"init_from={trained_run}") == [f"init_from: {message}"]
    assert refused(training, *another, f"resume={trained_run}") == [
        f"resume: {message} (resume takes never, auto or a run folder)"
    ]


def test_a_missing_run(refused, trained_run, tmp_path):
    missing = f"{tmp_path}/none: no such folder; RUN is a run folder that train.py printed, a folder of runs such as "
    for word in (f"run={tmp_path}/none", f"{tmp_path}/none"):
        [message] = refused(evaluation, word)
        assert message.startswith(f"run={missing}") and f"; {tmp_path} holds run; " in message
    found = refused(
        evaluation,
        f"run={trained_run}",
        f"compare=[{tmp_path}/none]",
        "checkpoint=bst",
        "examples=0",
        "baselines=[no_contxt]",
        "split=dev",
    )
    known = ", ".join(sorted(file.stem for file in (ROOT / "configs" / "compressor").glob("*.yaml")))
    assert found[0] == "checkpoint=bst: allowed are best, last"
    assert found[1] == "examples=0: must be at least 1, or null for all"
    assert found[2].startswith(f"compare={missing}")
    assert found[3] == f"baselines: no compressor no_contxt; the nearest right one is no_context; there are: {known}"


def test_a_section_in_place_of_a_list(refused):
    assert refused(evaluation, "variants={compressor.ratio:8}") == [
        "variants={compressor.ratio:8}: must be a list, e.g. 'variants=[{compressor.ratio: 8}]'"
    ]
    assert refused(evaluation, "compare={a: 1}") == ["compare={a: 1}: must be a list, e.g. 'compare=[]'"]


def test_invalid_variants(refused, trained_run):
    words = "[{compressor.ratoi: 8, dataset.facts: 2}, {compressor.ratio: 0}, 8, {}, {compressor.ratio: many}]"
    comi = ["compressor=comi", "compressor.encoder_layers=2"]
    assert refused(evaluation, f"run={trained_run}", *comi, f"variants={words}") == [
        "variants: compressor.ratoi: unknown key; the nearest right one is compressor.ratio",
        "variants: dataset.facts: a variant changes keys of compressor and generation, e.g. {compressor.ratio: 8}, "
        "{compressor: snapkv}",
        "variants: 8 names no change; each is like {compressor.ratio: 8}",
        "variants: {} names no change; each is like {compressor.ratio: 8}",
        "compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
        "compressor.ratio=many: must be a whole number or null, e.g. 4",
    ]


def test_overrides_of_keys_that_a_run_does_not_have(refused, trained_run):
    assert refused(evaluation, f"run={trained_run}", "+sed=1", "experiment=facts") == [
        "sed: no key of a run's configuration; the nearest right one is seed",
        "experiment: no key of a run's configuration",
    ]


def test_a_damaged_checkpoint(refused, trained_run):
    weights = trained_run / "checkpoints" / "checkpoint-2" / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    [message] = refused(evaluation, f"run={trained_run}")
    assert message.startswith(f"run: {weights}: damaged checkpoint (")
