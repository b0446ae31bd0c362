"""One drafter training step: milliseconds, tokens/s, GFLOP/s, share by part, peak memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --memory        only the loss, from 64 to 512 anchors

The target's features are given (random), so this is the drafter's own cost: context keys and
values, drafter layers, head and loss, backward pass, clip and AdamW. Times are medians of
--repeats calls after warm-up; the time of a part is the difference between two programs, one of
which stops before it. GFLOP/s uses the compiler's count of operations.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxspec.config import DrafterConfig, LossConfig, OptimizerConfig, TransformerConfig
from jaxspec.losses import LossWeights, chunked_slot_statistics, loss_terms, total_from_terms
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.optimizer import make_optimizer


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None: that of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequence", type=int, default=512, help="context length S (512)")
    parser.add_argument("--width", type=int, default=256, help="hidden size D (256)")
    parser.add_argument("--features", type=int, default=3, help="captured layers (3)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="V (4096)")
    parser.add_argument("--layers", type=int, default=2, help="drafter layers (2)")
    parser.add_argument("--heads", type=int, default=8, help="query heads (8)")
    parser.add_argument("--kv-heads", type=int, default=4, help="key/value heads (4)")
    parser.add_argument("--head-dim", type=int, default=32, help="channels of a head (32)")
    parser.add_argument("--mlp", type=int, default=768, help="MLP width (768)")
    parser.add_argument("--block", type=int, default=16, help="block size K (16)")
    parser.add_argument("--anchors", type=int, default=64, help="blocks N (64)")
    parser.add_argument(
        "--chunk", type=int, default=0, help="blocks whose logits are held (0: all)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls (10)")
    parser.add_argument("--memory", action="store_true", help="compiled memory of the loss instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> tuple[DrafterObjective, dict[str, Any]]:
    """The objective and random inputs."""
    architecture = TransformerConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        num_layers=8,
        num_heads=args.heads,
        num_kv_heads=args.kv_heads,
        head_dim=args.head_dim,
        intermediate_size=args.mlp,
        dtype=args.dtype,
    )
    config = resolve_config(
        DrafterConfig(
            block_size=args.block,
            num_features=args.features,
            num_layers=args.layers,
            dtype=args.dtype,
            unroll_layers=True,
        ),
        target=architecture,
        mask_token_id=1,
    )
    objective = DrafterObjective(
        target=Transformer(architecture),
        drafter=DFlash(config, args.width),
        loss=LossConfig(chunk_blocks=args.chunk),
        anchors=args.anchors,
    )
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (1, args.sequence)
    features = jax.random.normal(keys[0], (*shape, args.features * args.width))
    inputs = {
        # The drafter uses only the target's embedding and head.
        "frozen": {
            "embed": {"embedding": 0.02 * jax.random.normal(keys[1], (args.vocabulary, args.width))}
        },
        "params": objective.drafter.init(keys[2], features, method="initialise")["params"],
        "features": features.astype(args.dtype),
        "batch": {
            "tokens": jax.random.randint(keys[3], shape, 2, args.vocabulary),
            "segments": jnp.ones(shape, jnp.int32),
            "positions": jnp.arange(args.sequence)[None],
            "loss_mask": jnp.ones(shape, bool),
            "rows": jnp.arange(1),
        },
    }
    return objective, inputs


def programs(objective: DrafterObjective, inputs: dict[str, Any]) -> dict[str, tuple]:
    """Name -> (compiled function, arguments); each goes one part further than the one before."""
    weights = LossWeights.from_config(objective.loss)
    transform, rates = make_optimizer(OptimizerConfig(), steps=100)
    frozen, batch, features = inputs["frozen"], inputs["batch"], inputs["features"]

    def hidden(params: Any, blocks: Any) -> jax.Array:
        return objective.hidden(params, frozen, batch, blocks[0], features)

    def loss(params: Any, blocks: Any) -> jax.Array:
        slots = chunked_slot_statistics(
            hidden(params, blocks),
            blocks[1],
            head=lambda h: objective.target.apply({"params": frozen}, h, method="logits"),
            chunk_blocks=objective.loss.chunk_blocks,
            frozen_head=True,
        )
        terms = loss_terms(slots, blocks[2], config=objective.loss, weights=weights)
        return total_from_terms(terms, config=objective.loss, weights=weights)

    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, objective.blocks(batch, key))
        updates, state = transform.update(gradients, state, params)
        updates = jax.tree.map(lambda update: -rates[1] * update, updates)
        return optax.apply_updates(params, updates), state, value

    params, key = inputs["params"], jax.random.key(1)
    blocks = objective.blocks(batch, key)

    def compiled(function: Callable, *arguments: Any) -> tuple[Any, tuple]:
        return jax.jit(function).lower(*arguments).compile(), arguments

    return {
        "drafter forward": compiled(hidden, params, blocks),
        "head and loss": compiled(loss, params, blocks),
        "backward": compiled(jax.value_and_grad(loss), params, blocks),
        "anchors, clip, AdamW": compiled(step, params, transform.init(params), key),
    }


def medians(compiled: dict[str, tuple], repeats: int) -> dict[str, float]:
    """Median seconds of each program; they take turns, so that a slow moment affects them all."""
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for repeat in range(repeats + 2):
        for name, (function, arguments) in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed about one step."""
    objective, inputs = build(args)
    compiled = programs(objective, inputs)
    seconds = medians(compiled, args.repeats)
    *_, whole = compiled
    flops = compiled[whole][0].cost_analysis()["flops"]
    memory = compiled[whole][0].memory_analysis()
    parts, before = {}, 0.0
    for name, value in seconds.items():
        parts[name] = (value - before) / seconds[whole]
        before = value
    return {
        "step_ms": 1e3 * seconds[whole],
        "drafted_tokens_per_s": args.anchors * (args.block - 1) / seconds[whole],
        "context_tokens_per_s": args.sequence / seconds[whole],
        "gflop_per_s": flops / seconds[whole] / 1e9,
        "gflop": flops / 1e9,
        "share": parts,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "device": jax.devices()[0].device_kind,
        "settings": vars(args),
    }


