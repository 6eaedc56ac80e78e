"""Where running text comes from: prose out of JSONL files, Python code of installed packages, arithmetic, drawn words.

Each class gives sources, texts that belong together: what is cut from one source stands on one side of a split.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from breviary.runtime.draws import choose, random_below, seeded_rng, shuffled
from data.checks import integer_problems, raise_problems
from data.jsonl_contexts import JsonlContexts

_LARGEST = 200_000  # characters of a code file at most: longer ones are tables


@dataclass(frozen=True)
class Source:
    """A text and what it is called; equal names are one source."""

    name: str
    text: str


class Contexts:
    """The contexts of files in our JSONL format, each once.

    files     one file or several
    passages  true: every passage of the examples' `documents` is a text of its own, and its title names the source
    """

    def __init__(self, files: str | Sequence[str], passages: bool = False) -> None:
        self.files = [JsonlContexts(file, None, None) for file in ([files] if isinstance(files, str) else files)]
        self.passages = passages

    def problems(self) -> list[str]:
        """What is wrong with the files, one sentence each."""
        if not self.files:
            return ["files is empty; name at least one JSONL file"]
        return [problem for file in self.files for problem in file.problems(["train"])]

    def sources(self) -> list[Source]:
        """Every context or passage. Raises ValueError as `problems` tells, and where there are no passages."""
        raise_problems(self.problems())
        names: dict[str, str] = {}
        for file in self.files:
            for example in file.examples("train"):
                if self.passages:
                    names |= {example.context[d.start : d.end]: d.title for d in example.documents}
                else:
                    names.setdefault(example.context, f"{Path(file.file_names('train')).parent.name}-{example.id}")
        if not names:
            raise ValueError(
                f"{', '.join(file.file_names('train') for file in self.files)}: no example has 'documents'; "
                "set passages=false"
            )
        return [Source(name, text) for text, name in names.items()]


class PythonCode:
    """Python files of installed packages, without the comment that heads them (licences, the same in every file).

    packages   names as in import
    max_files  files at most, drawn out of all; which ones depends on their names alone
    """

    def __init__(self, packages: Sequence[str], max_files: int = 400) -> None:
        self.packages, self.max_files = list(packages), max_files

    def problems(self) -> list[str]:
        """What is wrong with the arguments, one sentence each."""
        found = [
            f"packages: there is no package {name!r} here with Python files"
            for name in self.packages
            if not list(_folders(name))
        ]
        if not self.packages:
            found.append("packages is empty; name at least one package, e.g. scipy")
        return found + integer_problems("max_files", self.max_files, 1, None, 400)

    def sources(self) -> list[Source]:
        """One source a file. Raises ValueError as `problems` tells."""
        raise_problems(self.problems())
        files = [
            (f"{name}/{file.relative_to(folder)}", file)
            for name in self.packages
            for folder in _folders(name)
            for file in sorted(folder.rglob("*.py"))
            if file.stat().st_size <= _LARGEST
        ]
        rng = seeded_rng("python code", *(name for name, _ in files))
        return [
            Source(name, _without_header(file.read_text(encoding="utf-8", errors="ignore")))
            for name, file in shuffled(rng, files)[: self.max_files]
        ]


class Arithmetic:
    """Drawn arithmetic, a problem and its solution a line: formal text in which most tokens follow from others.

    size  texts;  lines  of each text;  largest  operand;  seed  of the draw
    """

    def __init__(self, size: int = 200, lines: int = 40, largest: int = 99, seed: int = 0) -> None:
        self.size, self.lines, self.largest, self.seed = size, lines, largest, seed

    def problems(self) -> list[str]:
        """What is wrong with the arguments, one sentence each."""
        return [
            problem
            for key, example in (("size", 200), ("lines", 40), ("largest", 99))
            for problem in integer_problems(key, getattr(self, key), 1, None, example)
        ]

    def sources(self) -> list[Source]:
        """Texts of lines such as `(17 + 4) * 3 = 63`. Raises ValueError as `problems` tells."""
        raise_problems(self.problems())
        rng = seeded_rng("arithmetic", self.seed)
        texts = ["\n".join(self._line(rng) for _ in range(self.lines)) for _ in range(self.size)]
        return [Source(f"arithmetic-{i}", text) for i, text in enumerate(texts)]

    def _line(self, rng) -> str:
        a, b, c = (random_below(rng, self.largest + 1) for _ in range(3))
        first, second = choose(rng, "+-"), choose(rng, "+-*")
        inner = a + b if first == "+" else a - b
        value = {"+": inner + c, "-": inner - c, "*": inner * c}[second]
        return f"({a} {first} {b}) {second} {c} = {value}"


class DrawnWords:
    """Invented words, each drawn after the one before it (a Markov chain of order 1): prose for want of files.

    size  texts;  words  of each text;  vocabulary  different words;  seed  of chain and texts
    """

    def __init__(self, size: int = 200, words: int = 400, vocabulary: int = 120, seed: int = 0) -> None:
        self.size, self.words, self.vocabulary, self.seed = size, words, vocabulary, seed

    def problems(self) -> list[str]:
        """What is wrong with the arguments, one sentence each."""
        return [
            problem
            for key, example in (("size", 200), ("words", 400), ("vocabulary", 120))
            for problem in integer_problems(key, getattr(self, key), 1, None, example)
        ]

    def sources(self) -> list[Source]:
        """Texts of words in lower case. Raises ValueError as `problems` tells."""
        raise_problems(self.problems())
        rng = seeded_rng("drawn words", self.seed)
        words = [
            "".join(choose(rng, "bdfgklmnprstvz") + choose(rng, "aeiou") for _ in range(1 + random_below(rng, 3)))
            for _ in range(self.vocabulary)
        ]
        followers = [[choose(rng, words) for _ in range(6)] for _ in words]
        after = dict(zip(words, followers))
        return [Source(f"drawn-{i}", " ".join(self._walk(after, rng))) for i in range(self.size)]

    def _walk(self, after: dict[str, list[str]], rng) -> Iterator[str]:
        word = choose(rng, list(after))
        for _ in range(self.words):
            yield word
            word = choose(rng, after[word])


def _folders(package: str) -> Iterator[Path]:
    """Where a package's own Python files lie."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for place in spec.submodule_search_locations or [] if spec else []:
        if any(Path(place).rglob("*.py")):
            yield Path(place)


def _without_header(text: str) -> str:
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[first:])
