"""What a reader must declare whose forward pass takes a number of chunks that depends on the data."""

from __future__ import annotations

from typing import Any


class ChunkedReader:
    """Mixin of readers that process a batch in a data-dependent number of chunks (CoMeT).

    Such a reader calls its modules a different number of times on each rank, which ZeRO-3 cannot follow: configuration
    checks refuse engine=zero3 for it. In return, several ranks can process one batch together, as a pipeline.
    The Trainer and the configuration checks look for this class.
    """

    schedules: tuple[str, ...] = ()  # values of engine.schedule; () = a batch is processed by one rank

    def join_pipeline(self, rank: Any, schedule: str) -> None:
        """From now on, in training, this rank processes every batch together with the other ranks of its pipeline.

        All ranks of a pipeline get the same batch. `loss`, its gradients and `counts` of one rank are its share: their
        sums over the pipeline are those of the batch.
        rank      a `training.pipeline.PipelineGroup`
        schedule  one of `schedules`
        """
        raise NotImplementedError

    @property
    def learning_rate_factors(self) -> dict[str, float]:
        """{prefix of a parameter's name: factor on its learning rate}; 1 elsewhere."""
        return {}
