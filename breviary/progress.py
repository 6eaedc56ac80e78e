"""The line that training prints: where it stands, how fast, how long still."""

from __future__ import annotations

import time
from typing import Any

from breviary.runtime import peak_memory_bytes


class ProgressLine:
    """Counts tokens and time since the start, or since the step that a run was resumed at."""

    def __init__(self, total: int, first: int):
        self.total, self.first = total, first
        self.start = time.perf_counter()
        self.tokens = self.slots = 0.0

    def add(self, tokens: float, slots: float) -> None:
        """One optimizer step's context tokens and memory slots."""
        self.tokens, self.slots = self.tokens + tokens, self.slots + slots

    def measures(self) -> dict[str, float | None]:
        """Seconds, context tokens a second, peak memory in bytes, effective ratio so far."""
        seconds = time.perf_counter() - self.start
        return {"seconds": round(seconds, 2), "tokens_per_s": round(self.tokens / max(seconds, 1e-9), 1),
                "peak_memory_bytes": peak_memory_bytes(),
                "effective_ratio": round(self.tokens / self.slots, 3) if self.slots else None}

    def text(self, row: dict[str, Any]) -> str:
        """The line for a row of metrics."""
        step = row["step"]
        if "eval_nll" in row:
            scores = "  ".join(f"{k[5:]} {v:.3f}" for k, v in row.items() if k.startswith("eval_"))
            return f"  validation at step {step}: {scores}"
        parts = [f"step {step}/{self.total}"]
        known = {"loss": "loss {:.4f}", "grad_norm": "grad {:.2f}", "learning_rate": "lr {:.1e}"}
        parts += [form.format(row[key]) for key, form in known.items() if key in row]
        own = ("step", "examples", "seconds", "tokens_per_s", "peak_memory_bytes", "effective_ratio", *known)
        parts += [f"{key} {value:.4f}" for key, value in row.items() if key not in own]
        parts.append(f"{row['tokens_per_s']:.0f} tok/s")
        parts.append(f"{row['peak_memory_bytes'] / 2**30:.1f} GiB")
        if row["effective_ratio"]:
            parts.append(f"{row['effective_ratio']:.2f}x")
        left = (self.total - step) * row["seconds"] / max(step - self.first, 1)
        return "  ".join(parts) + f"  ETA {int(left) // 60}:{int(left) % 60:02d}"
