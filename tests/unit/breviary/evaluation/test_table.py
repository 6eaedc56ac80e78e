"""Rows, cells and tables: nothing is wrapped, truncated or taken for markup."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from breviary.evaluation.table import (
    METRICS,
    format_bytes,
    format_number,
    format_ratio,
    format_score,
    format_significant,
    markdown_table,
    print_table,
    run_summary,
    table_row,
    write_table,
)


def results(reader: str = "comi", value: float = 0.714, ratio: float | None = 3.97, **changes):
    metrics = {name: {"value": value, "low": value - 0.07, "high": value + 0.06} for name in METRICS}
    return {
        "schema": 1,
        "reader": reader,
        "n": 200,
        "data_hash": "d",
        "metrics": metrics,
        "requested_ratio": 4.0,
        "effective_ratio": ratio,
        "memory_slots": 123.4,
        "memory_bytes": 1258291.2,
        "times": {"read_ms": 12.34, "compress_ms": 0.5, "prefill_ms": 33.0, "decode_ms": 1234.5},
        "truncated": 0,
        "peak_memory_bytes": 1,
        "commit": None,
        "dirty": None,
        "hardware": {},
        "config": None,
        "run": "outputs/a/1",
        **changes,
    }


def printed(rows, **arguments) -> list[str]:
    out = io.StringIO()
    print_table(rows, console=Console(file=out, width=1000), **arguments)
    return out.getvalue().splitlines()


# ------------------------------------------------------------------ rows and cells


def test_table_row_is_flat_with_exactly_these_keys():
    flat = table_row(results())
    assert set(flat) == {
        "reader",
        "n",
        "training",
        "backbone",
        "data",
        "trained_on",
        "em",
        "em_low",
        "em_high",
        "em_contains",
        "em_contains_low",
        "em_contains_high",
        "f1",
        "f1_low",
        "f1_high",
        "rouge_l",
        "rouge_l_low",
        "rouge_l_high",
        "nll",
        "nll_low",
        "nll_high",
        "requested_ratio",
        "effective_ratio",
        "memory_slots",
        "memory_bytes",
        "document_bytes",
        "read_ms",
        "compress_ms",
        "prefill_ms",
        "decode_ms",
        "encode_ms",
        "truncated",
        "run",
        "metrics",
    }
    assert flat["reader"] == "comi" and flat["n"] == 200 and flat["decode_ms"] == 1234.5
    assert (flat["f1"], flat["f1_low"], flat["f1_high"]) == pytest.approx((0.714, 0.644, 0.774))


def test_a_missing_metric_is_none_and_printed_as_a_dash():
    flat = table_row(results(metrics={"nll": {"value": 2.5, "low": 2.0, "high": 3.0}}))
    assert flat["f1"] is None and flat["f1_low"] is None
    assert format_score(flat, "f1") == "-" and format_score(flat, "nll") == "2.50 [2.00, 3.00]"


def test_table_file_is_a_json_list_of_the_rows(tmp_path):
    rows = [table_row(results()), table_row(results("no_context", ratio=None))]
    write_table(tmp_path / "table.json", rows)
    assert json.loads((tmp_path / "table.json").read_text()) == rows


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (format_number(0.714), ".71"),
        (format_number(0.999), "1.00"),
        (format_number(0.0), ".00"),
        (format_number(-0.25), "-.25"),
        (format_number(None), "-"),
        (format_ratio(3.97), "4.0x"),
        (format_ratio(None), "-"),
        (format_bytes(0), "0 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1024), "1.0 KiB"),
        (format_bytes(1258291.2), "1.2 MiB"),
        (format_bytes(3 * 2**40), "3072.0 GiB"),
        (format_bytes(None), "-"),
        (format_significant(200), "200"),
        (format_significant(0.5), "0.50"),
        (format_significant(12.34), "12.3"),
        (format_significant(1234.5), "1234"),
    ],
)
def test_cells(cell, expected):
    assert cell == expected


def test_format_score_shows_intervals_or_deviations():
    flat = table_row(results())
    assert format_score(flat, "em") == ".71 [.64, .77]"
    assert format_score(flat | {"em_std": 0.02}, "em") == ".714 ± .020"


# ------------------------------------------------------------------ tables


def test_the_printed_table_holds_every_number_on_unwrapped_lines():
    rows = [table_row(results()), table_row(results("full_context (untrained)", 0.9, 1.0, truncated=12))]
    lines = printed(rows, title="test of nq", caption="first line\nsecond line")
    assert max(len(line.rstrip()) for line in lines) <= 120
    scores, cost = [line for line in lines if line.startswith("comi ")]
    assert scores.split("  ")[0] == "comi (untrained)" and " 4.0x" in scores and scores.count(".71 [.64, .77]") == 4
    for cell in (".71 [.64, .77]", "200", "4.0x", "123", "1.2 MiB", "12.3", "0.50", "33", "1234"):
        assert cell in cost
    assert lines.count("first line") == lines.count("second line") == 1
    assert "full_context (untrained): 12 of 200 prompts were truncated" in lines
    assert "run outputs/a/1: comi, full_context (untrained)" in lines
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_output_to_a_file_does_not_depend_on_the_terminal_width(monkeypatch, capsys, columns):
    rows = [table_row(results("a_reader_with_a_rather_long_name", run="outputs/" + "long/" * 40))]
    print_table(rows, "title")
    wanted = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", columns)
    print_table(rows, "title")
    assert capsys.readouterr().out == wanted
    assert any(
        line.startswith("run outputs/long/") and line.endswith("a_reader_with_a_rather_long_name")
        for line in wanted.splitlines()
    )


def test_the_seeds_column_appears_only_for_several_seeds():
    flat = table_row(results())
    assert "seeds" not in "\n".join(printed([flat | {"seeds": 1}], title="t"))
    assert "seeds" in "\n".join(printed([flat | {"seeds": 3}], title="t"))


def test_bytes_of_documents_have_a_column_where_a_row_knows_them():
    former, known = table_row(results()), table_row(results("ram", document_bytes=2048.0))
    assert "document" not in "\n".join(printed([former], title="t")) + markdown_table([former])
    lines = markdown_table([former, known]).splitlines()
    place = [cell.strip() for cell in lines[0].split("|")].index("document")
    assert [line.split("|")[place].strip() for line in lines[2:4]] == ["-", "2.0 KiB"]


def test_many_runs_are_summarised():
    rows = [
        table_row(results()) | {"runs": [f"outputs/a/{i}" for i in range(20)]},
        table_row(results("ram", run="outputs/b/1")),
    ]
    assert run_summary(rows) == ["20 runs below outputs/a: comi", "run outputs/b/1: ram"]
    assert run_summary(rows[1:]) == ["run outputs/b/1: ram"]


def test_markdown_has_one_line_per_row_with_as_many_cells_as_the_header():
    lines = markdown_table(
        [table_row(results("a|b")), table_row(results("no_context", ratio=None, truncated=3))]
    ).splitlines()
    header, rule, first, second, empty, note = lines
    assert (
        first.startswith("| a\\|b (untrained) | 4.0x | .71 [.64, .77] |")
        and "| 1.2 MiB | 12.3 | 0.50 | 33 | 1234 |" in first
    )
    assert header.count("|") == rule.count("|") == first.count("|") - 1 == second.count("|")
    assert empty == "" and note == "- no_context (untrained): 3 of 200 prompts were truncated"
