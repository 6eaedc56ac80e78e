"""The model card of an exported folder: from plain values to Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from breviary.evaluation.table import markdown_table

UNKNOWN_LICENCE = "not stated in the backbone's folder; look it up before you share this folder"

USAGE = """import breviary

reader = breviary.load_reader("{folder}")
document = reader.read("The official metal of the town of Velkeld is tin. The lucky fruit of the ship Quiloth is fig.")
questions = ["What is the official metal of the town of Velkeld?", "What is the lucky fruit of the ship Quiloth?"]
for question, answer in zip(questions, reader.answer_from(document, questions)):
    print(question, answer)
print(document.save("velkeld.safetensors"), "bytes in the file,", document.cache_bytes, "as keys and values")
print(reader.answer_from(reader.load("velkeld.safetensors"), questions[0]))
print("".join(reader.stream(document, questions[1])))"""


@dataclass(frozen=True)
class CardContent:
    """What a model card states.

    config       the run's configuration
    environment  of the training (environment.json)
    steps        optimizer steps of the exported checkpoint
    data         source of the training examples
    imported     content of imported.json for weights released by a method's authors; None = trained here
    backbone     name and sha256 of the backbone
    description  the backbone in words
    hub          hub name of the backbone; None = unknown
    licence      of the backbone; None = unknown
    contents     what the folder holds of the backbone
    tables       title and rows (breviary.evaluation.table.table_row) of each evaluation
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    steps: int
    data: str
    imported: Mapping[str, Any] | None
    backbone: Mapping[str, str]
    description: str
    hub: str | None
    licence: str | None
    contents: str
    tables: Sequence[tuple[str, list[dict[str, Any]]]]


def model_card(content: CardContent) -> str:
    """Markdown with Hugging Face's front matter."""
    config = content.config
    compressor = config["compressor"]
    settings = ", ".join(f"{key}={value}" for key, value in compressor.items() if key != "_target_")
    lines = [
        "---",
        "library_name: breviary",
        "pipeline_tag: question-answering",
        f"license: {json.dumps(content.licence or 'unknown')}",
        *([f"base_model: {json.dumps(content.hub)}"] if content.hub else []),
        "---",
        "",
        f"# {config['reader']}: {compressor['_target_']}",
        "",
        "A reader trained with Breviary: it compresses a long context into a small memory and answers from it.",
        "",
        "## Use",
        "",
        "From a checkout of Breviary, installed as its README describes, with the path of this folder:",
        "",
        "```python",
        USAGE.format(folder="path/to/this/folder"),
        "```",
        "",
        "`python eval.py run=path/to/this/folder dataset=...` evaluates it. More: docs/python.md of the checkout.",
        "",
        "## Model",
        "",
        f"- Contents: {content.contents}.",
        f"- Backbone: {content.description}; name {content.backbone['name']}, sha256 {content.backbone['sha256']}.",
        f"- Licence of the backbone: {content.licence or UNKNOWN_LICENCE}.",
        f"- Compressor: {settings or 'no settings'}.",
        f"- Trained weights of the decoder: {config['decoder']['train']}.",
        "",
        "## Training",
        "",
        f"- Code: {_commit(content.environment)}.",
        *_training(content),
        "",
        "## Results",
        "",
    ]
    if not content.tables:
        lines += ["Not evaluated: the run has no evaluation of this checkpoint.", ""]
    for title, rows in content.tables:
        note = "95% intervals, NLL in nats per token, times in milliseconds per question."
        lines += [f"{title}; {note}", "", markdown_table(rows)]
    return "\n".join(lines)


def _commit(environment: Mapping[str, Any]) -> str:
    """The commit of the code, and whether there were uncommitted changes."""
    dirty = {
        True: ", with uncommitted changes",
        False: "",
        None: " (whether there were uncommitted changes is unknown)",
    }
    return f"commit {environment['commit'] or 'unknown'}{dirty[environment['dirty']]}"


def _training(content: CardContent) -> list[str]:
    """The origin of the weights: training data and steps, or the imported files."""
    config, imported = content.config, content.imported
    if imported is not None:
        files = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in imported["files"].items())
        return [f"- Weights: not trained here; imported from the authors' files, format {imported['format']}: {files}."]
    train = config["train"]
    batch = train["batch_size"] * train["accumulation"]
    return [
        f"- Data: {content.data}.",
        f"- Steps: {content.steps} of {batch} examples per process, {train['optimizer']}, learning rate "
        f"{train['learning_rate']}, objective {config['objective']['_target_']}, seed {config['seed']}.",
    ]
