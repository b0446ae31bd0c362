"""Passes of decoding and a training step: time, bound, and what plans expect of other chips.

    python -m benchmarks.speed --shape embedded --dtype float32 --output runs/speed.json
    python -m benchmarks.speed --shape 1.5B --dtype bfloat16 --batches 1 16 --output runs/a.json
    python -m benchmarks.speed --shape 1.5B --dtype bfloat16 --plan-only

decode      one step; of blocks of 8, 16 and 32 slots and of a tree of 32 nodes: the draft, its
            verification, and a whole round (draft, verification, rule, bookkeeping)
prefill     prompts of one length, in one pass, with the first token
regenerate  `generate` with the target alone, prompts included, greedy and with top-p
train       one step of drafter training, with the frozen target's pass

"bound" is the least time by this device's measured bandwidth and product (`benchmarks.bounds`), and
"share" is the bound divided by the time: 100% is as fast as it can be. The columns of chips are the
least times by their published figures: nothing was run there. With --plan-only nothing is run at
all. The 1.5B shape is that of Qwen2.5-Coder-1.5B, and its weights are random.

The file of --output holds every repeat of every row. It is written after each measurement, and the
same command continues after an interruption. `python -m benchmarks.compare OLD NEW` compares two
such files.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bounds import Device, Passes, bound_of
from benchmarks.records import Records, Row, shown_ms, table
from benchmarks.shapes import SHAPES, Shape, random_like
from jaxspec.config import Dtype
from jaxspec.decoding import (
    Autoregressive,
    DecodeRules,
    Prompts,
    Speculative,
    TreeSpeculative,
    generate,
)
from jaxspec.decoding.generate import needed_capacity
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.evals.clock import seconds_by_turn
from jaxspec.evals.speculative.timing import time_round_parts
from jaxspec.losses import LossWeights
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import GREEDY, Sampling
from jaxspec.parallel.chips import CHIPS
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.step import spread
from jaxspec.planning.passes import Work, draft_pass, target_pass, training_step
from jaxspec.provenance import provenance
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import initial_state
from jaxspec.training.step import Hyper, make_body
from jaxspec.training.tasks.registry import task_of

PARTS = ("decode", "prefill", "regenerate", "train")
VERIFIED = (8, 16, 32)
TREE_NODES = 32
Measure = Callable[[], Mapping[str, list[float]]]


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of the table before it is measured."""

    part: str
    name: str
    batch: int
    passes: Passes
    tokens: int = 0
    """Read from a text, or made, in the time that is measured; 0: this depends on the weights."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Lines that are measured together."""

    lines: tuple[Line, ...]
    measure: Measure
    """Seconds of every repeat, by the lines' names."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="embedded", help="(embedded)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS, help="(all)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="(1 4 16)")
    parser.add_argument(
        "--cached", type=int, default=256, help="tokens before what is decoded (256)"
    )
    parser.add_argument("--turns", type=int, default=10, help="passes of a timed loop (10)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats (7)")
    parser.add_argument("--regenerate-batch", type=int, default=16, help="rows of regenerate (16)")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each answer (64)")
    parser.add_argument(
        "--chips",
        choices=CHIPS,
        nargs="*",
        default=["v5e", "v6e", "H100", "H200"],
        help="chips to plan for, with bfloat16 (v5e v6e H100 H200)",
    )
    parser.add_argument("--plan-only", action="store_true", help="run nothing")
    parser.add_argument(
        "--stream-mb", type=int, default=0, help="array for the bandwidth (0: 256, no CPU: 2048)"
    )
    parser.add_argument(
        "--product-width", type=int, default=0, help="of the product (0: 1024, no CPU: 8192)"
    )
    parser.add_argument("--output", default="", help="JSON file")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    args = parse()
    conditions = {
        name: getattr(args, name)
        for name in ("cached", "turns", "new_tokens", "regenerate_batch", "plan_only")
    }
    records = Records(
        args.output, provenance=provenance(config=None, seed=0), conditions=conditions
    )
    device = None
    if not args.plan_only:
        is_cpu = jax.default_backend() == "cpu"
        device = Device(
            args.dtype,
            stream_mb=args.stream_mb or (256 if is_cpu else 2048),
            width=args.product_width or (1024 if is_cpu else 8192),
        )
    shown: list[tuple[Line, Row]] = []
    for group in groups(SHAPES[args.shape](), args):
        names = [name_of(line, args) for line in group.lines]
        kept = [row for row in map(records.find, names) if row is not None]
        if len(kept) < len(names):
            seconds = {} if device is None else measured(group, device)
            kept = records.add(
                *(name | {"seconds": seconds.get(name["name"], [])} for name in names)
            )
            print(".", end="", file=sys.stderr, flush=True)
        shown += zip(group.lines, kept, strict=True)
    print(file=sys.stderr)
    for line, row in shown:
        row |= bounds_of(line, args, device)
    records.write()
    if device is not None:
        print(
            f"{jax.devices()[0].device_kind}: reads {device.bandwidth / 1e9:,.1f} GB/s, multiplies "
            f"{args.dtype} at {device.operations / 1e9:,.0f} GFLOP/s\n"
        )
    rows = [row for _, row in shown]
    print(as_table(rows, args.chips))
    if any(row["plans"] for row in rows):
        print("\nA chip's time is the least by its data sheet; m: memory, a: arithmetic decides.")


def name_of(line: Line, args: argparse.Namespace) -> Row:
    """What tells a row of the file apart from others."""
    return {
        "shape": args.shape,
        "dtype": args.dtype,
        "part": line.part,
        "name": line.name,
        "batch": line.batch,
    }


def bounds_of(line: Line, args: argparse.Namespace, device: Device | None) -> Row:
    """What a row has to do, and how long that takes at least."""
    row: Row = {
        "tokens": line.tokens,
        "operations": sum(count * work.operations for count, work in line.passes),
        "memory_bytes": sum(count * work.memory_bytes for count, work in line.passes),
    }
    if device is not None:
        bound = bound_of(line.passes, device.chip())
        row |= {"bandwidth": device.bandwidth, "product": device.operations}
        row |= {"bound_s": bound.seconds, "binding": bound.binding}
    # The chips' published speeds are those of bfloat16.
    chips = args.chips if args.dtype == "bfloat16" else ()
    plans = {name: bound_of(line.passes, CHIPS[name]) for name in chips}
    return row | {"plans": {name: dataclasses.asdict(plan) for name, plan in plans.items()}}


def measured(group: Group, device: Device) -> Mapping[str, list[float]]:
    """Seconds by name; none where the device has too little memory."""
    device.measure()
    try:
        return group.measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"\n{group.lines[0].name}: out of memory", file=sys.stderr)
        return {}


def as_table(rows: Sequence[Row], chips: Sequence[str]) -> str:
    """The rows in Markdown."""
    chips = [chip for chip in chips if any(chip in row["plans"] for row in rows)]
    titles = ["", "batch", "ms", "tokens/s", "bound, ms", "share", "bound by"]
    return table([*titles, *(f"{chip}, ms" for chip in chips)], [cells(row, chips) for row in rows])


def cells(row: Row, chips: Sequence[str]) -> list[str]:
    """What the table shows of a row."""
    found = ["", "", "", "", ""]
    if "bound_s" in row:
        found[2], found[4] = shown_ms(row["bound_s"]), row["binding"]
    if row["seconds"]:
        seconds = statistics.median(row["seconds"])
        found[0] = shown_ms(seconds)
        found[1] = f"{row['tokens'] / seconds:,.0f}" if row["tokens"] else ""
        found[3] = f"{row['bound_s'] / seconds:.0%}"
    plans = [row["plans"].get(chip) for chip in chips]
    return [
        f"{row['part']}: {row['name']}",
        str(row["batch"]),
        *found,
        *(
            "" if plan is None else f"{shown_ms(plan['seconds'])} {plan['binding'][0]}"
            for plan in plans
        ),
    ]


def groups(shape: Shape, args: argparse.Namespace) -> Iterator[Group]:
    """What is timed, part by part."""
    if set(args.parts) & {"decode", "prefill", "regenerate"}:
        models = Models.of(shape, args.dtype, is_real=not args.plan_only)
        for batch in args.batches:
            if "decode" in args.parts:
                yield steps(models, batch, args)
                for rows in VERIFIED:
                    yield rounds(models, batch, args, rows=rows)
                yield rounds(models, batch, args, tree_nodes=TREE_NODES)
            if "prefill" in args.parts:
                for length in shape.prefills:
                    yield prefill(models, batch, args, length=length)
        if "regenerate" in args.parts:
            for name, sampling in (("greedy", GREEDY), ("top-p 0.95", Sampling(1.0, top_p=0.95))):
                yield regenerate(models, args, name=name, sampling=sampling)
    if "train" in args.parts:
        yield train(shape, args)


@dataclasses.dataclass(frozen=True)
class Models:
    """Target and drafter with random weights, or only their shapes."""

    target: Transformer
    drafter: DFlash
    params: Any
    """{"target", "drafter"}."""

    @classmethod
    def of(cls, shape: Shape, dtype: Dtype, *, is_real: bool) -> Models:
        """Those of a shape."""
        config, drafter_config = shape.for_decoding(dtype)
        target = Transformer(config)
        drafter = DFlash(
            resolve_config(drafter_config, target=config, mask_token_id=0), config.hidden_size
        )
        features = jnp.zeros((1, 2, len(drafter.config.target_layer_ids) * config.hidden_size))
        shapes = {
            "target": jax.eval_shape(target.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))[
                "params"
            ],
            "drafter": jax.eval_shape(
                lambda key: drafter.init(key, features, method="initialise"), jax.random.key(0)
            )["params"],
        }
        return cls(target, drafter, random_like(shapes) if is_real else shapes)

    def proposer(self, block_size: int) -> DFlashProposer:
        """The drafter with a block of this size."""
        return DFlashProposer(self.target, self.drafter, block_size)

    def reads(self, **how: Any) -> Work:
        """A pass of the target."""
        return target_pass(self.params["target"], self.target.config, **how)

    def drafts(self, block_size: int, **how: Any) -> Work:
        """A pass of the drafter."""
        config = dataclasses.replace(self.drafter.config, block_size=block_size)
        return draft_pass(self.params["drafter"], config, self.target.config, **how)


def steps(models: Models, batch: int, args: argparse.Namespace) -> Group:
    """One token by the target alone."""
    work = models.reads(rows=batch, tokens=1, cached=args.cached)

    def measure() -> Mapping[str, list[float]]:
        # No answer ends before its last turn.
        strategy = Autoregressive(models.target, DecodeRules(args.turns + 1))
        params = strategy.prepare(models.params["target"])
        capacity = needed_capacity(args.cached, rules=strategy.rules, round_tokens=1)
        state = strategy.start(params, prompts(batch, args.cached), capacity=capacity)

        def run() -> Callable[[], Any]:
            copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))  # `run` takes it over.
            return lambda: strategy.run(params, copy, leave_on_end=False)

        found = seconds_by_turn({"step": run}, repeats=args.repeats)["step"]
        return {"step": [seconds / args.turns for seconds in found]}

    return Group((Line("decode", "step", batch, [(1, work)], batch),), measure)


def rounds(
    models: Models,
    batch: int,
    args: argparse.Namespace,
    *,
    rows: int = 0,
    tree_nodes: int = 0,
) -> Group:
    """A round of a block of `rows`, or of a tree, and its parts."""
    block = rows or models.drafter.config.block_size
    read = tree_nodes + 1 if tree_nodes else block
    verified = models.reads(rows=batch, tokens=read, cached=args.cached)
    drafted = models.drafts(block, rows=batch, cached=args.cached)
    what = f"tree of {tree_nodes}" if tree_nodes else f"{rows} rows"
    names = {
        "draft": f"draft for {what}",
        "target": f"verification of {what}",
        "round": f"round with {what}",
    }

    def measure() -> Mapping[str, list[float]]:
        common = (models.target, models.proposer(block), DecodeRules(block * (args.turns + 1)))
        strategy = (
            TreeSpeculative(*common, num_nodes=tree_nodes) if tree_nodes else Speculative(*common)
        )
        capacity = needed_capacity(args.cached, rules=strategy.rules, round_tokens=block)
        found = time_round_parts(
            strategy,
            models.params,
            prompts(batch, args.cached),
            capacity=capacity,
            repeats=args.repeats,
            turns=args.turns,
        )
        return {names[part]: [each / 1e3 for each in found[part]] for part in names}

    passes = {"draft": [(1, drafted)], "target": [(1, verified)]}
    passes["round"] = passes["draft"] + passes["target"]  # One needs the other's result.
    return Group(
        tuple(Line("decode", names[part], batch, passes[part]) for part in names),
        measure,
    )


def prefill(models: Models, batch: int, args: argparse.Namespace, *, length: int) -> Group:
    """Prompts of one length, in one pass."""
    name = f"{length:,} tokens"
    work = models.reads(rows=batch, tokens=length, cached=0, judged=1)

    def measure() -> Mapping[str, list[float]]:
        strategy = Autoregressive(models.target, DecodeRules(2))
        params = strategy.prepare(models.params["target"])
        read = prompts(batch, length)
        capacity = needed_capacity(length, rules=strategy.rules, round_tokens=1)
        return seconds_by_turn(
            {name: lambda: lambda: strategy.start(params, read, capacity=capacity)},
            repeats=args.repeats,
        )

    return Group((Line("prefill", name, batch, [(1, work)], batch * length),), measure)


def regenerate(models: Models, args: argparse.Namespace, *, name: str, sampling: Sampling) -> Group:
    """Two batches of answers by the target alone, prompts included."""
    batch, new = args.regenerate_batch, args.new_tokens
    count = 2 * batch
    reads = models.reads(rows=batch, tokens=args.cached, cached=0, judged=1)
    step = models.reads(rows=batch, tokens=1, cached=args.cached + new // 2)

    def measure() -> Mapping[str, list[float]]:
        strategy = Autoregressive(models.target, DecodeRules(new), sampling)
        asked = jax.device_get(prompts(count, args.cached).tokens_BS).tolist()
        ids = [f"prompt/{number}" for number in range(count)]

        def run() -> Any:
            return generate(strategy, models.params["target"], asked, ids=ids, batch_size=batch)[
                0
            ].tokens

        return seconds_by_turn({name: lambda: run}, repeats=args.repeats)

    passes = [(2, reads), (2 * (new - 1), step)]
    return Group((Line("regenerate", name, batch, passes, count * new),), measure)


def train(shape: Shape, args: argparse.Namespace) -> Group:
    """A step of drafter training."""
    config = shape.run(args.dtype)
    task = task_of(config).build(config)
    transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
    shapes = jax.eval_shape(initial_state(task.init, transform), jax.random.key(0))
    work = training_step(task, shapes)
    assert work is not None, "a drafter's operations are counted"
    rows, length = config.data.batch_size, config.data.sequence_length

    def measure() -> Mapping[str, list[float]]:
        step = spread(make_body(task.objective, transform), mesh=make_mesh(config.mesh), path="jit")
        state = jax.jit(initial_state(task.init, transform))(jax.random.key(0))
        frozen = random_like(task.frozen_shapes)
        batch = {
            "tokens": prompts(rows, length).tokens_BS,
            "segments": jnp.ones((rows, length), jnp.int32),
            "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
            "loss_mask": jnp.ones((rows, length), bool),
            "rows": jnp.arange(rows),
        }
        hyper = Hyper(jnp.float32(1e-4), jax.random.key(1), LossWeights.from_config(config.loss))

        def run() -> Any:
            nonlocal state
            state, metrics = step(state, frozen, batch, hyper)
            return metrics

        return seconds_by_turn({"step": lambda: run}, repeats=args.repeats)

    return Group((Line("train", "step", rows, [(1, work)], rows * length),), measure)


def prompts(rows: int, length: int) -> Prompts:
    """Random prompts of one length."""
    return Prompts(
        tokens_BS=jax.random.randint(jax.random.key(2), (rows, length), 2, 1000),
        lengths_B=jnp.full(rows, length, jnp.int32),
        active_B=jnp.ones(rows, bool),
        keys_B=jax.random.split(jax.random.key(3), rows),
    )


if __name__ == "__main__":
    main()
