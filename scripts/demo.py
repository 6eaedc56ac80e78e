"""The demo: trains five readers on short lists of invented facts and compares them on long ones, in one table.

    make demo
    python scripts/demo.py
    python scripts/demo.py train.steps=120 paths.outputs=outputs/short
    python scripts/demo.py dataset.facts=8 dataset.test_size=20

Settings apply to every training; those of the data, the paths and eval_batch_size apply to the evaluations, too. It
takes 3 to 14 minutes on two CPU cores. The model of 135M weights is downloaded first, where it is missing.
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

READERS = ("attention", "comi", "mean_pool", "full_context", "no_context")
TRAINING = ("dataset.facts=12", "train.batch_size=4", "train.eval_examples=0")
QUESTIONS = ("dataset.facts=36", "dataset.test_size=60", "eval_batch_size=4", "baselines=[]")
CAPTION = (
    "Held-out invented facts, 36 per context; chance is EM .08. 95% intervals; NLL in nats per token. All readers had\n"
    "equally many training steps of LoRA on the same decoder, on contexts of 12 facts. attention: the question's\n"
    "attention below layer 18 chooses a quarter of the context for the layers above. comi and mean_pool join at\n"
    "depth: merged states enter the decoder's stream at layer 8. The published form (separate encoder, memory at the\n"
    "decoder's input) needs longer training than the demo: python train.py experiment=comi_facts compressor.join=input"
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
            *TRAINING,
        ]
        cfg = compose_config("train", [*overrides, *sys.argv[1:]])
        run = train(cfg)
        of_both = [word for word in sys.argv[1:] if word.startswith(("paths.", "dataset.", "eval_batch_size="))]
        [results] = session.evaluate(compose_evaluation([setting("run", str(run)), *QUESTIONS, *of_both]))
        rows.append(table_row(results))
    minutes = (time.perf_counter() - start) / 60
    table = Path(cfg.paths.outputs) / "demo" / "table.json"
    write_table(table, rows)
    print_table(
        rows,
        title=f"Five readers after {cfg.train.steps} steps ({minutes:.1f} minutes in all)",
        caption=f"{CAPTION}\nThe same table as JSON: {table}",
    )
    reading_map = command("scripts/reading_map.py", table.parent / "attention")
    print(next_line(reading_map, command("train.py", "experiment=ram_facts")))


if __name__ == "__main__":
    run_cli(main, CONFIG, has_flags=False)
