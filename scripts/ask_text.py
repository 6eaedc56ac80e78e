"""Reads a text of any length with a CoMeT run, in constant memory, and answers questions about it.

    python scripts/ask_text.py outputs/NAME/RUN --text book.txt "Who is the narrator?" "Where does it begin?"
    python scripts/ask_text.py outputs/NAME/RUN --text book.txt --save book.session
    python scripts/ask_text.py outputs/NAME/RUN --load book.session "Who is the narrator?"

The text is read once; a question does not change what is remembered. --save keeps the memory in a file whose size does not
depend on the text's length; --load goes on from one (--text is then read after it, where given).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from breviary.config.build import build_backbone
from breviary.config.errors import ConfigError
from breviary.config.keys import validate_keys
from breviary.contract import Example, Generation
from comet.model import Comet
from comet.inference.session import Session
from data.prompts import Prompt
from eval import checkpoint_of, loaded, say, settle


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder of compressor=comet")
    parser.add_argument("questions", nargs="*", help="asked one after the other, each by itself")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to read")
    parser.add_argument("--save", metavar="FILE", help="keep the memory here")
    parser.add_argument("--load", metavar="FILE", help="go on from a kept memory")
    given = parser.parse_intermixed_args(arguments)
    try:
        ask(given)
    except ValueError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def ask(given: argparse.Namespace) -> None:
    """Reads, saves, answers."""
    cfg = settled(given)
    text = Path(given.text).read_text(encoding="utf-8") if given.text else ""
    backbone = build_backbone(cfg)
    reader = loaded(cfg, backbone, checkpoint_of(cfg)).eval()
    assert isinstance(reader, Comet), reader
    prompt, tokenizer = Prompt(**cfg.prompt), backbone.tokenizer()
    if given.load:
        session = Session.load(reader, given.load)
    else:  # a text begins as in training: with BOS, chat header and instruction, where the run has them
        session = reader.open()
        session.read(prompt.tokenise(Example("", "", "?", ("",)), tokenizer)["prefix"])
    if text:
        start, before = time.perf_counter(), session.tokens_read
        session.read(text)
        tokens, seconds = session.tokens_read - before, time.perf_counter() - start
        say(
            f"read {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} a second); "
            f"{session.bytes / 2**20:.1f} MiB kept, whatever the length"
        )
    if given.save:
        size = session.save(given.save)
        plain = session.tokens_read * reader.decoder.key_value_bytes(len(reader.decoder))
        say(f"{given.save}: {size / 2**20:.1f} MiB (the text's key/value cache would be {plain / 2**20:,.1f} MiB)")
    for question in given.questions:
        asked = prompt.tokenise(Example("", "", question, ("",)), tokenizer)["prompt"]
        say(f"Q: {question}\nA: {session.ask(asked, Generation(**cfg.generation))}")


def settled(given: argparse.Namespace) -> DictConfig:
    """The run's configuration, checked before any weight is loaded."""
    problems = []
    if not given.text and not given.load:
        problems.append("nothing to read: give --text FILE, or --load FILE")
    problems += [
        f"--{key} {name}: no such file"
        for key, name in (("text", given.text), ("load", given.load))
        if name and not Path(name).is_file()
    ]
    words = [f"run={given.run}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = settle(compose("eval", words), words)
    if not cfg.compressor._target_.startswith("comet."):
        problems.append(
            f"{given.run}: compressor {cfg.compressor._target_} keeps no running memory; give a run of compressor=comet"
        )
    cfg, found = validate_keys(cfg)
    if problems + found:
        raise ConfigError(problems + found)
    return cfg


if __name__ == "__main__":
    main()
