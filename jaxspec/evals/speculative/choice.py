"""The choice of a strategy by measurement (evaluation.strategy "auto").

What a drafter is worth depends on the machine: on a CPU every verified row costs time, on an
accelerator 16 rows may cost as much as one. So every option decodes the same few prompts, one at a
time and in turns, and the one with the most tokens per second is taken:

  tokens per second = tau / time of a round

An option must be clearly faster than no drafting: by `LEAST_GAIN`, and with an interval over the
prompts that lies above 1. Otherwise nothing is drafted.

Options are blocks of the drafter's own size, of half and of a quarter of it, judged by each rule
that fits the temperature; best-first trees, where the drafter can give them; and no drafting. The
output is exact in all of them, and equal at temperature 0. None of the prompts is measured
afterwards, so the figures of the report are not those that the choice was made by.

>>> block = Measured("block 8, greedy", 2.4, 4.0, speedup_ci95=(1.1, 1.3))
>>> choice = Choice((Measured("no drafting", 1.0, 2.0), block), 6)
>>> choice.chosen.name, choice.chosen.tokens_per_s
('block 8, greedy', 600.0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxspec.config import DataConfig, EvaluationConfig
from jaxspec.data.examples import Example
from jaxspec.decoding import Adaptive, Autoregressive
from jaxspec.decoding.placement import on_mesh_of
from jaxspec.drafters.protocol import ChainProposer, MarginalProposer
from jaxspec.evals.benchmarks import Reference, load_benchmark
from jaxspec.evals.clock import speedup_interval
from jaxspec.evals.intervals import Interval
from jaxspec.evals.opening import DrafterBundle, TargetBundle
from jaxspec.evals.progress import Echo
from jaxspec.evals.speculative.strategies import AnyStrategy, build_strategy, verifier_of
from jaxspec.evals.speculative.turns import take_turns_on
from jaxspec.names import for_terminal
from jaxspec.ranges import MOST_EXAMPLES

OFF = "no drafting"
TREES = (16, 32)
"""Nodes of the trees that are tried."""
LEAST_GAIN = 1.05
"""The least ratio of an option's tokens per second to those of no drafting. The best of many
options looks faster than it is, and this much is lost from one run to the next."""
_SHARES = (4, 2, 1)
"""Blocks that are tried: the drafter's own size divided by these."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One option on the calibration prompts."""

    name: str
    tau: float
    """Tokens per round."""
    round_ms: float
    """Of each prompt's fastest repeat."""
    speedup_ci95: Interval | None = None
    """Of its tokens per second divided by those of no drafting; None for too few prompts."""

    @property
    def tokens_per_s(self) -> float:
        """What the option is chosen by."""
        return 1e3 * self.tau / self.round_ms


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was measured, and what follows from it; equal measurements give an equal choice."""

    measured: tuple[Measured, ...]
    """At least one option; of equally fast ones the first is taken."""
    prompts: int
    """How many calibration prompts there were."""

    @property
    def chosen(self) -> Measured:
        """The fastest option of those that are clearly faster than no drafting; else that."""
        allowed = [*self._off, *filter(self._is_clearly_faster, self.measured)]
        return max(allowed or self.measured, key=lambda option: option.tokens_per_s)

    def sentence(self) -> str:
        """What was chosen, and against what."""
        best = self.chosen
        others = sorted(
            (option for option in self.measured if option not in (best, *self._off)),
            key=lambda option: -option.tokens_per_s,
        )
        text = (
            f"chose {best.name}: {best.tokens_per_s:,.0f} tokens/s (tau {best.tau:.2f}, round "
            f"{best.round_ms:.2f} ms)"
        )
        if others:
            text += f" against {others[0].tokens_per_s:,.0f} of {others[0].name}"
            if best.tokens_per_s < others[0].tokens_per_s:
                text += ", which is not clearly more"
        if self._off and best.name != OFF:
            text += f"; {OFF} would give {self._off[0].tokens_per_s:,.0f}"
        return f"{text}. Measured one by one on {self.prompts} prompts that are not in the table."

    @property
    def _off(self) -> tuple[Measured, ...]:
        return tuple(option for option in self.measured if option.name == OFF)

    def _is_clearly_faster(self, option: Measured) -> bool:
        """Than no drafting, which has to be among the options."""
        interval = option.speedup_ci95
        return any(option.tokens_per_s >= LEAST_GAIN * off.tokens_per_s for off in self._off) and (
            interval is None or interval[0] > 1.0
        )

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "chosen": self.chosen.name,
            "calibration_prompts": self.prompts,
            "measured": [
                {**dataclasses.asdict(option), "tokens_per_s": option.tokens_per_s}
                for option in self.measured
            ],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Choice:
        """The inverse of `as_dict`."""
        return cls(
            tuple(
                Measured(
                    each["name"],
                    each["tau"],
                    each["round_ms"],
                    tuple(each["speedup_ci95"]) if each["speedup_ci95"] else None,
                )
                for each in record["measured"]
            ),
            record["calibration_prompts"],
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """A drafter, and how it is used."""

    drafter: DrafterBundle
    settings: EvaluationConfig
    """With strategy "auto" decided."""
    strategy: AnyStrategy
    choice: Choice | None = None
    """Why it is used like this; None: it was given."""

    @property
    def drafts(self) -> bool:
        """False for the target alone."""
        return not isinstance(self.strategy, Autoregressive)

    def start_anew(self) -> None:
        """Forgets what an adaptive strategy learned: each benchmark's figures are its own."""
        if isinstance(self.strategy, Adaptive):
            self.strategy.forget()

    def params_with(self, target: TargetBundle) -> Any:
        """The parameters that the strategy takes."""
        return self.drafter.params_with(target) if self.drafts else target.params


