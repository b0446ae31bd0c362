"""Small result files for the tests of pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxspec.evals.report import write_json
from tests.evals.rows import diffusion_row, result_row

PROVENANCE = {
    "command": "python eval.py --config configs/quickstart.py --output results.json",
    "config": {"name": "quickstart", "evaluation": {"benchmarks": ["gsm8k", "mbpp"], "prompts": 8}},
    "commit": "0123456789abcdef",
    "dirty": False,
    "versions": {"python": "3.11.2", "jax": "0.10.2"},
    "devices": {"platform": "cpu", "kind": "cpu", "count": 1},
    "seed": 0,
    "time": "2026-01-02T03:04:05+00:00",
}
TRACE: dict[str, Any] = {
    "prompt_id": "gsm8k/7",
    "prompt": "<|user|>\nHow many?<|end|>\n",
    "prompt_tokens": 9,
    "first": "There",
    "stopped": True,
    "rounds": [
        {"drafted": 3, "accepted": [" are"], "bonus": [" four"], "rejected": [" two", " apples"]},
        {"drafted": 3, "accepted": [" apples", ".", "\n"], "bonus": ["So"], "rejected": []},
        {"drafted": 3, "accepted": [], "bonus": ["<|end|>"], "rejected": [" it", " is", " 4"]},
    ],
}


def prompt_records(tau: float, *, prompts: int = 8) -> list[dict[str, Any]]:
    """Of `by_prompt`: half of the prompts are short, half are long."""
    return [
        {
            "prompt_id": f"p{number}",
            "prompt_tokens": 40 if number % 2 else 70,
            "tokens": round(20 * tau) + number % 3 - 1,
            "rounds": 20,
        }
        for number in range(prompts)
    ]


def length_records(tau: float) -> list[dict[str, Any]]:
    """Of `by_context`; the last bin has too few rounds to be plotted."""
    return [
        {
            "tokens_from": low,
            "tokens_below": high,
            "responses": 8,
            "rounds": rounds,
            "tokens": round(tau * rounds),
            "tau_ci95": [tau - 0.2, tau + 0.2] if rounds > 30 else None,
        }
        for low, high, rounds in ((32, 48, 60), (48, 64, 80), (64, 96, 12))
    ]


def drafter_rows() -> list[dict[str, Any]]:
    """Two drafters on two benchmarks, with everything that a row may have."""
    taus = {("uniform", "gsm8k"): 2.0, ("full", "gsm8k"): 2.5}
    taus |= {("uniform", "mbpp"): 1.5, ("full", "mbpp"): 1.65}
    return [
        result_row(
            loss,
            benchmark,
            prompts=8,
            turns=8,
            tau_micro=tau,
            tau_ci95=[tau - 0.2, tau + 0.25],
            accept_at=[0.6, 0.5, None],
            reached_at=[160, 96, 0],
            accept_at_intervals=[[0.5, 0.7], [0.4, 0.6], None],
            speedup=tau - 0.8,
            speedup_ci95=[tau - 1.0, tau - 0.6],
            timed_prompts=6,
            round_ms=1.2,
            autoregressive_step_ms=0.8,
            mismatched_prompts=int(loss == "full"),
            by_prompt=prompt_records(tau),
            by_context=length_records(tau),
            trace=TRACE,
        )
        for (loss, benchmark), tau in taus.items()
    ]


def diffusion_rows() -> list[dict[str, Any]]:
    """A base decoder, and one with drafts."""
    return [
        diffusion_row(pass_ratio=None, below_break_even=None, nfe_reduction=1.0),
        diffusion_row(
            "spiffy", drafts_per_pass=3, nfe_by_block=[60, 12], nfe_reduction_ci95=[1.2, 1.5]
        ),
    ]


def write_results(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a result file."""
    return write_json(file, provenance=PROVENANCE, results=rows)
