"""The texts of a study: sources, split into training and held-out ones, a tokenizer, and documents of n tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from breviary.config.errors import collect_errors, raise_problems
from breviary.runtime.distributed import print_rank0
from breviary.runtime.files import write_text
from breviary.studies.documents import Source, TextDocument, cut_documents, is_held_out
from breviary.studies.small_models import train_tokenizer

TASK = "Restate the text."
Sources = dict[str, list[Source]]
Documents = dict[str, list[TextDocument]]


@dataclass(frozen=True)
class Corpus:
    """A tokenizer, and documents of n of its tokens by domain: for training, and held out.

    The two sides have no source in common.
    """

    tokenizer: Any
    train: Documents
    test: Documents

    def all_train(self) -> list[TextDocument]:
        """The training documents of all domains."""
        return [document for items in self.train.values() for document in items]

    def all_test(self) -> list[TextDocument]:
        """The held-out documents of all domains."""
        return [document for items in self.test.values() for document in items]


def load_sources(texts: DictConfig) -> Sources:
    """{name: its sources of text} of a configuration section; a name of null is left out.

    Raises: ConfigError with all problems of all names.
    """
    sources: Sources = {}
    problems: list[str] = []
    for name, settings in texts.items():
        if settings is None:
            continue
        own_problems: list[str] = []
        sources[name] = collect_errors(own_problems, _sources_of_name, name, settings) or []
        problems += [f"{name}: {problem}" for problem in own_problems]
    raise_problems(problems)
    return sources


def _sources_of_name(name: str, settings: DictConfig) -> list[Source]:
    """The sources of one name that are not blank; prints how many are. Raises ConfigError where there is no text."""
    texts = instantiate(settings)
    raise_problems(texts.problems())
    sources = list(texts.sources())
    blank = [source for source in sources if not source.text.strip()]
    if blank:
        print_rank0(f"{name}: {len(blank)} sources without text are left out, e.g. {blank[0].name}")
    if len(blank) == len(sources):
        raise_problems(["no source has any text"])
    return [source for source in sources if source.text.strip()]


def split_sources(sources: Mapping[str, Sequence[Source]], share: float) -> tuple[Sources, Sources]:
    """(training sources, held-out sources) by name; `share` of the sources are held out."""
    train, test = (
        {
            name: [source for source in items if is_held_out(source.name, share) == held_out]
            for name, items in sources.items()
        }
        for held_out in (False, True)
    )
    return train, test


def build_corpus(
    sources: Sources,
    tokens: int,
    vocabulary: int,
    held_out: float,
    train_documents: Mapping[str, int],
    test_documents: int,
    tokenizer_characters: int = 400_000,
) -> Corpus:
    """Trains the tokenizer on the training sources and cuts the documents of every domain.

    tokens                length of a document
    vocabulary            entries of the tokenizer
    held_out              share of the sources that the test documents come from
    train_documents       {domain: number}
    test_documents        number of each domain
    tokenizer_characters  of each domain, at most, that the tokenizer is trained on
    Raises: ConfigError naming every domain whose sources hold too few documents.
    """
    train, test = split_sources(sources, held_out)
    texts = ["\n".join(source.text for source in items)[:tokenizer_characters] for items in train.values()]
    tokenizer = train_tokenizer(texts, vocabulary)
    problems: list[str] = []

    def cut(side: Sources, numbers: Mapping[str, int]) -> Documents:
        return {
            name: collect_errors(problems, cut_documents, name, items, tokenizer, tokens, numbers[name], 0) or []
            for name, items in side.items()
        }

    corpus = Corpus(tokenizer, cut(train, train_documents), cut(test, dict.fromkeys(test, test_documents)))
    raise_problems(problems)
    return corpus


def token_sequences(documents: Sequence[TextDocument], tokenizer: Any) -> Tensor:
    """(N, n + 2) int64: the tokens of each document between BOS and the end token."""
    rows = tokenizer([d.text for d in documents], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return torch.tensor([[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows])


def write_examples(file: Path, documents: Iterable[TextDocument]) -> Path:
    """Writes the documents as examples of reconstruction, JSONL; returns the file.

    Its name is that of `file` with a hash of the content: a run trained on other documents has another configuration.
    """
    rows = [{"id": d.doc_id, "context": d.text, "question": TASK, "answers": [d.text]} for d in documents]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    file = file.with_stem(f"{file.stem}-{digest}")
    write_text(file, text)
    return file
