"""import_checkpoint.py: every key is used or listed, what the run says, and every kind of bad input; numbers are
compared in tests/parity/test_released.py."""

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


def saved(tensors, file):
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def run(name, source, backbone, tmp_path, *words):
    """The imported run folder."""
    output = tmp_path / "runs" / "imported"
    main(["--format", name, "--source", str(source), "--backbone", str(backbone), "--output", str(output), *words])
    return output


def trained(folder):
    return load_file(best_checkpoint(folder) / WEIGHTS)


# ------------------------------------------------------------------ what is written


def test_every_key_of_comi_is_a_weight_or_listed(comi, qwen2, tmp_path, capsys):
    folder = run("comi", saved(comi, tmp_path / "comi.safetensors"), qwen2[1], tmp_path, "--ratio", "8")
    record, weights = json.loads((folder / "imported.json").read_text()), trained(folder)
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
    assert len(weights) - len(lora) + len(lora) + len(frozen) + len(record["not_weights"]) == len(comi)
    assert len(lora) == 4 * 4 * 2 and all("lora_" in name for name in lora)
    assert torch.equal(
        weights["decoder.layers.1.self_attn.v_proj.lora_B.default.weight"],
        comi["decoder.base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"],
    )
    assert torch.equal(
        weights["compressor.context_encoder.lsa.final_norm.weight"], comi["memory_fusion_layer.model.norm.weight"]
    )
    told = capsys.readouterr().out
    assert "memory_fusion_layer.model.embed_tokens.weight: the alignment reads vectors, no tokens" in told
    assert "semantic_alignment_layer.bias and 1 more: not part of --alignment lsa" in told
    assert f"ready: {folder}" in told


