"""Guards at the start of every entry point: our packages come from this checkout, other libraries stay quiet.

Imports the standard library only, so that scripts without a model start fast.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("breviary", "ram", "comi", "comet", "data")


def require_checkout() -> None:
    """Ends an entry point, exit code 2, with the messages of `foreign_packages` where there are any."""
    problems = foreign_packages()
    if problems:
        print(*(f"error: {problem}" for problem in problems), sep="\n", file=sys.stderr)
        raise SystemExit(2)


def foreign_packages(names: Iterable[str] = PACKAGES) -> list[str]:
    """An error message for each package of ours that Python finds elsewhere than in this checkout, or nowhere.

    `data`, `comet` and `ram` are also names of published packages, and of folders in other projects. Python imports the
    first on its path, and only one in a process.
    """
    problems = []
    for name in (name for name in names if (ROOT / name).is_dir()):
        places = _places(name)
        # Not ROOT itself: it may hold an environment, with other people's packages in it.
        if not any(place.resolve().is_relative_to(ROOT / name) for place in places):
            problems.append(_conflict(name, places))
    return problems


def _places(name: str) -> list[Path]:
    """Files and folders of a package: of the imported one, else of the one that Python would import."""
    module = sys.modules.get(name)
    if module is not None:
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    else:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    return [Path(place) for place in places if place]


def _conflict(name: str, places: list[Path]) -> str:
    """Which other package is found where, and what to do."""
    if not places:
        return f"package '{name}': Python does not find {ROOT / name}; run: pip install -e {ROOT}"
    found = places[0].parent if places[0].name == "__init__.py" else places[0]
    problem = f"package '{name}': Breviary needs {ROOT / name}, but Python finds {found} first"
    if {"site-packages", "dist-packages"}.isdisjoint(found.parts):
        return (
            f"{problem}; one process cannot import both: rename that one, or call Breviary from a script in another "
            f"folder than {found.parent}"
        )
    import importlib.metadata  # slow, and needed here only

    owners = importlib.metadata.packages_distributions().get(name, [])
    return (
        f"{problem}{f' (installed by {owners[0]})' if owners else ''}; one process cannot import both: use an "
        f"environment without it, or, where nothing here imports it, set PYTHONPATH={ROOT}"
    )


def quiet_libraries() -> None:
    """Disables the progress bars and start-up notes of other libraries. Imports torch, transformers and datasets."""
    import datasets
    import torch
    import transformers

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
