"""The demo: four readers learn invented facts and are compared in one table. `make demo`, or
`python scripts/demo.py [key=value ...]` with overrides for every training (e.g. train.steps=120).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from breviary.runtime.checkout import ROOT, require_checkout
from breviary.runtime.device import fast_dtype

require_checkout()

import time

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import open_dict

from breviary.config.build import build_backbone
from breviary.config.errors import run_cli
from breviary.evaluation.table import print_table, table_row, write_table
from breviary.runs.checkpoints import last_checkpoint
from breviary.runs.folders import config_hash
from eval import evaluate_reader
from breviary.backbones.fetching import get_backbone
from train import config_keys, train

READERS = ("comi", "mean_pool", "full_context", "no_context")
CAPTION = (
    "Held-out invented facts, 4 a context; chance is EM .08. 95% bootstrap intervals; NLL in nats a token. All four\n"
    "had the same number of training steps of LoRA on the same decoder. comi and mean_pool join at depth: merged\n"
    "states enter the decoder's stream at layer 8. The published form (own encoder, memory at the decoder's input)\n"
    "does not learn this in demo time; try it: python train.py experiment=comi_facts compressor.join=input"
)


def main() -> None:
    """Trains, evaluates, prints and writes outputs/demo/table.json."""
    start = time.perf_counter()
    get_backbone("smollm2_135m")
    rows, known, dtype = [], {}, fast_dtype()
    print(f"computing in {dtype}, which is the faster of bfloat16 and float32 here", flush=True)
    for number, reader in enumerate(READERS):
        print(f"\n[{number + 1}/{len(READERS)}] {reader}: train, then answer held-out questions", flush=True)
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(
                "train",
                [
                    f"experiment={reader}_facts",
                    f"name=demo/{reader}",
                    f"reader={reader}",
                    f"backbone.dtype={dtype}",
                    "train.eval_examples=0",
                    *sys.argv[1:],
                ],
            )
        folder = train(cfg)
        with open_dict(cfg):
            cfg.run, cfg.split = str(folder), "test"  # what eval.py's own keys say
        examples = instantiate(cfg.dataset).examples("test")
        results = evaluate_reader(
            cfg, examples, folder / "eval" / config_hash(cfg) / reader, last_checkpoint(folder), known
        )
        rows.append(table_row(results))
    minutes = (time.perf_counter() - start) / 60
    table = Path(cfg.paths.outputs) / "demo" / "table.json"
    write_table(table, rows)
    print_table(
        rows,
        title=f"Four readers after {cfg.train.steps} steps ({minutes:.1f} minutes in all)",
        caption=f"{CAPTION}\nBackbone: {build_backbone(cfg).description}. The same as JSON: {table}",
    )


if __name__ == "__main__":
    run_cli(main, config_keys)
