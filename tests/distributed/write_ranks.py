"""python write_ranks.py FILE RANKS ...: for each R, rank 0 writes the rank and pipeline of each launched process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

from breviary.runtime.distributed import (
    end_process_group,
    gather_rows,
    rank,
    start_process_group,
    strip_launcher_arguments,
    world_size,
)
from breviary.training.pipeline import describe_pipelines, init_pipeline_group

if __name__ == "__main__":
    strip_launcher_arguments()
    start_process_group(torch.device("cpu"), 60)
    reports = {}
    for ranks in map(int, sys.argv[2:]):
        group = init_pipeline_group(ranks)  # connects neighbours
        reports[ranks] = {
            "mapping": describe_pipelines(world_size(), ranks),
            "rows": gather_rows(
                [
                    {
                        "node": os.environ["NODE"],
                        "local": int(os.environ["LOCAL_RANK"]),
                        "rank": rank(),
                        "pipeline": group.pipeline,
                        "index": group.index,
                        "members": list(group.members),
                    }
                ]
            ),
        }
    if rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(reports))
    end_process_group()
