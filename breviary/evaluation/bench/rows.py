"""The rows of a benchmark and their JSON file, which is written after every row so that the command can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from breviary.runs.environment import environment
from breviary.runtime.files import write_json

Row = dict[str, Any]


class MeasuredRows:
    """Rows of one or several parts; resumes from the rows of an existing file.

    path      JSON file; None = in memory only
    settings  stored with the rows; must equal those of an existing file
    keys      {part: fields that identify a row}
    runs      stored; may differ from an existing file's, since each row stores its own number
    Raises: ValueError where the file is damaged, or has other settings, hardware or versions.
    """

    def __init__(
        self, path: str | None, settings: Mapping[str, Any], keys: Mapping[str, Sequence[str]], runs: int | None = None
    ) -> None:
        self.path, self.keys = path, keys
        self.commit = environment()["commit"]
        self.content: dict[str, Any] = {**settings, **({"runs": runs} if runs else {})}
        self.content |= {**{part: [] for part in keys}, "environment": environment()}
        if path and Path(path).is_file():
            self._continue(Path(path), settings)

    def _continue(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Loads rows and environment of the file."""
        advice = "set another --output, or delete the file"
        try:
            found = json.loads(path.read_bytes())
            theirs = {key: found.get(key) for key in settings} | _machine(found["environment"])
            rows = {part: [dict(row) for row in found[part]] for part in self.keys}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--output {path} is no result file of this command ({error!r}); {advice}") from error
        ours = {**settings, **_machine(self.content["environment"])}
        if others := [f"{key}={theirs[key]}, here {ours[key]}" for key in ours if theirs[key] != ours[key]]:
            raise ValueError(f"--output {path} has results with {'; '.join(others)}: {advice}")
        self.content |= {**rows, "environment": found["environment"]}

    def of(self, part: str = "rows") -> list[Row]:
        """The rows of a part."""
        rows: list[Row] = self.content[part]
        return rows

    def find(self, part: str = "rows", **where: Any) -> Row | None:
        """The row whose identifying fields are `where`, or None."""
        assert where.keys() == set(self.keys[part]), (where, self.keys[part])
        return next((row for row in self.of(part) if all(row[key] == value for key, value in where.items())), None)

    def put(self, row: Row, part: str = "rows") -> None:
        """Adds a row with this checkout's commit, replaces the row of the same key, and writes the file."""
        old = self.find(part, **{key: row[key] for key in self.keys[part]})
        row = {**row, "commit": self.commit}
        if old is None:
            self.of(part).append(row)
        else:
            self.of(part)[self.of(part).index(old)] = row
        if self.path:
            write_json(self.path, self.content)


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: environment[key] for key in ("hardware", "versions")}
