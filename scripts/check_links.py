"""Checks every relative link and image of the Markdown pages: the file must exist, and the heading behind a `#`.

    python scripts/check_links.py
    python scripts/check_links.py --root ../another_checkout
    make check                                  # these links, lint, format and types

Pages: *.md, */README.md, and every page below docs/ and results/. Prints `page:line: link` for each broken
link; exit code 1 if there is one. Links with a scheme (https:, mailto:) and links inside code are not checked.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "[!.]*/README.md", "docs/**/*.md", "results/**/*.md")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")  # [text](target "title") and ![text](target); text of many lines
CODE = re.compile(r"`[^`]*`")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line outside fenced code."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for _, line in prose(page):
        if heading := re.match(r"#{1,6} +(.*?)[ #]*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def broken_links(root: Path) -> list[str]:
    """`page:line: link` for each link of the pages below `root` that leads nowhere."""
    broken = []
    for page in sorted({page for pattern in PAGES for page in root.glob(pattern)}):
        for number, line in prose(page):
            for link in LINK.findall(CODE.sub("", line)):
                path, _, anchor = unquote(link).partition("#")
                target = (page.parent / path).resolve() if path else page
                if SCHEME.match(link):
                    continue
                inside = target.is_relative_to(root) and target.exists()
                if not inside or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                    broken.append(f"{page.relative_to(root)}:{number}: {link}")
    return broken


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the checkout")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; exit code 1 where a link is broken."""
    broken = broken_links(build_parser().parse_args(arguments).root.resolve())
    print("\n".join(broken) or "all links lead to a file")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
