"""Answers questions about a text of any length with a CoMeT run, in constant memory.

    python scripts/ask_text.py outputs/comet_passkey --text book.txt "Who is the narrator?" "Where does it begin?"
    python scripts/ask_text.py latest --text book.txt --save book.session
    python scripts/ask_text.py latest --load book.session "Who is the narrator?"

The text is encoded once. Questions are independent of each other and do not change the memory. --save writes the memory
to a file whose size does not depend on the length of the text. --load continues from such a file; with --text, that
text is appended.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import quiet_libraries, require_checkout

require_checkout()
quiet_libraries()

from omegaconf import DictConfig

from breviary.config.cli.run_names import FORMS, find_run
from breviary.config.errors import cli_errors, raise_problems
from breviary.config.keys import validate_keys
from breviary.contract import Example, Generation
from breviary.evaluation.resolve import compose_evaluation, find_checkpoint
from breviary.evaluation.session import EvaluationSession
from breviary.runtime.spelling import command, next_line, setting
from comet.inference.session import Session
from comet.model import Comet
from data.text_pipeline import TEXT


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help=f"of compressor=comet; {FORMS}")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="each is answered independently")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to encode")
    parser.add_argument("--save", metavar="FILE", help="write the memory to this file")
    parser.add_argument("--load", metavar="FILE", help="continue from a saved memory")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Encodes, saves, answers; exits with code 2 on wrong input."""
    options = build_parser().parse_intermixed_args(arguments)
    with cli_errors():
        options.run = str(find_run(options.run))
        ask(options)
    memory = options.save or options.load
    words = ["--load", memory, "Who ...?"] if memory else ["--text", options.text, "--save", "memory.session"]
    print(next_line(command("scripts/ask_text.py", options.run, *words)))


def ask(options: argparse.Namespace) -> None:
    """Encodes the text, saves the memory and answers the questions, as the options specify."""
    cfg = check_options(options)
    text = Path(options.text).read_text(encoding="utf-8") if options.text else ""
    reader = EvaluationSession(TEXT).load_reader(cfg, find_checkpoint(cfg)).eval()
    assert isinstance(reader, Comet), reader
    prompt = TEXT.prompt(cfg.prompt)
    if options.load:
        session = Session.load(reader, options.load)
    else:  # begins as in training: with BOS, chat header and instruction, where the run has them
        session = reader.open()
        session.read(prompt.tokenise(Example("", "", "?", ("",)), reader.tokenizer)["prefix"])
    if text:
        start, before = time.perf_counter(), session.tokens_read
        session.read(text)
        tokens, seconds = session.tokens_read - before, time.perf_counter() - start
        print(
            f"{tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s); "
            f"memory {session.bytes / 2**20:.1f} MiB, independent of the length"
        )
    if options.save:
        size = session.save(options.save)
        print(
            f"{options.save}: {size / 2**20:.1f} MiB (the key/value cache of the text would be "
            f"{session.cache_bytes / 2**20:,.1f} MiB)"
        )
    for question in options.questions:
        ids = prompt.tokenise(Example("", "", question, ("",)), reader.tokenizer)["prompt"]
        print(f"Q: {question}\nA: {session.ask(ids, Generation(**cfg.generation))}")


def check_options(options: argparse.Namespace) -> DictConfig:
    """The run's configuration. Raises: ConfigError before any weight is loaded."""
    problems = [] if options.text or options.load else ["no text: give --text FILE or --load FILE"]
    problems += [
        f"--{key} {file}: no such file"
        for key, file in (("text", options.text), ("load", options.load))
        if file and not Path(file).is_file()
    ]
    cfg = compose_evaluation([setting("run", options.run)])
    if not cfg.compressor._target_.startswith("comet."):
        problems.append(
            f"{options.run}: compressor {cfg.compressor._target_} has no running memory; give a run of compressor=comet"
        )
    cfg, key_problems = validate_keys(cfg)
    raise_problems(problems + key_problems)
    return cfg


if __name__ == "__main__":
    main()
