"""Imports of released checkpoints for tests."""

import json

import torch
from safetensors.torch import load_file, save_file

from breviary.runs.checkpoints import WEIGHTS, best_checkpoint
from scripts.import_checkpoint import main


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
