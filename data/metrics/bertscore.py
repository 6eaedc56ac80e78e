"""BERTScore (Zhang et al. 2020, arXiv 1904.09675) with a model in a local folder.

F1 of greedily matched token states by cosine, without weights of rare words and without rescaling. A number compares
with another one of the same model and layer only.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

_EXAMPLE = "e.g. dataset.metrics=[f1,bertscore:models/roberta-large:17], a model's folder and a layer"


def split_argument(argument: str) -> tuple[str, int | None]:
    """(folder, layer) of FOLDER or FOLDER:LAYER; None = the last layer."""
    folder, _, layer = argument.rpartition(":")
    return (folder, int(layer)) if folder and layer.isdigit() else (argument, None)


def folder_problems(argument: str) -> list[str]:
    """An error message where the argument names no model in a local folder."""
    folder, layer = split_argument(argument)
    if not folder:
        return [f"dataset.metrics: bertscore needs a model in a local folder, {_EXAMPLE}"]
    if not (Path(folder) / "config.json").is_file():
        return [f"dataset.metrics: bertscore:{argument}: {folder} holds no config.json of a model; {_EXAMPLE}"]
    if layer == 0:
        return [f"dataset.metrics: bertscore:{argument}: the layer must be at least 1; {_EXAMPLE}"]
    return []


def fingerprint(argument: str) -> str:
    """Changes with the model's configuration and the sizes of its weights, and with the layer."""
    folder, layer = split_argument(argument)
    sizes = sorted((file.name, file.stat().st_size) for file in Path(folder).glob("*.safetensors"))
    content = (Path(folder) / "config.json").read_bytes() + repr((sizes, layer)).encode()
    return hashlib.sha256(content).hexdigest()[:12]


class BertScore:
    """A model that scores one pair of texts at a time, on the CPU."""

    def __init__(self, folder: str, layer: int | None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).float().eval()
        depth = self.model.config.num_hidden_layers
        if layer is not None and layer > depth:
            raise ValueError(f"dataset.metrics: bertscore: layer {layer} of a model with {depth} layers; {_EXAMPLE}")
        self.layer = depth if layer is None else layer

    def f1(self, prediction: str, references: Sequence[str]) -> float:
        """The best F1 over the references; 0 where the prediction has no token."""
        own = self._states(prediction)
        return max(self._f1(own, self._states(reference)) for reference in references)

    def _f1(self, own: Tensor, gold: Tensor) -> float:
        if not len(own) or not len(gold):
            return 0.0
        similarity = own @ gold.T
        precision, recall = similarity.amax(1).mean().item(), similarity.amax(0).mean().item()
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    @torch.no_grad()
    def _states(self, text: str) -> Tensor:
        """Unit vectors (N, D) of a text's tokens at the layer; special tokens are read but not matched."""
        limit = getattr(self.model.config, "max_position_embeddings", 512) - 2  # RoBERTa's positions begin at 2
        encoded = self.tokenizer(
            text, return_tensors="pt", truncation=True, max_length=limit, return_special_tokens_mask=True
        )
        is_word = ~encoded.pop("special_tokens_mask")[0].bool()
        if not is_word.any():
            return torch.zeros(0, 1)
        states = self.model(**encoded, output_hidden_states=True).hidden_states[self.layer][0]
        return torch.nn.functional.normalize(states[is_word], dim=-1)


@functools.cache
def model_of(argument: str) -> BertScore:
    """The model of an argument, loaded once."""
    return BertScore(*split_argument(argument))
