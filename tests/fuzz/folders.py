"""Mutated run folders, exports and saved memories: refused by name, or they give the answers they gave before."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from pathlib import Path

import train
from breviary.serving.loading import load_reader
from tests.fuzz.configurations import SMALL
from tests.fuzz.outcomes import Outcome, call, run_command

TEXT = "The official metal of the town of Velkeld is tin. The lucky fruit of the ship Quiloth is fig."
QUESTION = "What is the official metal of the town of Velkeld?"
EDITS = ("null", "[]", "{}", "-1", "abc", "os.system", "'", "\x00", "é", "1e999", "true")


@functools.cache
def originals() -> tuple[Path, str]:
    """(folder with the run, and its saved memory), the answer of the run. Trained once, deleted with the process."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    words = [*SMALL, "compressor=mean_pool", "compressor.join=depth", "compressor.encoder_layers=2", "name=run"]
    outcome = run_command(train, words, home)
    assert outcome.kind == "ran", outcome.text
    [run] = (home / "outputs" / "run").iterdir()
    shutil.copytree(run, home / "whole" / "run")
    reader = load_reader(home / "whole" / "run")
    document = reader.read(TEXT)
    document.save(home / "whole" / "memory.safetensors")
    return home / "whole", reader.answer_from(document, QUESTION)


def mutate(rng: random.Random, folder: Path) -> tuple[str, str]:
    """Changes one file below `folder`; (what was done, the file's name)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    content, name = path.read_bytes(), path.relative_to(folder).as_posix()
    kind = rng.choice(["flip", "truncate", "empty", "delete", "swap", "edit"])
    if kind == "flip" and content:
        data = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
    elif kind == "truncate":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(rng.choice(files).read_bytes())
    elif path.suffix in (".yaml", ".json"):
        lines = content.decode("utf-8").splitlines()
        place = rng.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(EDITS)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        kind = f"edit line {place + 1} to {lines[place]!r}"
    return f"{kind} of {name}", name


def run_folder(rng: random.Random, home: Path) -> tuple[str, Outcome]:
    """Opens a mutated run and memory and answers. A changed configuration may change the answer, weights may not."""
    whole, answer = originals()
    folder = home / f"copy{rng.randrange(10**9)}"
    shutil.copytree(whole, folder)
    described, name = mutate(rng, folder)
    try:
        outcome = call(lambda: _answer(folder))
    finally:
        shutil.rmtree(folder)
    is_named = Path(name).name in outcome.text or folder.name in outcome.text
    if outcome.kind == "refused" and not is_named and not name.endswith("config.yaml"):  # of which a key is named
        outcome = Outcome("fault", f"the refusal does not name the file: {outcome.text}")
    if outcome.kind == "ran" and outcome.text != answer and name.endswith(".safetensors"):
        outcome = Outcome("fault", f"another answer, {outcome.text!r} in place of {answer!r}")
    return described, outcome


def _answer(folder: Path) -> str:
    reader = load_reader(folder / "run")
    return reader.answer_from(reader.load(folder / "memory.safetensors"), QUESTION)
