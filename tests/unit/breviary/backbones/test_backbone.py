"""Backbones: loading, rejected settings and architectures, trained weights."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from breviary.backbones.pretrained import Backbone, check_architecture, truncated_config, usable_positions
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import set_trainable
from breviary.config.context_lengths import ContextLimits
from breviary.runs.checkpoints import backbone_difference, read_metadata, save_trained

FAMILIES = ("llama", "qwen2", "qwen3")
EACH = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.tensor([[5, 9, 300, 17, 44, 8], [7, 7, 7, 200, 1, 30]])


def tiny(family="llama", attention="sdpa", **arguments):
    return TinyBackbone(family, **{"layers": 3, "attn_implementation": attention, **arguments})


def logits_of(stack, ids, positions=None, key_mask=None):
    positions = torch.arange(ids.shape[1]).expand(ids.shape) if positions is None else positions
    return stack.head(stack.norm(stack.run(stack.embed(ids), range(len(stack)), positions, key_mask)))


# ------------------------------------------------------------------ loading


@EACH
def test_a_truncated_model_has_the_first_layers_of_the_full_model(family):
    full, part = tiny(family).load(), tiny(family).load(layers=2, head=False)
    assert len(part.layers) == part.config.num_hidden_layers == 2 and not hasattr(part, "lm_head")
    for a, b in zip(part.layers.parameters(), full.model.layers[:2].parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(part.norm.weight, full.model.norm.weight)


@EACH
def test_a_saved_folder_loads_with_equal_outputs(family, tmp_path):
    plain = tiny(family).load()
    plain.save_pretrained(tmp_path)
    backbone = Backbone(str(tmp_path), dtype="float32")
    assert backbone.problems() == []
    loaded, part = backbone.load(), backbone.load(layers=1, head=False)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, plain(IDS).logits)
        short = tiny(family).load(layers=1, head=False)
        assert torch.equal(part(IDS).last_hidden_state, short(IDS).last_hidden_state)
    assert backbone.config.num_hidden_layers == 3  # truncation copied the configuration
    half = Backbone(str(tmp_path)).load()
    assert half.dtype == half.config.dtype == torch.bfloat16
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_fingerprint_depends_on_the_weights(tmp_path):
    folders = []
    for seed in (0, 0, 1):
        folders.append(tmp_path / f"{len(folders)}" / "backbone")
        tiny(seed=seed).load().save_pretrained(folders[-1])
    fingerprints = [Backbone(str(folder)).fingerprint for folder in folders]
    assert fingerprints[0] == fingerprints[1] and fingerprints[0]["name"] == "backbone"
    assert fingerprints[0]["sha256"] != fingerprints[2]["sha256"]
    assert tiny(seed=0).fingerprint != tiny(seed=1).fingerprint != tiny("qwen2", seed=1).fingerprint


# What changes the function of a llama, and what does not.
FUNCTION = {
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    "head_dim": 8,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "mlp_bias": True,
    "rms_norm_eps": 1e-5,
    "hidden_act": "gelu",
}
HARMLESS = {
    "_name_or_path": "elsewhere",
    "architectures": ["Other"],
    "dtype": torch.bfloat16,
    "transformers_version": "1.0",
    "use_cache": False,
    "initializer_range": 0.3,
    "max_position_embeddings": 4096,
    "pad_token_id": 5,
    "output_attentions": True,
    "a_key_of_a_later_version": None,
}


def changed_fingerprint(folder, changes):
    backbone = Backbone(str(folder))
    for key, value in changes.items():
        setattr(backbone.config, key, value)
    return backbone.fingerprint["sha256"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny().load().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("key", FUNCTION)
def test_the_fingerprint_depends_on_all_that_changes_the_function(saved, key):
    assert changed_fingerprint(saved, {key: FUNCTION[key]}) != Backbone(str(saved)).fingerprint["sha256"]


@pytest.mark.parametrize("key", HARMLESS)
def test_the_fingerprint_does_not_depend_on_anything_else(saved, key):
    assert changed_fingerprint(saved, {key: HARMLESS[key]}) == Backbone(str(saved)).fingerprint["sha256"]


def test_scaled_rotary_positions_depend_on_the_longest_position(saved):
    scaled = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}}
    longer = scaled | {"max_position_embeddings": 4096}
    assert changed_fingerprint(saved, scaled) != changed_fingerprint(saved, longer)


def test_a_key_with_its_default_and_a_missing_key_are_equal(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    file = folder / "config.json"
    settings = {
        key: value for key, value in json.loads(file.read_text()).items() if key not in ("head_dim", "mlp_bias")
    }
    file.write_text(json.dumps(settings))
    assert Backbone(str(folder)).fingerprint["sha256"] == Backbone(str(saved)).fingerprint["sha256"]


def test_checkpoints_with_the_former_fingerprint_still_open(saved, tmp_path):
    backbone = Backbone(str(saved), dtype="float32")
    former = backbone.fingerprint["former_sha256"]
    assert former != backbone.fingerprint["sha256"]
    checkpoint = tmp_path / "checkpoint"
    save_trained(checkpoint, torch.nn.Module(), {"name": "x", "sha256": former})
    assert backbone_difference(checkpoint, read_metadata(checkpoint)["backbone"], backbone.fingerprint) == []
    save_trained(checkpoint, torch.nn.Module(), backbone.fingerprint)
    assert read_metadata(checkpoint)["backbone"].keys() == {"name", "sha256"}
    other = tiny(seed=1).fingerprint
    [message] = backbone_difference(checkpoint, read_metadata(checkpoint)["backbone"], other)
    assert "but the backbone here is" in message


def test_models_do_not_share_configurations():
    backbone = tiny()
    first, second = backbone.load(layers=1), backbone.load()
    assert first.config.num_hidden_layers == 1 and second.config.num_hidden_layers == 3
    assert backbone.config.num_hidden_layers == 3


def test_truncated_config_cuts_layer_types():
    config = Qwen2Config(num_hidden_layers=5)
    cut = truncated_config(config, 2)
    assert cut.num_hidden_layers == len(cut.layer_types) == 2
    assert config.num_hidden_layers == len(config.layer_types) == 5
    assert truncated_config(config, None).num_hidden_layers == 5


# ------------------------------------------------------------------ rejected backbones


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MistralConfig(), "backbone of type 'mistral': supported are llama, qwen2, qwen3"),
        (
            Qwen2Config(use_sliding_window=True, max_window_layers=1, num_hidden_layers=3),
            "backbone with layers of type sliding_attention: only full_attention is supported",
        ),
        (
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
            "backbone with dynamic rope scaling",
        ),
        (
            LlamaConfig(
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0] * 64,
                    "long_factor": [4.0] * 64,
                    "original_max_position_embeddings": 512,
                }
            ),
            "backbone with longrope rope scaling, whose frequencies depend on the batch: supported are",
        ),
        *(
            (
                LlamaConfig(quantization_config={"quant_method": method}),
                f"backbone with quantised weights ({method}, key quantization_config of its config.json)",
            )
            for method in ("gptq", "awq", "bitsandbytes")
        ),
        (LlamaConfig(quantization_config={"bits": 4}), "backbone with quantised weights (quantization_config, key"),
    ],
)
def test_unsupported_architectures_are_reported(config, message):
    [problem] = check_architecture(config)
    assert problem.startswith(message) and "backbone.path" in problem


@pytest.mark.parametrize(
    "positions, rope, usable",
    [
        (2048, None, 2048),
        (32768, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),  # Qwen2.5
        (40960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),  # Qwen3
        (131072, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (32768, {"type": "yarn", "factor": 4.0}, 131072),
        (2048, {"rope_type": "linear", "factor": 2.0}, 4096),
        (2048, {"type": "linear", "factor": 2.5}, 5120),
        (
            131072,  # Llama 3.1
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            131072,
        ),
    ],
)
def test_usable_positions_are_the_scaled_ones(positions, rope, usable):
    config = LlamaConfig(max_position_embeddings=positions, rope_parameters=rope and {"rope_theta": 10000.0, **rope})
    assert check_architecture(config) == []
    assert usable_positions(config) == usable
    limits = ContextLimits(None, SimpleNamespace(config=config), 8)
    assert limits.positions == usable


@EACH
def test_a_scaled_backbone_equals_the_plain_model(family):
    """YaRN also scales the attention."""
    backbone = tiny(family, positions=64)
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    backbone.config.rope_parameters = rope
    model, stack, ids = backbone.load(), Stack(backbone.load()), torch.arange(200)[None]
    assert usable_positions(backbone.config) == 256
    with torch.no_grad():
        states = stack.run(stack.embed(ids), range(len(stack)), ids)
        torch.testing.assert_close(stack.head(stack.norm(states)), model(ids).logits, rtol=0, atol=1e-5)


def test_a_quantised_folder_is_rejected_before_its_weights(tmp_path):
    config = LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    [problem] = Backbone(str(tmp_path)).problems()
    assert "quantised weights (gptq, key quantization_config" in problem and "backbone.path" in problem


@EACH
def test_tiny_backbones_have_no_problems(family):
    assert tiny(family).problems() == []


def test_all_problems_of_a_tiny_backbone_are_reported():
    problems = TinyBackbone("gpt2", dtype="int8", attn_implementation="flash").problems()
    assert [re.match(r"backbone\.\w+", problem)[0] for problem in problems] == [
        "backbone.dtype",
        "backbone.attn_implementation",
        "backbone.family",
    ]


def test_incomplete_folders_are_reported(tmp_path):
    missing = tmp_path / "nothing"
    [problem] = Backbone(str(missing)).problems()
    assert str(missing) in problem and "no such folder" in problem
    [problem] = Backbone(str(tmp_path)).problems()
    assert "no config.json" in problem
    tiny().config.save_pretrained(tmp_path)
    [problem] = Backbone(str(tmp_path)).problems()
    assert "folder without weights" in problem and "model.safetensors" in problem


# ------------------------------------------------------------------ trained weights


@pytest.mark.parametrize(
    ("mode", "pattern"),
    [
        ("lora", r"layers\..*lora_[AB]\."),
        ("attention", r"layers\.\d+\.self_attn\.[qkvo]_proj\."),
        ("frozen", r"(?!)"),
        ("full", r""),
    ],
)
@EACH
def test_train_modes_select_the_declared_weights(family, mode, pattern):
    stack = Stack(tiny(family, dtype="bfloat16").load())
    set_trainable(stack, mode)
    trained = {name for name, p in stack.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in stack.named_parameters() if re.match(pattern, name)}
    types = {p.dtype for name, p in stack.named_parameters() if name in trained}
    assert types == (set() if mode == "frozen" else {torch.float32})
    assert all(p.dtype == torch.bfloat16 for name, p in stack.named_parameters() if name not in trained)


def test_lora_targets_rank_and_scale():
    stack = Stack(tiny().load())
    set_trainable(stack, "lora", lora_rank=3, lora_alpha=12, lora_targets=["q_proj", "v_proj"])
    adapted = {name.split(".")[2] for name, p in stack.layers.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "v_proj"}
    projection = stack.layers[0].self_attn.q_proj
    assert projection.lora_A["default"].weight.shape == (3, 64) and projection.scaling["default"] == 4


def test_new_adapters_leave_the_logits_unchanged():
    plain, adapted = Stack(tiny().load()), Stack(tiny().load())
    set_trainable(adapted, "lora")
    with torch.no_grad():
        assert torch.equal(logits_of(adapted, IDS), logits_of(plain, IDS))


def test_unknown_train_mode_fails_an_assertion():
    with pytest.raises(AssertionError, match="'some'"):
        set_trainable(Stack(tiny().load()), "some")
