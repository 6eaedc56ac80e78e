"""Prints the dependencies of pyproject.toml at the lowest versions that it admits, or without any bound.

    python tests/requirements.py lowest > requirements.txt
    python tests/requirements.py newest > requirements.txt

For `make test-lowest` and `make test-newest`. Test tools stay as they are. Needs Python's own library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<bounds>.*)")


def requirements(text: str, which: str) -> list[str]:
    """Lines of a requirements file.

    text   of pyproject.toml
    which  lowest: each dependency at its lower bound | newest: without bounds
    Raises: ValueError for a dependency without a lower bound.
    """
    project = tomllib.loads(text)["project"]
    lines = []
    for one in project["dependencies"]:
        match = REQUIREMENT.fullmatch(one.replace(" ", ""))
        lower = match and re.search(r">=([\w.]+)", match["bounds"])
        if match is None or lower is None:
            raise ValueError(f"pyproject.toml: {one}: a dependency needs a lower bound, as in name>=1.2")
        lines.append(f"{match['name']}=={lower[1]}" if which == "lowest" else match["name"])
    return lines + project["optional-dependencies"]["test"]


if __name__ == "__main__":
    if sys.argv[1:] not in (["lowest"], ["newest"]):
        sys.exit(f"error: {' '.join(sys.argv[1:]) or 'no argument'}: give lowest or newest")
    print("\n".join(requirements(PROJECT.read_text(encoding="utf-8"), sys.argv[1])))
