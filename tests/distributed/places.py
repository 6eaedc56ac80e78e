"""What each process of a launch finds itself to be: python places.py FILE RANKS ...; rank 0 writes a list for each R."""

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
from breviary.training.pipeline import init_pipeline_group, describe_pipelines

if __name__ == "__main__":
    strip_launcher_arguments()
    start_process_group(torch.device("cpu"), 60)
    found = {}
    for ranks in map(int, sys.argv[2:]):
        place = init_pipeline_group(ranks)  # connects neighbours
        found[ranks] = {
            "mapping": describe_pipelines(world_size(), ranks),
            "rows": gather_rows(
                [
                    {
                        "node": os.environ["NODE"],
                        "local": int(os.environ["LOCAL_RANK"]),
                        "rank": rank(),
                        "pipeline": place.pipeline,
                        "index": place.index,
                        "members": list(place.members),
                    }
                ]
            ),
        }
    if rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    end_process_group()
