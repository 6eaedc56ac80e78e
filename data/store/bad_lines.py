"""The invalid lines of a file, collected in a few bytes per line."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

import numpy as np
import xxhash

MAX_SHOWN = 10  # bad lines in an error message


class BadLines:
    """Error messages by line number, and the ids of the valid lines, which must differ.

    ids  64-bit hash of each id
    """

    def __init__(self) -> None:
        self.ids, self._numbers = array("Q"), array("Q")
        self._problems: dict[int, str] = {}

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, number: int, problem: str) -> None:
        """Adds an invalid line. Only the first MAX_SHOWN messages are stored."""
        self._problems[number] = problem if len(self._problems) < MAX_SHOWN else ""

    def see_id(self, number: int, id: str) -> None:
        """The id of a line."""
        self.ids.append(xxhash.xxh3_64_intdigest(id.encode("utf-8", "surrogatepass")))
        self._numbers.append(number)

    def find_repeated(self, lines: Callable[[], Iterable[tuple[int, str]]], id_of: Callable[[int, str], str]) -> None:
        """Adds a problem for each line whose id an earlier line has.

        lines  reads the file again, (number, line); called only where the hashes of two ids are equal
        id_of  (number, line) -> id
        """
        keys = np.frombuffer(self.ids, dtype=np.uint64) if self.ids else np.zeros(0, dtype=np.uint64)
        values, counts = np.unique(keys, return_counts=True)
        if len(values) == len(keys):
            return
        suspects = set(np.frombuffer(self._numbers, dtype=np.uint64)[np.isin(keys, values[counts > 1])].tolist())
        line_of_id: dict[str, int] = {}
        for number, line in lines():
            if number not in suspects:
                continue
            id = id_of(number, line)
            first = line_of_id.setdefault(id, number)
            if first != number:
                self._problems[number] = f"the id {id!r} is already that of line {first}; ids must differ"

    def report(self, name: str) -> str:
        """One line with the number of bad lines in file `name`, then the first of them."""
        lines = [f"  line {number}: {problem}" for number, problem in sorted(self._problems.items())[:MAX_SHOWN]]
        count = "1 bad line" if len(self._problems) == 1 else f"{len(self._problems)} bad lines"
        more = [f"  ... and {len(self._problems) - MAX_SHOWN} more"] if len(self._problems) > MAX_SHOWN else []
        return "\n".join([f"{count} in {name}", *lines, *more])
