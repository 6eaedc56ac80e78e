"""Computes a table: trains what is missing, evaluates, and goes on where a call was killed.

A training is finished where a run of its configuration is; an evaluation where results of its identity are. A cell that
fails costs its line: the reason and the log are kept, and the other cells go on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from breviary.report.tables.blocks import Outcome, metrics_of
from breviary.report.tables.cells import command_words, is_script
from breviary.report.tables.form import FURTHER_TITLES, cell_commands, cell_name, cells_of
from breviary.report.tables.measurements import find_measurement
from breviary.report.tables.trainings import CellFailed, Tools, Trainings, launch, log_file, logged
from breviary.runtime.files import write_json
from breviary.runtime.spelling import setting

STATE = "cells.json"  # of a table's folder: {"ROW/DATASET": {"commands", "results" or "reason" and "log"}}
VARIED = ("compressor", "generation")  # sections that rows of one evaluation may differ in


@dataclass
class Group:
    """Cells that one evaluation computes: the first with its own words, the others as variants of it."""

    train: list[str]
    words: list[str]
    cells: list[tuple[dict[str, Any], str]]
    changes: list[dict[str, Any]] = field(default_factory=list)
    is_script: bool = False


class TableRun:
    """One call that computes cells of a table.

    table    from `load_published_table`, its runs added; its `folder` holds files, state and logs
    outputs  paths.outputs of trainings and evaluations
    """

    def __init__(self, table: dict[str, Any], outputs: str, tools: Tools):
        self.table, self.folder, self.outputs, self.tools = table, Path(table["folder"]), outputs, tools
        self.outcomes: dict[str, Outcome] = {}
        self._measured: dict[str, CellFailed | None] = {}  # by command: each is started once a call
        self._trainings = Trainings(self.folder, outputs, tools)
        self._state = read_state(self.folder)

    def run(self, only: Sequence[str], given: Mapping[str, Outcome], written: Callable[[], Any]) -> None:
        """Computes the wanted cells, group by group; `written` is called after each, to write the files.

        given  outcomes of the cells that have a run in the table
        """
        self.outcomes |= given
        cells = [cell for cell in cells_of(self.table, only) if cell_name(*cell) not in given]
        done = 0
        for group in groups_of(self.table, cells):
            names = [cell_name(*cell) for cell in group.cells]
            self.tools.say(f"[{done + 1}/{len(cells)}] {', '.join(names)}")
            for name, outcome in zip(names, self._compute(group)):
                self._keep(name, group, outcome)
            done += len(names)
            written()

    def _keep(self, name: str, group: Group, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        [cell] = [cell for cell in group.cells if cell_name(*cell) == name]
        entry: dict[str, Any] = {"commands": cell_commands(self.table, *cell)}
        if outcome.results:
            entry["results"] = outcome.results.get("folder") or outcome.results.get("run")
        else:
            entry |= {"reason": outcome.reason, "log": outcome.log}
            self.tools.say(f"  {name} failed: {outcome.reason}" + (f"; log: {outcome.log}" if outcome.log else ""))
        self._state[name] = entry
        write_json(self.folder / STATE, self._state)

    def _compute(self, group: Group) -> list[Outcome]:
        """The outcome of each cell of a group."""
        try:
            if group.is_script:
                return [Outcome(self._measure(*cell)) for cell in group.cells]
            start = self._trainings.run_of(group.train)
            run = [setting("run", str(start))] if start else []
            words = [*run, *group.words, *self._fixed_words()]
            return self._evaluate(words, group.changes[1:], group.cells)
        except CellFailed as failed:
            if len(group.cells) == 1 or failed.is_training:
                return [_failed(failed) for _ in group.cells]
        # One of several rows failed: each alone, so that the others do not pay for it. Finished ones are found again.
        outcomes = [self._try(words, [], group.cells[:1])]
        for cell, changes in zip(group.cells[1:], group.changes[1:]):
            if outcomes[0].results:
                outcomes.append(self._try(words, [changes], [group.cells[0], cell]))
            else:
                own = [*run, *_others(group.words), *(setting(*one) for one in changes.items()), *self._fixed_words()]
                outcomes.append(self._try(own, [], [cell]))
        return outcomes

    def _fixed_words(self) -> list[str]:
        return ["baselines=[]", setting("paths.outputs", self.outputs)]

    def _try(
        self, words: list[str], variants: list[dict[str, Any]], cells: Sequence[tuple[dict[str, Any], str]]
    ) -> Outcome:
        """The outcome of the last of `cells`."""
        try:
            return self._evaluate(words, variants, cells)[-1]
        except CellFailed as failed:
            return _failed(failed)

    def _evaluate(
        self, words: list[str], variants: list[dict[str, Any]], cells: Sequence[tuple[dict[str, Any], str]]
    ) -> list[Outcome]:
        log = log_file(self.folder, "evaluate", cell_name(*cells[-1]))
        self.tools.say(f"  evaluates; log: {log}")
        with logged(log):
            results = self.tools.evaluate(words, variants)
            assert len(results) == len(cells), (len(results), len(cells))
            for result, (_, dataset) in zip(results, cells):
                for name in self._metrics(dataset):
                    if name in FURTHER_TITLES and name not in result["metrics"]:
                        result["metrics"][name] = self.tools.further(result, name)
        return [Outcome(result) for result in results]

    def _metrics(self, dataset: str) -> list[str]:
        return metrics_of(self.table, dataset)

    def _measure(self, row: dict[str, Any], dataset: str) -> dict[str, Any]:
        """A cell of a script: from its file, which the script writes first where the file lacks the cell."""
        [command] = cell_commands(self.table, row, dataset)
        wanted = row, dataset, self.table["folder"], self._metrics(dataset)
        with contextlib.suppress(ValueError):
            return find_measurement(*wanted)
        log = log_file(self.folder, "measure", row["id"])
        if command not in self._measured:
            self._measured[command] = None
            try:
                self.tools.say(f"  measures: {command}; log: {log}")
                launch(self.tools, command, [], log)
            except CellFailed as failed:
                self._measured[command] = failed
        if (earlier := self._measured[command]) is not None:
            raise earlier
        try:
            return find_measurement(*wanted)
        except ValueError as error:
            raise CellFailed(str(error), log) from error


# ------------------------------------------------------------------ groups


def groups_of(table: Mapping[str, Any], cells: Sequence[tuple[dict[str, Any], str]]) -> list[Group]:
    """The cells in groups that one evaluation computes, in the order of their first cells.

    Cells of equal training, backbone and data that differ in settings of the compressor or the answers alone share
    encoded contexts as variants of the first. Each script's cell is a group of its own.
    """
    groups: list[Group] = []
    for row, dataset in cells:
        *train, last = cell_commands(table, row, dataset)
        if is_script(last):
            groups.append(Group([], [], [(row, dataset)], [{}], is_script=True))
            continue
        words = command_words(last)
        changes = {key: yaml.safe_load(value) for key, value in map(_split, words) if key.split(".")[0] in VARIED}
        for group in groups:
            same = not group.is_script and group.train == train and _others(group.words) == _others(words)
            if same and _is_variant(group.changes[0], changes):
                group.cells.append((row, dataset))
                group.changes.append(changes)
                break
        else:
            groups.append(Group(train, words, [(row, dataset)], [changes]))
    return groups


def _split(word: str) -> tuple[str, str]:
    key, _, value = word.lstrip("+").partition("=")
    return key, value


def _others(words: Sequence[str]) -> list[str]:
    return sorted(word for word in words if _split(word)[0].split(".")[0] not in VARIED)


def _is_variant(first: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Whether `changes` on top of `first` are `changes` alone: they set what `first` sets, or replace its section."""
    kept = {key for key in first if key.split(".")[0] != "compressor" or "compressor" not in changes}
    return bool(changes) and kept <= changes.keys()


# ------------------------------------------------------------------ state and logs


def read_state(folder: Path) -> dict[str, Any]:
    """What earlier calls kept of each cell. Raises: ValueError where the file is damaged."""
    file = folder / STATE
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); remove it: finished runs and results are found again"
        ) from error


def evaluated_cells(table: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(results of the finished cells, entries of the failed ones), as earlier calls kept them; for plans."""
    state, finished = read_state(Path(table["folder"])), {}
    for row, dataset in cells_of(table):
        name = cell_name(row, dataset)
        if row["measure"]:
            with contextlib.suppress(ValueError):
                finished[name] = find_measurement(row, dataset, table["folder"], metrics_of(table, dataset))["run"]
        entry = state.get(name, {})
        if entry.get("commands") == cell_commands(table, row, dataset) and Path(entry.get("results") or "").exists():
            finished[name] = finished.get(name) or entry.get("results") or ""
    finished = {name: place for name, place in finished.items() if place}
    return finished, {name: entry for name, entry in state.items() if "reason" in entry}


def _failed(failed: CellFailed) -> Outcome:
    return Outcome(reason=failed.reason, log=str(failed.log) if failed.log else None)
