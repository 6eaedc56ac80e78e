"""import_checkpoint.py: which keys become weights, the configuration of the run, and every kind of bad input.

tests/parity/test_released.py compares the numbers.
"""

import copy
import json
import shutil

import pytest
import torch
from calling import ROW, call, write
from released_forms import WIDTH, PublishedCoMeT, PublishedCOMI, PublishedRAM, plain_model, save_backbone, state_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import eval as evaluation
from breviary.runs.checkpoints import WEIGHTS, best_checkpoint
from breviary.runs.folders import load_config
from breviary.runs.released import ReleasedFile
from scripts.import_checkpoint import FORMATS, main


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return plain_model("qwen2"), save_backbone(plain_model("qwen2"), tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return plain_model("qwen3"), save_backbone(plain_model("qwen3"), tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def comi(qwen2):
    return state_of(PublishedCOMI(qwen2[0]))


@pytest.fixture(scope="module")
def ram(qwen3):
    return state_of(PublishedRAM(qwen3[0]))


@pytest.fixture
def comet(qwen3, tmp_path):
    return PublishedCoMeT(qwen3[0]).save(tmp_path / "comet")


def save(tensors, file):
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def run_import(name, source, backbone, tmp_path, *options):
    """Runs the script; returns the run folder."""
    output = tmp_path / "runs" / "imported"
    main(["--format", name, "--source", str(source), "--backbone", str(backbone), "--output", str(output), *options])
    return output


def load_trained_weights(folder):
    return load_file(best_checkpoint(folder) / WEIGHTS)


# ------------------------------------------------------------------ the run folder


def test_every_comi_key_is_a_weight_or_listed_as_unused(comi, qwen2, tmp_path, capsys):
    folder = run_import("comi", save(comi, tmp_path / "comi.safetensors"), qwen2[1], tmp_path, "--ratio", "8")
    record, weights = json.loads((folder / "imported.json").read_text()), load_trained_weights(folder)
    assert {key.split(".")[0] for key in record["not_weights"]} == {
        "alpha_select",
        "beta_select",
        "alpha_merge",
        "beta_merge",
        "encoder",
        "memory_fusion_layer",
        "semantic_alignment_layer",
    }
    assert len(record["files"]["comi.safetensors"]) == 64 and record["source"] == str(tmp_path / "comi.safetensors")
    lora = {name for name in weights if name.startswith("decoder.")}
    frozen = {key for key in comi if key.startswith("decoder.") and "lora_" not in key}
    assert len(weights) + len(frozen) + len(record["not_weights"]) == len(comi)
    assert len(lora) == 4 * 4 * 2 and all("lora_" in name for name in lora)
    assert torch.equal(
        weights["decoder.layers.1.self_attn.v_proj.lora_B.default.weight"],
        comi["decoder.base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"],
    )
    assert torch.equal(
        weights["compressor.context_encoder.lsa.final_norm.weight"], comi["memory_fusion_layer.model.norm.weight"]
    )
    output = capsys.readouterr().out
    assert "memory_fusion_layer.model.embed_tokens.weight: the input of the alignment is vectors, not tokens" in output
    assert "semantic_alignment_layer.bias and 1 more: not part of --alignment lsa" in output
    assert f"ready: {folder}" in output


def test_settings_missing_in_the_file_are_in_the_run_config(comi, qwen2, tmp_path):
    folder = run_import("comi", save(comi, tmp_path / "comi.safetensors"), qwen2[1], tmp_path, "--quirks")
    cfg = load_config(folder)
    assert cfg.backbone.path == qwen2[1] and cfg.backbone.dtype == "float32" and cfg.reader == "comi"
    assert cfg.decoder == {
        "train": "lora",
        "lora_rank": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_targets": ["k_proj", "o_proj", "q_proj", "v_proj"],
    }
    expected = {
        "ratio": 16,
        "segment_size": 10000,
        "alignment": "lsa",
        "encoder_layers": 2,
        "lsa_layers": 1,
        "quirks": True,
        "alpha": 1.0,
        "beta": 1.0,
        "learned_weights": "none",
        "join": "input",
        "final_norm": "pretrained",
    }
    assert {key: cfg.compressor[key] for key in expected} == expected
    assert cfg.prompt.template == "{question}" and not cfg.prompt.bos and cfg.generation.repetition_penalty == 1.3
    assert {"commit", "versions"} <= json.loads((folder / "environment.json").read_text()).keys()
    assert (folder / "finished").is_file() and not [p for p in folder.parent.iterdir() if p != folder]


def test_learned_scalars_and_linear_alignment(comi, qwen2, tmp_path):
    changed = comi | {"alpha_select": torch.tensor(0.75), "beta_merge": torch.tensor(1.5)}
    folder = run_import(
        "comi", save(changed, tmp_path / "comi.safetensors"), qwen2[1], tmp_path, "--alignment", "linear"
    )
    cfg, weights = load_config(folder).compressor, load_trained_weights(folder)
    assert (cfg.alpha, cfg.beta, cfg.learned_weights) == (0.75, 1.0, "merge")
    assert weights["compressor.gain.merge_alpha"].tolist() == [1.0]
    assert weights["compressor.gain.merge_beta"].tolist() == [1.5]
    assert torch.equal(weights["compressor.context_encoder.linear.bias"], comi["semantic_alignment_layer.bias"])
    assert not [name for name in weights if ".lsa." in name]


@pytest.mark.parametrize(
    "changed, mode",
    [
        (None, "attention"),
        ("decoder.model.layers.0.mlp.up_proj.weight", "full"),
        ("decoder.model.layers.3.self_attn.q_proj.bias", "attention"),
    ],
)
def test_frozen_weights_are_omitted_only_if_equal_to_the_backbone(qwen2, tmp_path, changed, mode):
    tensors = state_of(PublishedCOMI(qwen2[0], lora=False))
    if changed:
        tensors[changed].view(-1)[3] += 1e-6
    folder = run_import("comi", save(tensors, tmp_path / "comi.safetensors"), qwen2[1], tmp_path)
    weights = {name: value for name, value in load_trained_weights(folder).items() if name.startswith("decoder.")}
    assert load_config(folder).decoder.train == mode
    name = changed and changed.replace("decoder.model", "decoder")
    assert (name in weights) == (changed is not None) and ("decoder.embed_tokens.weight" in weights) == (mode == "full")
    assert all(
        torch.equal(value, tensors[name.replace("decoder.", "decoder.model.", 1)])
        for name, value in weights.items()
        if "layers" in name
    )


def save_shards(tensors, folder, kind):
    folder.mkdir()
    keys = sorted(tensors)
    halves = {f"part-{i}.{kind}": keys[i::2] for i in range(2)}
    for file, half in halves.items():
        part = {key: tensors[key] for key in half}
        torch.save(part, folder / file) if kind == "bin" else save_file(part, folder / file)
    name = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind]
    weight_map = {key: file for file, half in halves.items() for key in half}
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_ram_from_every_file_type(ram, qwen3, tmp_path):
    torch.save(ram, tmp_path / "pytorch_model.bin")
    torch.save(ram, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    sources = [
        save(ram, tmp_path / "ram.safetensors"),
        tmp_path,
        tmp_path / "old.pt",
        save_shards(ram, tmp_path / "a", "bin"),
        save_shards(ram, tmp_path / "b", "safetensors"),
    ]
    for source in sources:
        file = ReleasedFile(source)
        assert file.shapes == {key: tuple(value.shape) for key, value in ram.items()}
        assert all(torch.equal(file.tensor(key), value) for key, value in ram.items())
    folder = run_import("ram", sources[-1], qwen3[1], tmp_path)
    weights = load_trained_weights(folder)
    assert load_config(folder).decoder.train == "qkv" and load_config(folder).compressor.segment_size == 50
    assert torch.equal(weights["compressor.context_encoder.linear.weight"], ram["semantic_alignment_layer.weight"])
    assert torch.equal(
        weights["compressor.context_encoder.encoder.embed_tokens.weight"], ram["llm_encoder.model.embed_tokens.weight"]
    )
    assert len(json.loads((folder / "imported.json").read_text())["files"]) == 2


def test_bfloat16_checkpoints_keep_their_dtype(ram, qwen3, tmp_path):
    backbone = save_backbone(copy.deepcopy(qwen3[0]).bfloat16(), tmp_path / "backbone")
    halves = {key: value.bfloat16() for key, value in ram.items()}
    folder = run_import("ram", save(halves, tmp_path / "ram.safetensors"), backbone, tmp_path)
    assert load_config(folder).backbone.dtype == "bfloat16" and load_config(folder).decoder.train == "qkv"
    weights = load_trained_weights(folder)
    assert torch.equal(
        weights["decoder.layers.0.self_attn.k_proj.weight"],
        halves["llm.model.layers.0.self_attn.k_proj.weight"].float(),
    )


def test_new_token_rows_of_comet(comet, qwen3, tmp_path):
    folder = run_import("comet", comet, qwen3[1], tmp_path)
    weights, released = load_trained_weights(folder), load_file(comet / "model.safetensors")
    config, table = json.loads((comet / "config.json").read_text()), released["model.embed_tokens.weight"]
    vocabulary = qwen3[0].config.vocab_size
    assert torch.equal(weights["memory.tokens.weight"][0], table[config["temp_beacon_id"]])
    assert torch.equal(weights["memory.tokens.weight"][1:], table[config["global_beacon_ids"]])
    assert torch.equal(weights["decoder.embed_tokens.weight"], table[:vocabulary])
    assert torch.equal(weights["memory.new_token_head.weight"], released["lm_head.weight"][vocabulary:])
    cfg = load_config(folder)
    assert cfg.decoder.train == "full" and not cfg.compressor.quirks
    expected = {
        "chunk_size": 16,
        "stride": 4,
        "queue_budget": 8,
        "global_slots": 3,
        "adapter_rank": 8,
        "new_token_logits": 6,
    }
    assert {key: cfg.compressor[key] for key in expected} == expected


@pytest.mark.parametrize("name", FORMATS)
def test_eval_runs_on_an_imported_run(name, comi, ram, comet, qwen2, qwen3, monkeypatch, tmp_path, capsys):
    source = comet if name == "comet" else save({"comi": comi, "ram": ram}[name], tmp_path / "m.safetensors")
    folder = run_import(name, source, (qwen2 if name == "comi" else qwen3)[1], tmp_path)
    rows = write(tmp_path / "test.jsonl", [{**ROW, "id": str(i)} for i in range(3)])
    words = [f"run={folder}", "dataset=jsonl", f"dataset.test={rows}", "generation.max_new_tokens=2", "baselines=[]"]
    assert call(monkeypatch, tmp_path, evaluation, *words, "compressor.quirks=true") == 0, capsys.readouterr().err
    [result] = [json.loads(file.read_text()) for file in folder.glob(f"eval/*/{name}/results.json")]
    assert result["n"] == 3 and result["config"]["compressor"]["quirks"] and result["run"] == str(folder)


# ------------------------------------------------------------------ bad input


def import_error(capsys, tmp_path, name, source, backbone, *options):
    """The error message of an import that fails with exit code 2 and writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as exit:
        run_import(name, source, backbone, tmp_path, *options)
    assert exit.value.code == 2 and sorted(tmp_path.rglob("*")) == before
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def test_a_checkpoint_of_another_method_names_its_format(comi, ram, comet, qwen2, qwen3, tmp_path, capsys):
    sources = {
        "comi": save(comi, tmp_path / "comi.safetensors"),
        "ram": save(ram, tmp_path / "ram.safetensors"),
        "comet": comet,
    }
    titles = {"comi": "COMI", "ram": "RAM", "comet": "CoMeT"}
    for name in FORMATS:
        for other, source in sources.items():
            if name != other:
                message = import_error(capsys, tmp_path, name, source, qwen3[1])
                assert f"a checkpoint of {titles[other]}, not of {titles[name]}; use --format {other}" in message


def test_a_plain_model_is_rejected(qwen3, tmp_path, capsys):
    for name in FORMATS:
        message = import_error(capsys, tmp_path, name, qwen3[1], qwen3[1])
        assert "keys that no checkpoint of" in message and "\n  model.layers.0.input_layernorm.weight\n" in message


def test_a_different_backbone_is_rejected(comi, comet, qwen3, tmp_path, capsys):
    narrow = save_backbone(plain_model("qwen2", width=32), tmp_path / "narrow")
    source = save(comi, tmp_path / "comi.safetensors")
    message = import_error(capsys, tmp_path, "comi", source, narrow)
    assert (
        f"its decoder has 512 tokens, width {WIDTH} and 4 layers, {narrow} has 512, 32 and 4; give the model" in message
    )
    shallow = save_backbone(plain_model("qwen3", layers=3), tmp_path / "shallow")
    assert "4 layers, " in import_error(capsys, tmp_path, "comet", comet, shallow)
    message = import_error(capsys, tmp_path, "comi", source, qwen3[1])  # same sizes, no biases, different norms
    assert "unknown: decoder.base_model.model.model.layers.0.self_attn.k_proj.base_layer.bias" in message


def test_adapters_on_different_frozen_weights_are_rejected(comi, qwen2, tmp_path, capsys):
    other = AutoModelForCausalLM.from_pretrained(qwen2[1])
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    other = save_backbone(other, tmp_path / "other")
    message = import_error(capsys, tmp_path, "comi", save(comi, tmp_path / "c.safetensors"), other)
    assert "frozen weights differ from those of" in message
    assert message.count("\n  ") == 1 and "\n  decoder.base_model.model.model.layers.1.mlp.up_proj.weight" in message


CHANGES = {
    "missing": ({"llm.model.layers.2.mlp.up_proj.weight": None}, "missing: llm.model.layers.2.mlp.up_proj.weight"),
    "no-embedding": ({"llm.model.embed_tokens.weight": None}, "missing: llm.model.embed_tokens.weight"),
    "unknown": ({"llm.model.layers.0.bias": torch.ones(2)}, "unknown: llm.model.layers.0.bias (the reader has no "),
    "other-key": ({"fusion": torch.ones(2)}, "keys that no checkpoint of RAM has:\n  fusion"),
    "misshapen": (
        {"semantic_alignment_layer.bias": torch.ones(3)},
        f"shape of semantic_alignment_layer.bias: (3,) in the file, ({WIDTH},) in the reader",
    ),
    "not-finite": (
        {"semantic_alignment_layer.bias": torch.full((WIDTH,), torch.nan)},
        "contains NaN or infinite values",
    ),
    "untied": (
        {"llm.lm_head.weight": torch.ones(512, WIDTH)},
        "which are one weight in the backbone (tie_word_embeddings)",
    ),
    "no-encoder": (
        {"llm_encoder.model": None, "llm_encoder.lm_head": None},
        "compressor.encoder_layers=0: must be from 1",
    ),
}


@pytest.mark.parametrize("changes, error", CHANGES.values(), ids=CHANGES)
def test_keys_that_do_not_fit(ram, qwen3, tmp_path, capsys, changes, error):
    removed = tuple(key for key, value in changes.items() if value is None)
    tensors = {key: value for key, value in ram.items() if not key.startswith(removed)} if removed else dict(ram)
    tensors |= {key: value for key, value in changes.items() if value is not None}
    assert error in import_error(capsys, tmp_path, "ram", save(tensors, tmp_path / "ram.safetensors"), qwen3[1])


class WritesFile:
    """Unpickling an object of this class would write a file."""

    def __reduce__(self):
        return open, ("written", "w")


def test_damaged_files(ram, qwen3, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(ram, tmp_path / "whole.bin")
    torch.save({"key": WritesFile()}, tmp_path / "objects.bin")
    torch.save({"state": {"key": torch.ones(1)}}, tmp_path / "nested.bin")
    save(ram, tmp_path / "whole.safetensors")
    for kind in ("bin", "safetensors"):
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"mixed.{kind}").write_bytes(content[7:])
        (tmp_path / f"empty.{kind}").touch()
    for file in ("cut", "mixed", "empty"):
        for kind in ("bin", "safetensors"):
            message = import_error(capsys, tmp_path, "ram", tmp_path / f"{file}.{kind}", qwen3[1])
            assert "cannot be read as tensors" in message
    assert "other objects, which are never loaded" in import_error(
        capsys, tmp_path, "ram", tmp_path / "objects.bin", qwen3[1]
    )
    assert not (tmp_path / "written").exists()
    assert "not a plain state dict of tensors" in import_error(
        capsys, tmp_path, "ram", tmp_path / "nested.bin", qwen3[1]
    )


def test_incomplete_folders(comet, ram, qwen3, tmp_path, capsys):
    incomplete = save_shards(ram, tmp_path / "shards", "bin")
    (incomplete / "part-1.bin").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.txt").touch()
    errors = {
        incomplete: "missing shards: part-1.bin",
        empty: "no weights in this folder; it needs model.safetensors",
        tmp_path / "missing": "no such file or folder",
        tmp_path / "notes.txt": "not a checkpoint; give a .safetensors",
    }
    for source, error in errors.items():
        assert error in import_error(capsys, tmp_path, "ram", source, qwen3[1])
    config = json.loads((comet / "config.json").read_text())
    changes = {
        "temp_beacon_stride must be an integer": {"temp_beacon_stride": None},
        "global_beacon_ids must be a list of integers": {"global_beacon_ids": 3},
        "name row 518 of an embedding matrix of 518 rows": {"temp_beacon_id": 518},
        "num_attention_heads=2, but ": {"num_attention_heads": 2},
        "rope_parameters=": {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        "compressor.chunk_size=18: must be a multiple": {"chunk_size": 18},
    }
    for error, change in changes.items():
        (comet / "config.json").write_text(json.dumps(config | change))
        assert error in import_error(capsys, tmp_path, "comet", comet, qwen3[1])
    (comet / "config.json").write_text("{")
    assert "not valid JSON" in import_error(capsys, tmp_path, "comet", comet, qwen3[1])
    (comet / "config.json").unlink()
    assert "config.json: no such file; it contains sizes" in import_error(capsys, tmp_path, "comet", comet, qwen3[1])


def test_options_that_do_not_apply(comi, comet, qwen2, qwen3, tmp_path, capsys):
    source = save(comi, tmp_path / "comi.safetensors")
    assert "--ratio 0: must be above 0, e.g. 16" in import_error(
        capsys, tmp_path, "comi", source, qwen2[1], "--ratio", "0"
    )
    message = import_error(capsys, tmp_path, "comet", comet, qwen3[1], "--ratio", "4", "--alignment", "lsa")
    assert "--ratio: not applicable to this file of --format comet" in message
    assert "--alignment: not applicable to this file" in message
    plain = save(state_of(PublishedCOMI(qwen2[0], lora=False)), tmp_path / "plain.safetensors")
    assert "--lora-alpha: not applicable to" in import_error(
        capsys, tmp_path, "comi", plain, qwen2[1], "--lora-alpha", "8"
    )
    no_config = tmp_path / "no_config"
    shutil.copytree(qwen2[1], no_config)
    (no_config / "config.json").unlink()
    assert "no config.json in this folder" in import_error(capsys, tmp_path, "comi", source, no_config)
    assert "no such folder" in import_error(capsys, tmp_path, "comi", source, "./missing")
    existing = tmp_path / "runs" / "imported"
    existing.mkdir(parents=True)
    (existing / "file").touch()
    assert "already exists" in import_error(capsys, tmp_path, "comi", source, qwen2[1])
