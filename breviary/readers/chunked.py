"""Mixin of readers that process a batch in a number of chunks that depends on the data."""

from __future__ import annotations

from typing import Any


class ChunkedReader:
    """Mixin of readers that process a batch in a data-dependent number of chunks (CoMeT).

    Such a reader calls its modules a different number of times on each rank, so configuration checks reject
    engine=zero3. Several ranks can process one batch together, as a pipeline.
    """

    schedules: tuple[str, ...] = ()  # values of engine.schedule; () = a batch is processed by one rank

    def join_pipeline(self, rank: Any, schedule: str) -> None:
        """Makes this rank, in training, process every batch together with the other ranks of its pipeline.

        All ranks of a pipeline receive the same batch. `loss`, its gradients and `counts` are partial: their sums over
        the ranks are those of the batch.

        rank      a `training.pipeline.PipelineGroup`
        schedule  one of `schedules`
        """
        raise NotImplementedError

    @property
    def learning_rate_factors(self) -> dict[str, float]:
        """{prefix of a parameter's name: factor on its learning rate}; 1 elsewhere."""
        return {}
