"""Exports prompts as embeddings: a folder with the merged decoder, and a request for each context and question."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from breviary.backbones.trainable import merge_adapters
from breviary.config.build import ReaderSpec
from breviary.config.errors import raise_problems
from breviary.contract import Generation
from breviary.runtime.files import parse_json, write_text
from breviary.serving.export import ExportSource, write_backbone
from breviary.serving.loading import text_reader
from breviary.serving.prompt_embeds import completion_request, embeds_problem
from breviary.serving.text_interface import TextReader

MODEL, REQUESTS = "model", "requests.jsonl"
FIELDS = ("context", "question")

PAGE = """# {name}: prompts as embeddings, for vLLM

`{model}/` is the decoder of a Breviary reader in Hugging Face format, its adapters merged. Each line of `{requests}` is
a request to the Completions API with one prompt: prefix, compressed context and question as embeddings. {count}
prompts, {dtype}.

```sh
vllm serve {model} --served-model-name {name} --enable-prompt-embeds
head -n 1 {requests} | curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d @-
```

In Python, without a server:

```python
import base64, io, json, torch
from vllm import LLM, SamplingParams

requests = [json.loads(line) for line in open("{requests}")]
prompts = [torch.load(io.BytesIO(base64.b64decode(one["prompt_embeds"])), weights_only=True) for one in requests]
llm = LLM("{model}", enable_prompt_embeds=True)
sampling = SamplingParams(temperature={temperature}, max_tokens={tokens}, stop={stop})
answers = llm.generate([{{"prompt_embeds": prompt}} for prompt in prompts], sampling)
```

vLLM's documentation warns that a server with this option can be crashed by wrong shapes: enable it for trusted users.
Compressing further contexts takes the run itself: `breviary.load_reader(RUN).prompt_embeds(texts, questions)`.
"""


def check_embeds(source: ExportSource) -> None:
    """Raises ValueError where the run's memory is no prompt of embeddings. No weight is loaded yet."""
    spec = ReaderSpec.of(source.cfg)
    problem = embeds_problem(spec.compressor, spec.settings.get("join") == "depth")
    raise_problems([f"--prompt-embeds: {problem}"] if problem else [])


def read_prompts(file: str | Path) -> list[Mapping[str, str]]:
    """Rows of a JSONL file with the texts of FIELDS. Raises: ValueError with all wrong lines."""
    problems, rows = [], []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = parse_json(line)
            missing = [name for name in FIELDS if not isinstance(row.get(name), str)]
        except (ValueError, AttributeError):
            row, missing = {}, list(FIELDS)
        rows.append(row)
        if missing:
            problems.append(
                f"--prompt-embeds {file}: line {number} has no text {' and '.join(missing)}; a line is e.g. "
                '{"context": "...", "question": "..."}'
            )
    if not rows:
        problems.append(f'--prompt-embeds {file}: has no line; a line is e.g. {{"context": "...", "question": "..."}}')
    raise_problems(problems)
    return rows


def export_prompts(source: ExportSource, output: Path, rows: Sequence[Mapping[str, str]], batch_size: int = 8) -> int:
    """Writes the merged decoder and a request for each row, completely or not at all; returns the bytes."""
    check_embeds(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = source.backbone.tokenizer()
    reader = text_reader(source.load_reader(), source.cfg, source.backbone, tokenizer)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=output.parent) as partial:
        folder = Path(partial) / "folder"
        folder.mkdir()
        write_text(folder / REQUESTS, "".join(_request_lines(reader, rows, output.name, batch_size)))
        merge_adapters(reader.reader.decoder)
        write_backbone(folder / MODEL, source.backbone, tokenizer, reader.reader.decoder)
        write_text(folder / "README.md", _page(output.name, source, reader.generation, len(rows)))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        os.rename(folder, output)
    return size


def _request_lines(reader: TextReader, rows: Sequence[Mapping[str, str]], name: str, batch_size: int) -> list[str]:
    lines = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        embeds = reader.prompt_embeds([row["context"] for row in some], [row["question"] for row in some])
        lines += [json.dumps(completion_request(name, one, reader.generation)) + "\n" for one in embeds]
    return lines


def _page(name: str, source: ExportSource, generation: Generation, count: int) -> str:
    return PAGE.format(
        name=name,
        model=MODEL,
        requests=REQUESTS,
        count=count,
        dtype=source.backbone.dtype,
        temperature=generation.temperature,
        tokens=generation.max_new_tokens,
        stop=list(generation.stop),
    )
