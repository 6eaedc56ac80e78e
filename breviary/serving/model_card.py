"""The model card of an exported folder: plain values to Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from breviary.evaluation.table import markdown_table

UNKNOWN = "not said by the backbone's folder; look it up before you pass this on"

USE = """from breviary import load_reader

reader = load_reader("{folder}")
document = reader.read("The official metal of the town of Velkeld is tin. The lucky fruit of the ship Quiloth is fig.")
questions = ["What is the official metal of the town of Velkeld?", "What is the lucky fruit of the ship Quiloth?"]
for question, answer in zip(questions, reader.answer_from(document, questions)):
    print(question, answer)
print(document.save("velkeld.safetensors"), "bytes in the file,", document.cache_bytes, "as keys and values")
print(reader.answer_from(reader.load("velkeld.safetensors"), questions[0]))
print("".join(reader.stream(document, questions[1])))"""


def card(
    cfg: Mapping[str, Any],
    backbone: Mapping[str, str],
    description: str,
    hub: str | None,
    licence: str | None,
    environment: Mapping[str, Any],
    steps: int,
    form: str,
    data: str,
    imported: Mapping[str, Any] | None,
    tables: Sequence[tuple[str, list[dict[str, Any]]]],
) -> str:
    """Markdown with Hugging Face's front matter.

    cfg          the run's configuration;  backbone  its backbone's name and sha256;  description  the same in words
    hub          hub name of the backbone, where it has one;  licence  of the backbone; None = not known
    environment  of the training (environment.json);  steps  of the exported checkpoint
    form         what of the backbone is in the folder;  data  where the training examples come from
    imported     what scripts/import_checkpoint.py noted of weights that others trained
    tables       for each evaluation its title and its rows (breviary.tables.row)
    """
    compressor = cfg["compressor"]
    settings = ", ".join(f"{key}={value}" for key, value in compressor.items() if key != "_target_")
    front = ["---", "library_name: breviary", "pipeline_tag: question-answering"]
    front += [f"license: {json.dumps(licence or 'unknown')}"]
    front += [f"base_model: {json.dumps(hub)}"] if hub else []
    commit = environment["commit"] or "unknown"
    changed = {True: ", with changes that are not in it", False: "", None: " (whether it was changed is not known)"}
    lines = [
        *front,
        "---",
        "",
        f"# {cfg['reader']}: {compressor['_target_']}",
        "",
        "A reader made with Breviary: it keeps a small memory of a long context and answers from it.",
        "",
        "## Use",
        "",
        "From a checkout of Breviary, installed as its README says, with the path of this folder:",
        "",
        "```python",
        USE.format(folder="path/to/this/folder"),
        "```",
        "",
        "`python eval.py run=path/to/this/folder dataset=...` evaluates it. More: docs/python.md of the checkout.",
        "",
        "## What it is",
        "",
        f"- Form: {form}.",
        f"- Backbone: {description}; name {backbone['name']}, sha256 {backbone['sha256']}.",
        f"- Licence of the backbone: {licence or UNKNOWN}.",
        f"- Compressor: {settings or 'no settings'}.",
        f"- Trained of the decoder: {cfg['decoder']['train']}.",
        "",
        "## Where it comes from",
        "",
        f"- Code: commit {commit}{changed[environment['dirty']]}.",
        *_training(cfg, steps, data, imported),
        "",
        "## Results",
        "",
    ]
    if not tables:
        lines += ["Not evaluated: the run has no evaluation of this checkpoint.", ""]
    for title, rows in tables:
        lines += [
            f"{title}; 95% bootstrap intervals, NLL in nats a token, times in milliseconds a question.",
            "",
            markdown_table(rows),
        ]
    return "\n".join(lines)


def _training(cfg: Mapping[str, Any], steps: int, data: str, imported: Mapping[str, Any] | None) -> list[str]:
    """How the weights came about."""
    if imported is not None:
        files = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in imported["files"].items())
        return [f"- Weights: not trained here; imported from the authors' files, format {imported['format']}: {files}."]
    train = cfg["train"]
    batch = train["batch_size"] * train["accumulation"]
    return [
        f"- Data: {data}.",
        f"- Steps: {steps} of {batch} examples a process, {train['optimizer']}, "
        f"learning rate {train['learning_rate']}, objective {cfg['objective']['_target_']}, seed {cfg['seed']}.",
    ]
