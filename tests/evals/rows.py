"""Result rows for the tests of tables and plots."""

from __future__ import annotations

from typing import Any


def result_row(loss: str = "uniform", benchmark: str = "gsm8k", **changes: Any) -> dict[str, Any]:
    """A complete row; `changes` replaces fields."""
    row: dict[str, Any] = {
        "target": "embedded",
        "drafter": f"runs/{loss}",
        "loss": loss,
        "benchmark": benchmark,
        "prompts": 40,
        "temperature": 0.0,
        "block_size": 4,
        "verifier": "greedy",
        "tau_micro": 2.0,
        "tau_macro": 1.9,
        "tau_ci95": [1.8, 2.25],
        "accepted_per_round": 1.0,
        "accept_at": [0.6, 0.5, None],
        "rounds": 100,
        "tokens": 200,
        "tokens_per_s": 900.0,
        "baseline_tokens_per_s": 600.0,
        "speedup": 1.5,
        "compile_s": 4.0,
        "mismatched_prompts": 0,
    }
    return {**row, **changes}
