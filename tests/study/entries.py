"""Lines of the tables of a study, for tests of what shows them."""

from __future__ import annotations

from typing import Any


def study_entry(loss: str, benchmark: str = "gsm8k", **changes: Any) -> dict[str, Any]:
    """A line that was measured with two seeds; `changes` are its other fields."""
    return {
        "target": "small",
        "decoding": "block",
        "benchmark": benchmark,
        "loss": loss,
        "seeds": [0, 1],
        "prompts": 40,
        "tau": {"mean": 2.0, "lowest": 1.9, "highest": 2.1},
        "tau_ci95": [1.875, 2.125],
        "gain": None,
        "gain_ci95": None,
        "gain_seeds": changes.get("seeds", [0, 1]),
        "accepted_per_round": 1.0,
        "speedup": None,
        "mismatched_prompts": 0,
        "repetitive_share": 0.25,
        **changes,
    }
