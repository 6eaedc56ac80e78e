"""The demo: trains four readers on invented facts and compares them in one table.

    make demo
    python scripts/demo.py
    python scripts/demo.py train.steps=120 paths.outputs=outputs/short      # settings for every training

It takes 3 to 14 minutes on two CPU cores. The model of 135M weights is downloaded first, where it is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import require_checkout

require_checkout()

import time

from breviary.backbones.fetching import get_backbone
from breviary.config.compose import compose_config
from breviary.config.errors import run_cli
from breviary.evaluation.resolve import compose_evaluation
from breviary.evaluation.session import EvaluationSession
from breviary.evaluation.table import print_table, table_row, write_table
from breviary.runtime.device import fast_dtype
from breviary.runtime.spelling import command, next_line, setting
from data.text_pipeline import TEXT
from train import CONFIG, train

READERS = ("comi", "mean_pool", "full_context", "no_context")
CAPTION = (
    "Held-out invented facts, 4 per context; chance is EM .08. 95% intervals; NLL in nats per token. All\n"
    "readers had equally many training steps of LoRA on the same decoder. comi and mean_pool join at depth: merged\n"
    "states enter the decoder's stream at layer 8. The published form (separate encoder, memory at the decoder's\n"
    "input) needs longer training than the demo: python train.py experiment=comi_facts compressor.join=input"
)


def main() -> None:
    """Trains and evaluates each reader, prints the table and writes outputs/demo/table.json."""
    start = time.perf_counter()
    get_backbone("smollm2_135m")
    session, rows, dtype = EvaluationSession(TEXT), [], fast_dtype()
    print(f"dtype {dtype}, the faster of bfloat16 and float32 on this machine", flush=True)
    for number, reader in enumerate(READERS):
        print(f"\n[{number + 1}/{len(READERS)}] {reader}: train, then answer held-out questions", flush=True)
        overrides = [
            f"experiment={reader}_facts",
            f"name=demo/{reader}",
            f"reader={reader}",
            f"backbone.dtype={dtype}",
            "train.eval_examples=0",
        ]
        cfg = compose_config("train", [*overrides, *sys.argv[1:]])
        run = train(cfg)
        paths = [word for word in sys.argv[1:] if word.startswith("paths.")]
        [results] = session.evaluate(compose_evaluation([setting("run", str(run)), "baselines=[]", *paths]))
        rows.append(table_row(results))
    minutes = (time.perf_counter() - start) / 60
    table = Path(cfg.paths.outputs) / "demo" / "table.json"
    write_table(table, rows)
    print_table(
        rows,
        title=f"Four readers after {cfg.train.steps} steps ({minutes:.1f} minutes in all)",
        caption=f"{CAPTION}\nThe same table as JSON: {table}",
    )
    map_of_comi = command("scripts/reading_map.py", table.parent / "comi")
    print(next_line(map_of_comi, command("train.py", "experiment=ram_facts")))


if __name__ == "__main__":
    run_cli(main, CONFIG, has_flags=False)
