"""Guards at the start of every entry point: our packages come from this checkout, other libraries stay quiet.

Imports the standard library only, so that scripts without a model start fast.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("breviary", "ram", "comi", "comet", "data")


def require_checkout() -> None:
    """Raises RuntimeError when one of our package names resolves outside this checkout.

    `data`, `comet` and `ram` are also names of published packages. An installed one must not shadow ours.
    The message names the package and its location.
    """
    for name in (name for name in PACKAGES if (ROOT / name).is_dir()):
        spec = importlib.util.find_spec(name)
        paths = [] if spec is None else [p for p in [spec.origin, *(spec.submodule_search_locations or [])] if p]
        if not any(Path(path).resolve().is_relative_to(ROOT) for path in paths):
            raise RuntimeError(
                f"package '{name}' resolves to {paths or 'nothing'}, not to {ROOT}: "
                "run train.py, eval.py and scripts from this checkout"
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
