"""Memory, open files and speed of a process that runs for long: samples, and the last ones against the first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

WARM_UP = 0.2  # share of the samples that is left out
PART = 0.1  # share of the others that is compared at each end


@dataclass(frozen=True)
class Sample:
    """A process at one moment.

    resident  bytes of its resident memory
    files     its open file descriptors
    cpu       seconds of CPU time so far
    done      units of work so far: steps or questions
    """

    resident: int
    files: int
    cpu: float
    done: int


def take_sample(done: int, pid: int | None = None) -> Sample:
    """A process now, this one by default (Linux)."""
    home = Path("/proc") / str(pid or os.getpid())
    resident = int((home / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    times = (home / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Sample(resident, len(os.listdir(home / "fd")), sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), done)


def drift(samples: Sequence[Sample]) -> dict[str, Any]:
    """The last tenth of the samples after the warm-up, compared with the first tenth of them.

    resident_ratio  of the medians of the resident memory
    files           medians of the open files, first and last
    cpu_ratio       of the CPU seconds of a unit of work
    """
    after = list(samples[int(WARM_UP * len(samples)) :])
    width = max(2, int(PART * len(after)))
    assert len(after) >= 2 * width, f"{len(samples)} samples are too few"
    first, last = after[:width], after[-width:]
    return {
        "samples": len(samples),
        "done": samples[-1].done,
        "resident_bytes": [median(s.resident for s in part) for part in (first, last)],
        "resident_ratio": median(s.resident for s in last) / median(s.resident for s in first),
        "files": [median(s.files for s in part) for part in (first, last)],
        "cpu_ratio": _cpu_per_unit(last) / _cpu_per_unit(first),
    }


def _cpu_per_unit(part: Sequence[Sample]) -> float:
    return (part[-1].cpu - part[0].cpu) / max(1, part[-1].done - part[0].done)
