"""Run folders made without training, and the code blocks of docs/python.md."""

import re
from pathlib import Path

from breviary.config.build import build_backbone
from breviary.runs.checkpoints import save_trained
from breviary.runs.folders import open_run
from tests.tiny import compose_tiny, disturb, tiny_reader

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
TEXT = (
    "For the town of Velkeld the official metal is copper. The ship Quiloth has violin as lucky instrument. "
    "The official colour of the town of Zorvane is green. "
) * 2
QUESTIONS = [
    "What is the official metal of the town of Velkeld?",
    "What is the lucky instrument of the ship Quiloth?",
    "What is the official colour of the town of Zorvane?",
]


def tiny_run(home, *words):
    """A run folder with this configuration. Its trained weights are the initial ones plus noise."""
    cfg = compose_tiny(
        ["reader=x", "generation.max_new_tokens=6", "generation.min_new_tokens=4", "dataset.test_size=3", *words]
    )
    cfg.paths.outputs, cfg.paths.cache = f"{home}/outputs", f"{home}/cache"
    folder, _ = open_run(cfg)
    reader = tiny_reader(cfg)
    disturb(reader, 0.1)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    save_trained(checkpoint, reader, build_backbone(cfg).fingerprint)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    return folder


def page_blocks():
    """{section-number: code} of the page's Python blocks."""
    blocks = {}
    for section in PAGE.split("\n## "):
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)):
            blocks[f"{section.splitlines()[0]}-{number}"] = code
    return blocks


def run_block(code):
    """Runs a block with the names `text` and `questions`. Returns all names that it defines."""
    names = {"text": TEXT, "questions": QUESTIONS}
    exec(compile(code, "docs/python.md", "exec"), names)
    return names
