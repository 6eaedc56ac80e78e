"""scripts/check_links.py: the pages of the checkout have no broken link, and broken ones are found."""

import pytest

from scripts.check_links import anchors, main


def test_every_link_of_the_pages_leads_to_a_file(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 0, capsys.readouterr().out


def test_broken_links_are_listed(tmp_path, capsys):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "page.md").write_text("# One: `code`, two\n\n## One\n## One\n")
    (tmp_path / "docs" / "deep" / "more.md").write_text("[up](../page.md) [outside](../../../outside.md)\n")
    (tmp_path / "README.md").write_text(
        "[a](docs/page.md#one-code-two) [b](docs/page.md#one-1) ![c](docs/c.png) [d](docs/page.md#two)\n"
        "[here](#there) [web](https://example.org/x) `[code](gone.md)` [titled](gone.md 'title')\n"
        "```\n[fenced](gone.md)\n```\n"
    )
    with pytest.raises(SystemExit) as left:
        main(["--root", str(tmp_path)])
    assert left.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "README.md:1: docs/c.png",
        "README.md:1: docs/page.md#two",
        "README.md:2: #there",
        "README.md:2: gone.md",
        "docs/deep/more.md:1: ../../../outside.md",
    ]


def test_repeated_headings_are_numbered(tmp_path):
    (tmp_path / "page.md").write_text("# A [link](x.md) & more!\n## Twice\n## Twice\n```\n# not a heading\n```\n")
    assert anchors(tmp_path / "page.md") == {"a-link--more", "twice", "twice-1"}