def loss_memory(args: argparse.Namespace, *, anchors: int, vocabulary: int, chunk: int) -> float:
    """Megabytes of temporaries in value and gradient of head and loss, from shapes alone."""
    slots = args.block - 1
    hidden = jax.ShapeDtypeStruct((1, anchors, slots, args.width), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, anchors, slots), jnp.int32)
    kernel = jax.ShapeDtypeStruct((args.width, vocabulary), jnp.float32)
    config = LossConfig()

    def loss(hidden: jax.Array, labels: jax.Array, kernel: jax.Array) -> jax.Array:
        stats = chunked_slot_statistics(
            hidden, labels, head=lambda h: h @ kernel, chunk_blocks=chunk, frozen_head=True
        )
        return total_from_terms(loss_terms(stats, config=config), config=config)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(hidden, labels, kernel).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    """Prints the figures."""
    args = parse()
    if args.memory:
        chunk = args.chunk or 16
        print(f"temporaries of value and gradient of head and loss, chunks of {chunk} blocks, MB")
        print("| vocabulary | anchors | chunked | all at once |")
        print("|---|---|---|---|")
        for vocabulary in (4096, 151_936):
            for anchors in (64, 128, 256, 512):
                chunked, whole = (
                    loss_memory(args, anchors=anchors, vocabulary=vocabulary, chunk=blocks)
                    for blocks in (chunk, 0)
                )
                print(f"| {vocabulary} | {anchors} | {chunked:,.1f} | {whole:,.1f} |", flush=True)
        return
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"step              {result['step_ms']:.1f} ms (median of {args.repeats})")
    print(f"drafted tokens/s  {result['drafted_tokens_per_s']:,.0f}")
    print(f"context tokens/s  {result['context_tokens_per_s']:,.0f}")
    print(f"GFLOP/s           {result['gflop_per_s']:.1f} ({result['gflop']:.1f} GFLOP per step)")
    for name, share in result["share"].items():
        print(f"  {name:<22}{share:6.1%}")
    print(f"temporaries       {result['temporary_mb']:.0f} MB by compiled memory analysis")
    print(f"process peak      {result['process_peak_mb']:.0f} MB")


if __name__ == "__main__":
    main()
