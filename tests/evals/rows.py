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


def diffusion_row(decoder: str = "plain", **changes: Any) -> dict[str, Any]:
    """A complete row of a diffusion language model's decoder; `changes` replaces fields."""
    row: dict[str, Any] = {
        "target": "llada",
        "decoder": decoder,
        "benchmark": "gsm8k",
        "prompts": 3,
        "turns": 3,
        "skipped_prompts": 0,
        "temperature": 0.0,
        "response_length": 8,
        "block_length": 4,
        "unmasking": "Scheduled(steps=4)",
        "caching": "dual",
        "block_causal": False,
        "guidance": 0.0,
        "layout": None,
        "graph_size": 0,
        "drafts_per_pass": 0,
        "nfe": 18,
        "nfe_per_response": 6.0,
        "tokens": 20,
        "filled_tokens": 24,
        "tokens_per_pass": 4 / 3,
        "base_nfe": 24,
        "nfe_reduction": 4 / 3,
        "nfe_by_block": [9, 9],
        "steps_by_block": [12, 12],
        "accepted_depth": 0.5,
        "accepted_depth_by_block": [0.5, None],
        "identical": 3,
        "identical_share": 1.0,
        "tokens_per_s": 1234.5,
        "baseline_tokens_per_s": 1000.0,
        "speedup": 1.2345,
        "compile_s": 1.5,
        "block_pass_ms": 1.0,
        "drafted_pass_ms": 1.25,
        "pass_ratio": 1.25,
        "below_break_even": True,
    }
    return {**row, **changes}
