"""scripts/import_checkpoint.py refuses files, folders and options that do not fit."""

import json
import shutil

import pytest
import torch
from importing import run_import, save, save_shards
from released_forms import WIDTH, PublishedCOMI, plain_model, save_backbone, state_of
from transformers import AutoModelForCausalLM

from scripts.import_checkpoint import FORMATS

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
