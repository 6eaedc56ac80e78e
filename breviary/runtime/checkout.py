"""The process around a run: which checkout, which device and precision, how long each phase took."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import datasets
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("breviary", "ram", "comi", "comet", "data")


def require_checkout() -> None:
    """Fails when one of our package names resolves outside this checkout.

    `data`, `comet` and `ram` are also other people's packages; an installed one must never be imported in
    place of ours.

    Raises: RuntimeError naming the package and where it came from.
    """
    for name in (name for name in PACKAGES if (ROOT / name).is_dir()):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [p for p in [spec.origin, *(spec.submodule_search_locations or [])] if p]
        if not any(Path(place).resolve().is_relative_to(ROOT) for place in places):
            raise RuntimeError(
                f"package '{name}' resolves to {places or 'nothing'}, not to {ROOT}: "
                "run train.py, eval.py and scripts from this checkout"
            )


def quiet_libraries() -> None:
    """Silences other libraries' bars and start-up notes; our own lines say what happens."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