def test_the_run_says_all_that_the_file_does_not(comi, qwen2, tmp_path):
    folder = run("comi", saved(comi, tmp_path / "comi.safetensors"), qwen2[1], tmp_path, "--quirks")
    cfg = load_config(folder)
    assert cfg.backbone.path == qwen2[1] and cfg.backbone.dtype == "float32" and cfg.reader == "comi"
    assert cfg.decoder == {
        "train": "lora",
        "lora_rank": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_targets": ["k_proj", "o_proj", "q_proj", "v_proj"],
    }
    asked = {
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
    assert {key: cfg.compressor[key] for key in asked} == asked
    assert cfg.prompt.template == "{question}" and not cfg.prompt.bos and cfg.generation.repetition_penalty == 1.3
    assert {"commit", "versions"} <= json.loads((folder / "environment.json").read_text()).keys()
    assert (folder / "finished").is_file() and not [p for p in folder.parent.iterdir() if p != folder]


def test_learned_scalars_and_another_alignment(comi, qwen2, tmp_path):
    changed = comi | {"alpha_select": torch.tensor(0.75), "beta_merge": torch.tensor(1.5)}
    folder = run("comi", saved(changed, tmp_path / "comi.safetensors"), qwen2[1], tmp_path, "--alignment", "linear")
    cfg, weights = load_config(folder).compressor, trained(folder)
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
def test_what_is_frozen_is_left_out_only_where_it_is_the_backbone_s(qwen2, tmp_path, changed, mode):
    tensors = state_of(PublishedCOMI(qwen2[0], lora=False))
    if changed:
        tensors[changed].view(-1)[3] += 1e-6
    folder = run("comi", saved(tensors, tmp_path / "comi.safetensors"), qwen2[1], tmp_path)
    weights = {name: value for name, value in trained(folder).items() if name.startswith("decoder.")}
    assert load_config(folder).decoder.train == mode
    own = changed and changed.replace("decoder.model", "decoder")
    assert (own in weights) == (changed is not None) and ("decoder.embed_tokens.weight" in weights) == (mode == "full")
    assert all(
        torch.equal(value, tensors[name.replace("decoder.", "decoder.model.", 1)])
        for name, value in weights.items()
        if "layers" in name
    )


def shards(tensors, folder, kind):
    folder.mkdir()
    keys = sorted(tensors)
    halves = {f"part-{i}.{kind}": keys[i::2] for i in range(2)}
    for file, half in halves.items():
        part = {key: tensors[key] for key in half}
        torch.save(part, folder / file) if kind == "bin" else save_file(part, folder / file)
    name = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind]
    places = {key: file for file, half in halves.items() for key in half}
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_ram_in_every_kind_of_file(ram, qwen3, tmp_path):
    torch.save(ram, tmp_path / "pytorch_model.bin")
    torch.save(ram, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    sources = [
        saved(ram, tmp_path / "ram.safetensors"),
        tmp_path,
        tmp_path / "old.pt",
        shards(ram, tmp_path / "a", "bin"),
        shards(ram, tmp_path / "b", "safetensors"),
    ]
    for source in sources:
        found = ReleasedFile(source)
        assert found.shapes == {key: tuple(value.shape) for key, value in ram.items()}
        assert all(torch.equal(found.tensor(key), value) for key, value in ram.items())
    folder = run("ram", sources[-1], qwen3[1], tmp_path)
    weights = trained(folder)
    assert load_config(folder).decoder.train == "qkv" and load_config(folder).compressor.segment_size == 50
    assert torch.equal(weights["compressor.context_encoder.linear.weight"], ram["semantic_alignment_layer.weight"])
    assert torch.equal(
        weights["compressor.context_encoder.encoder.embed_tokens.weight"], ram["llm_encoder.model.embed_tokens.weight"]
    )
    assert len(json.loads((folder / "imported.json").read_text())["files"]) == 2


def test_half_types_stay_what_they_are(ram, qwen3, tmp_path):
    backbone = save_backbone(copy.deepcopy(qwen3[0]).bfloat16(), tmp_path / "backbone")
    halves = {key: value.bfloat16() for key, value in ram.items()}
    folder = run("ram", saved(halves, tmp_path / "ram.safetensors"), backbone, tmp_path)
    assert load_config(folder).backbone.dtype == "bfloat16" and load_config(folder).decoder.train == "qkv"
    weights = trained(folder)
    assert torch.equal(
        weights["decoder.layers.0.self_attn.k_proj.weight"],
        halves["llm.model.layers.0.self_attn.k_proj.weight"].float(),
    )


def test_new_rows_of_comet(comet, qwen3, tmp_path):
    folder = run("comet", comet, qwen3[1], tmp_path)
    weights, released = trained(folder), load_file(comet / "model.safetensors")
    config, table = json.loads((comet / "config.json").read_text()), released["model.embed_tokens.weight"]
    old = qwen3[0].config.vocab_size
    assert torch.equal(weights["memory.tokens.weight"][0], table[config["temp_beacon_id"]])
    assert torch.equal(weights["memory.tokens.weight"][1:], table[config["global_beacon_ids"]])
    assert torch.equal(weights["decoder.embed_tokens.weight"], table[:old])
    assert torch.equal(weights["memory.new_token_head.weight"], released["lm_head.weight"][old:])
    cfg = load_config(folder)
    assert cfg.decoder.train == "full" and not cfg.compressor.quirks
    asked = {
        "chunk_size": 16,
        "stride": 4,
        "queue_budget": 8,
        "global_slots": 3,
        "adapter_rank": 8,
        "new_token_logits": 6,
    }
    assert {key: cfg.compressor[key] for key in asked} == asked


@pytest.mark.parametrize("name", FORMATS)
def test_eval_opens_it(name, comi, ram, comet, qwen2, qwen3, monkeypatch, tmp_path, capsys):
    source = comet if name == "comet" else saved({"comi": comi, "ram": ram}[name], tmp_path / "m.safetensors")
    folder = run(name, source, (qwen2 if name == "comi" else qwen3)[1], tmp_path)
    rows = write(tmp_path / "ten.jsonl", [{**ROW, "id": str(i)} for i in range(3)])
    words = [f"run={folder}", "dataset=jsonl", f"dataset.test={rows}", "generation.max_new_tokens=2", "baselines=[]"]
    assert call(monkeypatch, tmp_path, evaluation, *words, "compressor.quirks=true") == 0, capsys.readouterr().err
    [result] = [json.loads(file.read_text()) for file in folder.glob(f"eval/*/{name}/results.json")]
    assert result["n"] == 3 and result["config"]["compressor"]["quirks"] and result["run"] == str(folder)


# ------------------------------------------------------------------ bad input


def refused(capsys, tmp_path, name, source, backbone, *words):
    """What is told; nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run(name, source, backbone, tmp_path, *words)
    assert ended.value.code == 2 and sorted(tmp_path.rglob("*")) == before
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "Traceback" not in told
    return told


def test_a_checkpoint_of_another_method(comi, ram, comet, qwen2, qwen3, tmp_path, capsys):
    sources = {
        "comi": saved(comi, tmp_path / "comi.safetensors"),
        "ram": saved(ram, tmp_path / "ram.safetensors"),
        "comet": comet,
    }
    titles = {"comi": "COMI", "ram": "RAM", "comet": "CoMeT"}
    for name in FORMATS:
        for other, source in sources.items():
            if name != other:
                told = refused(capsys, tmp_path, name, source, qwen3[1])
                assert f"a checkpoint of {titles[other]}, not of {titles[name]}; use --format {other}" in told


def test_a_plain_model_is_none(qwen3, tmp_path, capsys):
    for name in FORMATS:
        told = refused(capsys, tmp_path, name, qwen3[1], qwen3[1])
        assert "keys that no checkpoint of" in told and "\n  model.layers.0.input_layernorm.weight\n" in told


def test_another_backbone(comi, comet, qwen3, tmp_path, capsys):
    narrow = save_backbone(plain_model("qwen2", width=32), tmp_path / "narrow")
    source = saved(comi, tmp_path / "comi.safetensors")
    told = refused(capsys, tmp_path, "comi", source, narrow)
    assert f"its decoder has 512 tokens, width {WIDTH} and 4 layers, {narrow} has 512, 32 and 4; give the model" in told
    shallow = save_backbone(plain_model("qwen3", layers=3), tmp_path / "shallow")
    assert "4 layers, " in refused(capsys, tmp_path, "comet", comet, shallow)
    told = refused(capsys, tmp_path, "comi", source, qwen3[1])  # of the same size, without biases, with other norms
    assert "unknown: decoder.base_model.model.model.layers.0.self_attn.k_proj.base_layer.bias" in told


def test_adapters_of_another_model(comi, qwen2, tmp_path, capsys):
    other = AutoModelForCausalLM.from_pretrained(qwen2[1])
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    other = save_backbone(other, tmp_path / "other")
    told = refused(capsys, tmp_path, "comi", saved(comi, tmp_path / "c.safetensors"), other)
    assert "frozen weights are not those of" in told
    assert told.count("\n  ") == 1 and "\n  decoder.base_model.model.model.layers.1.mlp.up_proj.weight" in told


CHANGES = {
    "missing": ({"llm.model.layers.2.mlp.up_proj.weight": None}, "missing: llm.model.layers.2.mlp.up_proj.weight"),
    "no-table": ({"llm.model.embed_tokens.weight": None}, "missing: llm.model.embed_tokens.weight"),
    "unknown": ({"llm.model.layers.0.bias": torch.ones(2)}, "unknown: llm.model.layers.0.bias (the reader has no "),
    "stranger": ({"fusion": torch.ones(2)}, "keys that no checkpoint of RAM has:\n  fusion"),
    "misshapen": (
        {"semantic_alignment_layer.bias": torch.ones(3)},
        f"shape of semantic_alignment_layer.bias: (3,) in the file, ({WIDTH},) in the reader",
    ),
    "not-finite": (
        {"semantic_alignment_layer.bias": torch.full((WIDTH,), torch.nan)},
        "holds values that are no finite numbers",
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


@pytest.mark.parametrize("changes, sentence", CHANGES.values(), ids=CHANGES)
def test_keys_that_do_not_fit(ram, qwen3, tmp_path, capsys, changes, sentence):
    gone = tuple(key for key, value in changes.items() if value is None)
    tensors = {key: value for key, value in ram.items() if not key.startswith(gone)} if gone else dict(ram)
    tensors |= {key: value for key, value in changes.items() if value is not None}
    assert sentence in refused(capsys, tmp_path, "ram", saved(tensors, tmp_path / "ram.safetensors"), qwen3[1])


class Trap:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return open, ("trapped", "w")


def test_damaged_files(ram, qwen3, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(ram, tmp_path / "whole.bin")
    torch.save({"key": Trap()}, tmp_path / "trap.bin")
    torch.save({"state": {"key": torch.ones(1)}}, tmp_path / "nested.bin")
    saved(ram, tmp_path / "whole.safetensors")
    for kind in ("bin", "safetensors"):
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"mixed.{kind}").write_bytes(content[7:])
        (tmp_path / f"empty.{kind}").touch()
    for file in ("cut", "mixed", "empty"):
        for kind in ("bin", "safetensors"):
            told = refused(capsys, tmp_path, "ram", tmp_path / f"{file}.{kind}", qwen3[1])
            assert "cannot be read as tensors" in told
    assert "other objects, which are never loaded" in refused(capsys, tmp_path, "ram", tmp_path / "trap.bin", qwen3[1])
    assert not (tmp_path / "trapped").exists()
    assert "no plain table of tensors" in refused(capsys, tmp_path, "ram", tmp_path / "nested.bin", qwen3[1])


def test_folders_that_lack_something(comet, ram, qwen3, tmp_path, capsys):
    absent = shards(ram, tmp_path / "shards", "bin")
    (absent / "part-1.bin").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.txt").touch()
    sentences = {
        absent: "shards that are not there: part-1.bin",
        empty: "no weights in this folder; it needs model.safetensors",
        tmp_path / "gone": "no such file or folder",
        tmp_path / "notes.txt": "no checkpoint; give a .safetensors",
    }
    for source, sentence in sentences.items():
        assert sentence in refused(capsys, tmp_path, "ram", source, qwen3[1])
    config = json.loads((comet / "config.json").read_text())
    changes = {
        "temp_beacon_stride must be a whole number": {"temp_beacon_stride": None},
        "global_beacon_ids must be a list of whole numbers": {"global_beacon_ids": 3},
        "name row 518 of a table of 518 rows": {"temp_beacon_id": 518},
        "num_attention_heads=2, of ": {"num_attention_heads": 2},
        "rope_parameters=": {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        "compressor.chunk_size=18: must be a multiple": {"chunk_size": 18},
    }
    for sentence, change in changes.items():
        (comet / "config.json").write_text(json.dumps(config | change))
        assert sentence in refused(capsys, tmp_path, "comet", comet, qwen3[1])
    (comet / "config.json").write_text("{")
    assert "no JSON" in refused(capsys, tmp_path, "comet", comet, qwen3[1])
    (comet / "config.json").unlink()
    assert "config.json: no such file; it holds sizes" in refused(capsys, tmp_path, "comet", comet, qwen3[1])


def test_arguments_that_do_not_suit(comi, comet, qwen2, qwen3, tmp_path, capsys):
    source = saved(comi, tmp_path / "comi.safetensors")
    assert "--ratio 0: must be above 0, e.g. 16" in refused(capsys, tmp_path, "comi", source, qwen2[1], "--ratio", "0")
    told = refused(capsys, tmp_path, "comet", comet, qwen3[1], "--ratio", "4", "--alignment", "lsa")
    assert "--ratio: not for this file of --format comet" in told and "--alignment: not for this file" in told
    plain = saved(state_of(PublishedCOMI(qwen2[0], lora=False)), tmp_path / "plain.safetensors")
    assert "--lora-alpha: not for" in refused(capsys, tmp_path, "comi", plain, qwen2[1], "--lora-alpha", "8")
    bare = tmp_path / "bare"
    shutil.copytree(qwen2[1], bare)
    (bare / "config.json").unlink()
    assert "no config.json in this folder" in refused(capsys, tmp_path, "comi", source, bare)
    assert "no such folder" in refused(capsys, tmp_path, "comi", source, "./gone")
    taken = tmp_path / "runs" / "imported"
    taken.mkdir(parents=True)
    (taken / "mine").touch()
    assert "is there already" in refused(capsys, tmp_path, "comi", source, qwen2[1])