def options(
    settings: EvaluationConfig, target: TargetBundle, drafter: DrafterBundle
) -> dict[str, EvaluationConfig]:
    """The settings that are tried, by name; only the given ones unless strategy is "auto".

    Raises:
      ValueError: settings that contradict each other or do not go with the drafter; it is named.
    """
    try:
        return _options(settings, target, drafter)
    except ValueError as error:
        raise ValueError(f"{drafter.name}: {error}") from error


def _options(
    settings: EvaluationConfig, target: TargetBundle, drafter: DrafterBundle
) -> dict[str, EvaluationConfig]:
    if settings.strategy != "auto":
        build_strategy(settings, target, drafter)
        return {"given": settings}
    plain = dataclasses.replace(settings, strategy="given")
    found = {OFF: dataclasses.replace(plain, strategy="off")}
    if not drafter.entry.drafts:
        return found
    own = build_strategy(plain, target, drafter)
    rules = {verifier_of(plain, drafter): plain}
    if settings.temperature:
        certain = dataclasses.replace(plain, verifier="point_mass", draft_temperature=0.0)
        rules = {"point_mass": certain, **rules}
    for size in sorted({max(2, own.round_tokens // share) for share in _SHARES}):
        for rule, chosen in rules.items():
            found[f"block {size}, {rule}"] = dataclasses.replace(chosen, block_size=size)
    has_one_pass = plain.denoising_passes == 1 or not drafter.entry.denoises
    if has_one_pass and isinstance(
        getattr(own, "proposer", None), MarginalProposer | ChainProposer
    ):
        # A tree holds the likeliest tokens of one pass, or continuations as they are: no draft
        # temperature.
        likeliest = dataclasses.replace(plain, draft_temperature=None, denoising_passes=1)
        for nodes in TREES:
            found[f"tree of {nodes}"] = dataclasses.replace(likeliest, tree_nodes=nodes)
    return found


def calibration_examples(
    settings: EvaluationConfig,
    *,
    measured: Mapping[str, Sequence[Example]],
    data: DataConfig,
) -> dict[str, list[Example]]:
    """The first questions of each set that are not measured.

    Args:
      settings: `calibration` names the set; "": every benchmark.
      measured: the examples of every benchmark.
      data: where files are.

    Returns:
      {} unless strategy is "auto".

    Raises:
      ValueError: all questions are measured.
    """
    if settings.strategy != "auto":
        return {}
    asked = {example.turns for examples in measured.values() for example in examples}
    names = (settings.calibration,) if settings.calibration else settings.benchmarks
    found: dict[str, list[Example]] = {}
    for name in names:
        examples = load_benchmark(name, prompts=MOST_EXAMPLES, data=data, seed=settings.seed)
        others = [example for example in examples if example.turns not in asked]
        if others:
            found[f"{name}, calibration"] = others[: settings.calibration_prompts]
    if not found:
        raise ValueError(
            "evaluation.strategy 'auto' needs questions that are not measured, but the evaluation "
            f"asks all questions of {', '.join(names)}: lower evaluation.prompts, or name another "
            "set by evaluation.calibration."
        )
    return found


def decide(
    target: TargetBundle,
    drafters: Sequence[DrafterBundle],
    tried: Sequence[Mapping[str, EvaluationConfig]],
    ask: Callable[[], Sequence[Reference[Any]]],
    *,
    kept: Sequence[Mapping[str, Any]],
    echo: Echo,
) -> list[Case]:
    """How each drafter is used.

    Args:
      target: what they draft for.
      drafters: what is measured.
      tried: the `options` of each.
      ask: gives the calibration prompts; called once, if a choice has to be measured.
      kept: rows that an earlier process measured, in the order of the drafters for each benchmark:
        they hold its choices, which stand.
      echo: where lines of text go.

    Raises:
      ValueError: see `measure_options`.
    """
    asked: Sequence[Reference[Any]] | None = None
    cases = []
    for number, (drafter, settings) in enumerate(zip(drafters, tried, strict=True)):
        strategies = {
            name: build_strategy(each, target, drafter) for name, each in settings.items()
        }
        choice = None
        if len(strategies) > 1:
            if number < len(kept):
                choice = Choice.from_dict(kept[number]["choice"])
            else:
                asked = asked or ask()
                echo(f"{for_terminal(drafter.name)}: timing {len(strategies)} ways of decoding ...")
                choice = measure_options(strategies, target, drafter, asked, settings=settings[OFF])
            who = f"{for_terminal(drafter.loss)} ({for_terminal(drafter.name)})"
            echo(f"{who}: {choice.sentence()}")
        name = choice.chosen.name if choice else next(iter(strategies))
        cases.append(Case(drafter, settings[name], strategies[name], choice))
    return cases


def measure_options(
    strategies: Mapping[str, AnyStrategy],
    target: TargetBundle,
    drafter: DrafterBundle,
    asked: Sequence[Reference[Any]],
    *,
    settings: EvaluationConfig,
) -> Choice:
    """Times every option on every calibration prompt, in turns; the fastest repeats count.

    Raises:
      ValueError: no answer is longer than its first token, which the prefill gives.
    """
    # Cut once: every strategy would otherwise hold weights of its own.
    largest = max(strategies.values(), key=lambda strategy: strategy.round_tokens)
    prompts = [prompt for reference in asked for prompt in reference.prompts]
    with on_mesh_of(target.params):
        params = largest.prepare({"target": target.params, "drafter": drafter.params})
        clocks = take_turns_on(
            [
                (strategy, params["target"] if isinstance(strategy, Autoregressive) else params)
                for strategy in strategies.values()
            ],
            prompts,
            ids=[name for reference in asked for name in reference.ids],
            repeats=settings.timing_repeats,
            seed=settings.seed,
        )
    if not all(sum(clock.steps) for clock in clocks):
        raise ValueError(
            "evaluation.strategy 'auto' cannot be decided: the target answers every calibration "
            "prompt with a single token. Name other questions by evaluation.calibration."
        )
    off = dict(zip(strategies, clocks, strict=True))[OFF]
    return Choice(
        tuple(
            Measured(
                name,
                tau=sum(clock.tokens) / sum(clock.steps),
                round_ms=1e3 * sum(clock.fastest_s) / sum(clock.steps),
                speedup_ci95=speedup_interval(clock, off, of="fastest_s", seed=settings.seed),
            )
            for name, clock in zip(strategies, clocks, strict=True)
        ),
        len(prompts),
    )
