"""Figure of passkey retrieval: a heat map of exact match for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from breviary.evaluation.facts import training_text, with_training


def draw_passkey_maps(file: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Draws one heat map per run: length of the text by depth of the key.

    runs  measurements from `breviary.evaluation.passkey.measure_passkey`
    A vertical line separates the lengths seen in training (left) from longer ones.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(runs), figsize=(1.5 + 4.2 * len(runs), 3.8), layout="constrained", squeeze=False
    )
    for axis, run in zip(axes[0], runs):
        image = _draw_map(axis, run)
    figure.colorbar(image, ax=axes[0].tolist(), label="exact match")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _draw_map(axis: Any, run: Mapping[str, Any]) -> Any:
    """Draws the cells of one run; returns the image, for the colour bar."""
    cells = {(cell["words"], cell["depth"]): cell for cell in run["cells"]}
    lengths, depths = (sorted({key[i] for key in cells}) for i in range(2))
    grid = np.array([[cells[words, depth]["em"]["value"] for words in lengths] for depth in depths])
    image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
    tokens = {cell["words"]: cell["tokens"] for cell in run["cells"]}
    axis.set_xticks(range(len(lengths)), [f"{tokens[words]:,}" for words in lengths])
    axis.set_yticks(range(len(depths)), [f"{depth:.2f}" for depth in depths])
    # Files of earlier versions state no training.
    title = with_training(run["reader"], training_text([run.get("training")]))
    axis.set(title=title, xlabel="tokens of the text", ylabel="depth of the key")
    seen = sum(words <= run["trained_words"] for words in lengths)
    if 0 < seen < len(lengths):
        axis.axvline(seen - 0.5, color="black", lw=1.5)
    return image
