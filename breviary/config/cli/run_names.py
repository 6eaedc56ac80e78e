"""RUN on a command line: a run folder, a folder inside or above runs, or `latest`."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from breviary.runtime.distributed import print_rank0

CONFIG = "config.yaml"  # in every run folder

FINISHED = "finished"  # in the folder of a run that trained to its end

LISTED = ".run.json"  # end of the names of the files in a sweep's folder that each list a run

LATEST = "latest"

OUTPUTS = "outputs"  # default of paths.outputs

FORMS = f"RUN is a run folder that train.py printed, a folder of runs such as outputs/comi_facts, or {LATEST}"

MAX_LISTED = 8  # names in an error message

MAX_DEPTH = 4  # folders between the one named and a run

STAMP = re.compile(r"\d{8}T\d{6}")

EVALUATIONS = "eval"  # folder of a run

CHECKPOINTS = "checkpoints"  # folder of a run


def find_run(word: str | Path, outputs: str | Path = OUTPUTS, name: str = "RUN ", wanted: str = "finished") -> Path:
    """The run folder that `word` names. Where that is another folder than `word`, a line names it.

    word     a run folder or an exported folder: itself | a folder inside a run, such as an evaluation: that run | a
             folder above runs: the newest finished one | `latest`: the newest finished run below `outputs`
    outputs  paths.outputs
    name     what the user calls the word, for messages: "RUN ", or a key such as "run="
    wanted   finished | unfinished: with a checkpoint, as resume= takes it. A run that `word` itself names may be either
    Raises: ValueError where there is no such run, with what there is.
    """
    is_latest = str(word) == LATEST
    path = Path(outputs if is_latest else os.path.expanduser(word))
    if is_run(path):
        return path
    if not path.exists():
        raise ValueError(f"{name}{word}: {_missing(path, outputs, is_latest)}")
    run = None if is_latest else _run_around(path)
    if run is not None:
        print_rank0(f"{name}{word}: inside the run {run}")
        return run
    runs = runs_below(path)
    found = [run for run in runs if _state(run) == wanted]
    if not found:
        raise ValueError(
            f"{name}{word}: {_none_unfinished(path) if wanted != 'finished' else _none_finished(path, runs)}"
        )
    count = f"newest of {len(found)} {wanted} runs" if len(found) > 1 else f"only {wanted} run"
    print_rank0(f"{name}{word}: the {count}, {found[-1]}")
    return found[-1]


def find_results_folder(word: str, outputs: str | Path = OUTPUTS) -> Path:
    """`find_run`, for commands that take an evaluation's folder as well: a folder that holds no run stays itself."""
    path = Path(word).expanduser()
    return find_run(word, outputs) if word == LATEST or not path.is_dir() or runs_below(path) else path


def is_run(path: Path) -> bool:
    """Whether this is a run folder, or a folder that scripts/export.py wrote."""
    return (path / CONFIG).is_file()


def runs_below(folder: Path) -> list[Path]:
    """Every run below `folder`, or listed by a sweep below it, finished or not, oldest first."""
    runs = {run.resolve(): run for run in _walk(folder, MAX_DEPTH)}
    return sorted(runs.values(), key=lambda run: (_started(run), run.name))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth and folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _walk(entry, depth - 1)
            elif entry.name.endswith(LISTED):
                run = Path(os.path.normpath(folder / json.loads(entry.read_bytes())["run"]))
                yield from [run] if is_run(run) else []


def _started(run: Path) -> str:
    """When a run started: its folder's name begins with the time; else the time of its configuration."""
    stamp = STAMP.match(run.name)
    changed = datetime.fromtimestamp((run / CONFIG).stat().st_mtime, UTC)
    return stamp[0] if stamp else changed.strftime("%Y%m%dT%H%M%S")


def _state(run: Path) -> str:
    """finished | unfinished (with a checkpoint to go on from) | empty."""
    if (run / FINISHED).exists():
        return "finished"
    return "unfinished" if any((run / CHECKPOINTS).glob("checkpoint-*")) else "empty"


def _run_around(path: Path) -> Path | None:
    """The run of an evaluation, RUN/eval/..., or of a file of RUN. A checkpoint is no run: it is one of several."""
    for parent in path.parents:
        if is_run(parent):
            inside = path.relative_to(parent).parts
            return parent if len(inside) == 1 and path.is_file() or inside[0] == EVALUATIONS else None
    return None


def _missing(path: Path, outputs: str | Path, is_latest: bool) -> str:
    """Why `path` names no run: what its nearest existing parent has, and the runs below `outputs`."""
    if is_latest:
        return f"there is no folder {outputs} yet; train first, e.g. python train.py experiment=comi_facts"
    parent = next(parent for parent in path.parents if parent.exists())
    wanted = path.relative_to(parent).parts[0]
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
    near = difflib.get_close_matches(wanted, names, n=1)
    message = f"no such folder; {FORMS}"
    if near:
        message += f"; the nearest right one is {parent / near[0]}"
    elif names and len(parent.parts) > 1:
        message += f"; {parent} holds {_listed(names)}"
    runs = [str(run) for run in runs_below(Path(outputs)) if (run / FINISHED).exists()]
    return message + (f"; finished runs: {_listed(runs[::-1])}" if runs else f"; no run is finished below {outputs}")


def _none_unfinished(path: Path) -> str:
    """Why a folder holds no run to resume."""
    if CHECKPOINTS in path.parts:
        return "a checkpoint is no run; give its run, which goes on from its last checkpoint"
    return "no run below it is unfinished and has a checkpoint; give never, auto, or a run folder that train.py printed"


def _none_finished(path: Path, runs: list[Path]) -> str:
    """Why a folder holds no finished run, and what it holds."""
    if CHECKPOINTS in path.parts:
        return "a checkpoint is no run; give its run, and checkpoint=best or checkpoint=last"
    if runs:
        unfinished = _listed([str(run) for run in runs[::-1]])
        return f"no run below it is finished; an unfinished one must be named itself: {unfinished}"
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    what = f"it holds {_listed(names)}" if names else "it is a file" if path.is_file() else "it is empty"
    return f"no run folder (no {CONFIG} in it or below); {what}; {FORMS}"


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
