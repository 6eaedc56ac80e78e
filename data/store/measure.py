"""Cost of loading a JSONL file: seconds and private memory of each phase, for scripts/bench/data_loading.py."""

from __future__ import annotations

import json
import os
import random
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.collate import Collator
from data.jsonl import Jsonl
from data.prompts import Prompt
from data.store.examples import store_split
from data.synthetic.words import words_of
from data.tokenised import tokenise_split

BATCH, BATCHES = 8, 50  # examples at random indices


class PrivateMemory:
    """Private bytes of this process and its children, sampled in a thread: `start` and `peak`."""

    def __enter__(self) -> PrivateMemory:
        self.start = self.peak = self._bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.peak = max(self.peak, self._bytes())

    def _bytes(self) -> int:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return _private("self", "RssAnon") + sum(_private(child, "Private_Dirty") for child in children)


def _private(process: str, field: str) -> int:
    """Bytes; Private_Dirty leaves out what a forked child shares with its parent."""
    try:
        text = Path(f"/proc/{process}/{'status' if field == 'RssAnon' else 'smaps_rollup'}").read_text()
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return 0
    return 1024 * next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{field}:")), 0)


def write_lines(file: Path, megabytes: float, words: int) -> int:
    """Lines of about `words` words of context until the file has its size; their number."""
    rng, count, size = random.Random(0), 0, 0
    vocabulary = words_of("noun", "adjective", "verb")
    with open(file, "w") as opened:
        while size < megabytes * 1e6:
            context = " ".join(rng.choices(vocabulary, k=words))
            line = json.dumps({"context": context, "question": f"which word is {count}?", "answers": [vocabulary[0]]})
            size += opened.write(line + "\n")
            count += 1
    return count


def measure_file(file: str, cache: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Seconds, CPU seconds and peak memory of each phase, in this process; MB of the cache."""
    tokenizer("warm up")
    found: dict[str, Any] = {}

    def phase(name: str, call: Callable[[], Any]) -> Any:
        begin, cpu = time.perf_counter(), cpu_seconds()
        with PrivateMemory() as memory:
            result = call()
        found[name] = {
            "seconds": round(time.perf_counter() - begin, 3),
            "cpu_seconds": round(cpu_seconds() - cpu, 3),
            "peak_mb": round((memory.peak - memory.start) / 1e6, 1),
        }
        return result

    found["base_mb"] = round(_private("self", "RssAnon") / 1e6)
    stored = phase("store", lambda: store_split(Jsonl(file, None, None), "train", cache))
    phase("tokenise", lambda: tokenise_split(stored, tokenizer, Prompt(), None, cache))
    stored = phase("open_examples", lambda: store_split(Jsonl(file, None, None), "train", cache))
    items = phase("open_tokens", lambda: tokenise_split(stored, tokenizer, Prompt(), None, cache))
    order = random.Random(0).choices(range(len(items)), k=BATCH * BATCHES)
    collate = Collator(0)
    phase("batches", lambda: [len(collate([items[j] for j in order[i::BATCHES]])) for i in range(BATCHES)])
    found["disk_mb"] = round(sum(f.stat().st_size for f in Path(cache).rglob("*") if f.is_file()) / 1e6, 1)
    return found | {"tokens": sum(items.lengths)}


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
