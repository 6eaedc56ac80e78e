"""import_checkpoint.py: which keys become weights, the configuration of the run, and every kind of bad input.

tests/parity/test_released.py compares the numbers.
"""

import copy
import json

import pytest
import torch
from calling import ROW, call, write
from importing import load_trained_weights, run_import, save, save_shards
from released_forms import PublishedCOMI, save_backbone, state_of
from safetensors.torch import load_file

import eval as evaluation
from breviary.runs.folders import load_config
from breviary.runs.released import ReleasedFile
from scripts.import_checkpoint import FORMATS

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
