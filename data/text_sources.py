"""Sources of running text for the studies: JSONL files, Python code of installed packages, arithmetic, random words.

Each class has `problems()` and `sources()`. All documents that are cut from one source belong to the same split.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from breviary.runtime.draws import choose, random_below, seeded_rng, shuffled
from data.checks import integer_problems, raise_problems
from data.jsonl_contexts import JsonlContexts

_MAX_CODE_BYTES = 200_000  # longer code files are tables


@dataclass(frozen=True)
class Source:
    """A text and its name; equal names are one source."""

    name: str
    text: str


class Contexts:
    """The distinct contexts of files in our JSONL format.

    files     one file or several
    passages  True: every passage of the examples' `documents` is a source with the passage's title as its name
    """

    def __init__(self, files: str | Sequence[str], passages: bool = False) -> None:
        self.files = [JsonlContexts(file, None, None) for file in ([files] if isinstance(files, str) else files)]
        self.passages = passages

    def problems(self) -> list[str]:
        """An error message for each wrong file."""
        if not self.files:
            return ["files is empty; name at least one JSONL file"]
        return [problem for file in self.files for problem in file.problems(["train"])]

    def sources(self) -> list[Source]:
        """Every context or passage. Raises: ValueError with the messages of `problems`, or where there is none."""
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
    """Python files of installed packages, without leading comments (licences, equal in every file).

    packages   import names
    max_files  maximum number of files, selected at random; the selection depends only on the names of all files
    """

    def __init__(self, packages: Sequence[str], max_files: int = 400) -> None:
        self.packages, self.max_files = list(packages), max_files

    def problems(self) -> list[str]:
        """An error message for each wrong argument."""
        problems = [
            f"packages: no package {name!r} with Python files is installed"
            for name in self.packages
            if not list(_folders(name))
        ]
        if not self.packages:
            problems.append("packages is empty; name at least one package, e.g. scipy")
        return problems + integer_problems("max_files", self.max_files, 1, None, 400)

    def sources(self) -> list[Source]:
        """One source per file. Raises: ValueError with the messages of `problems`."""
        raise_problems(self.problems())
        files = [
            (f"{name}/{file.relative_to(folder)}", file)
            for name in self.packages
            for folder in _folders(name)
            for file in sorted(folder.rglob("*.py"))
            if file.stat().st_size <= _MAX_CODE_BYTES
        ]
        rng = seeded_rng("python code", *(name for name, _ in files))
        return [
            Source(name, _without_header(file.read_text(encoding="utf-8", errors="ignore")))
            for name, file in shuffled(rng, files)[: self.max_files]
        ]


class Arithmetic:
    """Random arithmetic, one problem with its solution per line: formal text, most of whose tokens are predictable.

    size     number of texts
    lines    of each text
    largest  operand
    seed     of the numbers and operators
    """

    def __init__(self, size: int = 200, lines: int = 40, largest: int = 99, seed: int = 0) -> None:
        self.size, self.lines, self.largest, self.seed = size, lines, largest, seed

    def problems(self) -> list[str]:
        """An error message for each wrong argument."""
        return [
            problem
            for key, example in (("size", 200), ("lines", 40), ("largest", 99))
            for problem in integer_problems(key, getattr(self, key), 1, None, example)
        ]

    def sources(self) -> list[Source]:
        """Texts of lines such as `(17 + 4) * 3 = 63`. Raises: ValueError with the messages of `problems`."""
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
    """Random words from a Markov chain of order 1: a substitute for prose that needs no files.

    size        number of texts
    words       of each text
    vocabulary  number of distinct words
    seed        of the chain and the texts
    """

    def __init__(self, size: int = 200, words: int = 400, vocabulary: int = 120, seed: int = 0) -> None:
        self.size, self.words, self.vocabulary, self.seed = size, words, vocabulary, seed

    def problems(self) -> list[str]:
        """An error message for each wrong argument."""
        return [
            problem
            for key, example in (("size", 200), ("words", 400), ("vocabulary", 120))
            for problem in integer_problems(key, getattr(self, key), 1, None, example)
        ]

    def sources(self) -> list[Source]:
        """Texts of words in lower case. Raises: ValueError with the messages of `problems`."""
        raise_problems(self.problems())
        rng = seeded_rng("drawn words", self.seed)
        words = [
            "".join(choose(rng, "bdfgklmnprstvz") + choose(rng, "aeiou") for _ in range(1 + random_below(rng, 3)))
            for _ in range(self.vocabulary)
        ]
        followers = [[choose(rng, words) for _ in range(6)] for _ in words]
        chain = dict(zip(words, followers))
        return [Source(f"drawn-{i}", " ".join(self._sample(chain, rng))) for i in range(self.size)]

    def _sample(self, chain: dict[str, list[str]], rng) -> Iterator[str]:
        word = choose(rng, list(chain))
        for _ in range(self.words):
            yield word
            word = choose(rng, chain[word])


def _folders(package: str) -> Iterator[Path]:
    """The folders of a package's Python files."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for folder in spec.submodule_search_locations or [] if spec else []:
        if any(Path(folder).rglob("*.py")):
            yield Path(folder)


def _without_header(text: str) -> str:
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[first:])
