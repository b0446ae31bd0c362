"""Decoding a diffusion language model: tokens/s of its decoders, and what a step is made of.

    python benchmarks/diffusion_decode.py --config configs/real_text_llada.py \
        --target runs/real_text/llada/export --output runs/real_text/diffusion_decode.json
    python benchmarks/diffusion_decode.py --only shares           on random weights

speed   tokens/s of whole responses at several batch sizes: without a cache, with the prefix cache,
        with the dual cache, and with the dual cache and threshold unmasking; each plain and with a
        draft graph of 10 nodes, all of which or the 3 most promising ones are read in a pass,
        appended under a mask or as rows of the batch. Graphs are calibrated first, on training
        prompts. Decoders of a batch size take turns; medians of repeats.
shares  the shares of sorting, drafting, the mask, the pass, unmasking and bookkeeping in a step
        with the dual cache, each timed by itself, at vocabularies of 4,096 and 126,464 (LLaDA's).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.cli.configuration import load_config, run_as_command
from jaxspec.config import MaskedTransformerConfig, RunConfig
from jaxspec.decoding import (
    BlockDiffusion,
    DiffusionResponse,
    DiffusionRules,
    Prompts,
    Scheduled,
    Spiffy,
    Threshold,
    generate_diffusion,
)
from jaxspec.decoding.diffusion.block_model import BlockContext, Layout
from jaxspec.decoding.diffusion.calibration import (
    count_formulas,
    merge_counts,
    rank_steps,
    select_graph,
)
from jaxspec.decoding.diffusion.decoder import DiffusionState
from jaxspec.decoding.diffusion.draft_graph import DraftGraph, chain
from jaxspec.decoding.diffusion.generate import decode_batches
from jaxspec.decoding.diffusion.spiffy import Drafts, fill_ranked, logits_of, prune, rank_masks
from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.evals.benchmarks import load_benchmark
from jaxspec.evals.clock import median_seconds
from jaxspec.evals.diffusion.decoders import diffusion_rules
from jaxspec.evals.opening import DiffusionTarget, open_diffusion_target
from jaxspec.models.bidirectional import BidirectionalTransformer
from jaxspec.provenance import provenance, write_json

PARTS = ("speed", "shares")
LAYOUTS: tuple[Layout, ...] = ("mask", "batch")
Row = dict[str, Any]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=PARTS, help="parts to run (all)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="(1 4)")
    parser.add_argument("--drafts", type=int, nargs="+", default=[3, 10], help="read (3 10)")
    parser.add_argument("--nodes", type=int, default=10, help="of the draft graphs (10)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats (5)")
    parser.add_argument("--block", type=int, default=32, help="tokens of a block (32)")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--config", default="", help="names data and evaluation")
    speed.add_argument("--target", default="", help="folder of the diffusion language model")
    speed.add_argument("--benchmark", default="gsm8k", help="prompts (gsm8k)")
    speed.add_argument("--prompts", type=int, default=8, help="prompts (8)")
    speed.add_argument("--new-tokens", type=int, default=128, help="of a response (128)")
    speed.add_argument("--threshold", type=float, default=0.9, help="of unmasking (0.9)")
    speed.add_argument("--calibration-prompts", type=int, default=16, help="(16)")
    shares = parser.add_argument_group("shares")
    shares.add_argument(
        "--vocabularies", type=int, nargs="+", default=[4096, 126_464], help="(4096 126464)"
    )
    shares.add_argument("--width", type=int, default=512, help="hidden size (512)")
    shares.add_argument("--layers", type=int, default=4, help="layers (4)")
    shares.add_argument("--context", type=int, default=256, help="tokens of the prompt (256)")
    args = parser.parse_args()
    if "speed" in args.only and not args.target:
        parser.error("--target is missing: a folder with a diffusion language model")
    return args


def main() -> None:
    """Runs the parts and prints a line per figure."""
    args = parse()
    config = load_config(args.config) if args.config else RunConfig()
    config = dataclasses.replace(
        config,
        target=dataclasses.replace(config.target, path=args.target),
        evaluation=dataclasses.replace(config.evaluation, max_new_tokens=args.new_tokens),
        diffusion=dataclasses.replace(config.diffusion, block_length=args.block),
    )
    document: dict[str, Any] = {"provenance": provenance(config=config, seed=0)}
    if "speed" in args.only:
        document["speed"] = speeds(config, args)
    if "shares" in args.only:
        document["shares"] = shares(args)
    if args.output:
        write_json(args.output, document)
        print(f"Written: {args.output}")


def speeds(config: RunConfig, args: argparse.Namespace) -> list[Row]:
    """Rows of the part "speed"."""
    target = open_diffusion_target(config.target).with_weights()
    # Responses of one length, whatever the model says: stop tokens would make them shorter.
    rules = dataclasses.replace(
        diffusion_rules(config, target), unmasking=Scheduled(args.block), stop_ids=()
    )
    bases = {
        "plain": dataclasses.replace(rules, caching="none"),
        "prefix": dataclasses.replace(rules, caching="prefix"),
        "dual": dataclasses.replace(rules, caching="dual"),
        "threshold": dataclasses.replace(
            rules, caching="dual", unmasking=Threshold(args.threshold)
        ),
    }
    graphs = {name: calibrated(config, target, bases[name], args) for name in ("dual", "threshold")}
    prompts, ids = questions(config, target, args.benchmark, args.prompts)
    rows = []
    for batch in args.batches:
        decoders: dict[str, tuple[str, BlockDiffusion]] = {}
        for base, its_rules in bases.items():
            decoders[base] = (base, BlockDiffusion(target.model, its_rules))
            graph = graphs["threshold" if base == "threshold" else "dual"]
            for drafts in args.drafts:
                for layout in LAYOUTS:
                    kept = drafts if drafts < graph.size else 0
                    decoders[f"{base} + {drafts} drafts, {layout}"] = (
                        base,
                        Spiffy(target.model, its_rules, graph=graph, layout=layout, kept=kept),
                    )
        answers: dict[str, list[DiffusionResponse]] = {}

        def run(
            name: str,
            batch: int = batch,
            decoders: dict[str, tuple[str, BlockDiffusion]] = decoders,
            answers: dict[str, list[DiffusionResponse]] = answers,
        ) -> None:
            answers[name] = generate_diffusion(
                decoders[name][1], target.params, prompts, ids=ids, batch_size=batch
            )

        seconds = median_seconds(
            {name: functools.partial(run, name) for name in decoders}, repeats=args.repeats
        )
        for name, (base, decoder) in decoders.items():
            responses, theirs = answers[name], answers[base]
            tokens = sum(response.filled for response in responses)
            passes = sum(response.num_passes for response in responses)
            row = {
                "decoder": name,
                "base": base,
                "batch": batch,
                "drafts": decoder.num_drafts if isinstance(decoder, Spiffy) else 0,
                "layout": decoder.layout if isinstance(decoder, Spiffy) else None,
                "tokens_per_s": tokens / seconds[name],
                "speedup": seconds[base] / seconds[name],
                "speedup_over_plain": seconds["plain"] / seconds[name],
                "nfe_per_response": passes / len(responses),
                "nfe_reduction": sum(other.num_passes for other in theirs) / passes,
                "identical": sum(
                    ours.tokens == other.tokens
                    for ours, other in zip(responses, theirs, strict=True)
                ),
                "responses": len(responses),
            }
            rows.append(row)
            print(
                f"speed  batch {batch}  {name:<28} {row['tokens_per_s']:>7,.0f} tokens/s, "
                f"{row['speedup']:.2f}x its base, {row['speedup_over_plain']:.2f}x plain; "
                f"{row['nfe_per_response']:.1f} passes ({row['nfe_reduction']:.2f}x fewer), "
                f"{row['identical']} of {row['responses']} identical",
                flush=True,
            )
    return rows


def questions(
    config: RunConfig, target: DiffusionTarget, source: str, number: int, split: str = "test"
) -> tuple[list[list[int]], list[str]]:
    """Prompts that leave room for the response, and their names."""
    longest = min(
        config.evaluation.max_prompt_tokens,
        target.model.config.max_position_embeddings - config.evaluation.max_new_tokens,
    )
    examples = load_benchmark(source, prompts=number, data=config.data, seed=0, split=split)
    asked = [(target.tokenizer.encode_prompt(each.prompt_turns), each.id) for each in examples]
    kept = [(prompt, name) for prompt, name in asked if len(prompt) <= longest]
    return [prompt for prompt, _ in kept], [name for _, name in kept]


def calibrated(
    config: RunConfig, target: DiffusionTarget, rules: DiffusionRules, args: argparse.Namespace
) -> DraftGraph:
    """A draft graph from training prompts."""
    prompts, ids = questions(
        config, target, args.benchmark, args.calibration_prompts, split="train"
    )
    decoder = BlockDiffusion(target.model, rules)
    batches = decode_batches(decoder, target.params, prompts, ids=ids, batch_size=8, seed=0)
    counted = [
        count_formulas(rank_steps(decoder, target.params, state), depth=8) for _, state in batches
    ]
    return select_graph(merge_counts(counted), size=args.nodes)


def shares(args: argparse.Namespace) -> list[Row]:
    """Rows of the part "shares": random weights, for time does not depend on them."""
    rows = []
    for vocabulary in args.vocabularies:
        model, params = random_model(args, vocabulary)
        for batch in args.batches:
            for drafts in args.drafts:
                for layout in LAYOUTS:
                    decoder = Spiffy(
                        model,
                        DiffusionRules(
                            vocabulary - 1,
                            response_length=4 * args.block,
                            block_length=args.block,
                            unmasking=Scheduled(args.block),
                            caching="dual",
                        ),
                        graph=chain(args.nodes),
                        layout=layout,
                        kept=drafts if drafts < args.nodes else 0,
                    )
                    parts = step_parts(decoder, params, args, batch)
                    row = {
                        "vocabulary": vocabulary,
                        "batch": batch,
                        "drafts": drafts,
                        "layout": layout,
                        **parts,
                    }
                    rows.append(row)
                    step = parts["step_ms"]
                    said = ", ".join(
                        f"{name} {parts[f'{name}_ms'] / step:.1%}"
                        for name in ("sort", "draft", "mask", "pass", "unmask", "bookkeeping")
                    )
                    print(
                        f"shares  V {vocabulary:>7,}  batch {batch}  {drafts:>2} drafts, "
                        f"{layout:<5}  step {step:>8.2f} ms (block alone "
                        f"{parts['plain_pass_ms']:.2f}): {said}; overhead "
                        f"{parts['overhead_share']:.1%}",
                        flush=True,
                    )
    return rows


def random_model(args: argparse.Namespace, vocabulary: int) -> tuple[BidirectionalTransformer, Any]:
    """A model of LLaDA's kind."""
    config = MaskedTransformerConfig(
        vocab_size=vocabulary,
        hidden_size=args.width,
        num_layers=args.layers,
        num_heads=args.width // 64,
        num_kv_heads=args.width // 64,
        head_dim=64,
        intermediate_size=3 * args.width,
        qk_norm=False,
        tie_embeddings=False,
        max_position_embeddings=args.context + 8 * args.block,
        unroll_layers=True,
    )
    model = BidirectionalTransformer(config)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def step_parts(decoder: Spiffy, params: Any, args: argparse.Namespace, batch: int) -> Row:
    """Milliseconds of a step in the middle of a block, and of its parts alone.

    sort: ranks of the masks and their likeliest tokens. draft: filling and choosing formulas. mask:
    laying the states out. pass: the model (with its mask). unmask: what plain decoding does after a
    pass as well. bookkeeping: comparing drafts, and handing logits on. overhead: all that drafting
    adds besides the pass, as a share of the step.
    """
    prompts = Prompts(
        tokens_BS=jax.random.randint(jax.random.key(1), (batch, args.context), 0, 1000),
        lengths_B=jnp.full(batch, args.context, jnp.int32),
        active_B=jnp.ones(batch, bool),
        keys_B=jax.random.split(jax.random.key(2), batch),
    )
    graph, block_model = decoder.graph, decoder.block_model
    pieces = cut_layers(params, unrolled=True)
    Entered = tuple[DiffusionState, BlockContext, Drafts, jax.Array, jax.Array]

    @jax.jit
    def enter(params: Any) -> Entered:
        state = decoder.begin_block(decoder.start(prompts))
        logits_BPV, context = block_model.open(stack_layers(params), decoder.context(state))
        state = decoder.reveal(decoder.count_pass(state), logits_BPV)
        drafts = decoder.draft(state, logits_BPV)
        logits_BYPV = decoder.read(stack_layers(params), state, drafts, context, reach=1)
        return state, context, drafts, logits_BPV, logits_BYPV

    state, context, drafts, logits_BPV, logits_BYPV = enter(pieces)
    at_B = jnp.zeros(batch, jnp.int32)
    masked_BP = decoder.masked(state)

    def sort(logits_BPV: jax.Array) -> Any:
        unmasker = decoder.unmasker
        clean_BPV = unmasker.clean_logits(logits_BPV)
        return rank_masks(graph, clean_BPV, masked_BP, unmasker=unmasker)

    def fill(ranking: Any) -> Any:
        filled = fill_ranked(graph, ranking, decoder.block_tokens(state), masked_BP)
        if decoder.num_drafts == graph.size:
            return filled
        return prune(graph, filled, kept=decoder.num_drafts)

    def lay_out(drafts: Drafts, context: BlockContext) -> Any:
        real_B1P = decoder.block_tokens(state)[:, None]
        states_BYP = jnp.concatenate([real_B1P, drafts.states_BXP], axis=1)
        if decoder.layout == "batch":
            # What `state_logits` does; the cache's copies are in the pass.
            return jnp.repeat(context.tokens_BT, states_BYP.shape[1], axis=0)
        return block_model.lay_out(states_BYP, context, reach=1)

    ranking = jax.jit(sort)(logits_BPV)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "step": (
            lambda p, s, d, c: decoder.one_pass(stack_layers(p), s, d, c, reach=1),
            (pieces, state, drafts, context),
        ),
        "plain_pass": (
            lambda p, s, c: block_model.block_logits(stack_layers(p), decoder.block_tokens(s), c),
            (pieces, state, context),
        ),
        "pass": (
            lambda p, s, d, c: decoder.read(stack_layers(p), s, d, c, reach=1),
            (pieces, state, drafts, context),
        ),
        "sort": (sort, (logits_BPV,)),
        "draft": (fill, (ranking,)),
        "mask": (lay_out, (drafts, context)),
        "unmask": (decoder.reveal, (state, logits_BPV)),
        "bookkeeping": (
            lambda s, d, x: (decoder.drafted(s, d), logits_of(x, at_B)),
            (state, drafts, logits_BYPV),
        ),
    }
    runs = {name: looped(call, values) for name, (call, values) in calls.items()}
    seconds = median_seconds(runs, repeats=args.repeats)
    parts = {f"{name}_ms": 1e3 * value / TURNS for name, value in seconds.items()}
    overhead = sum(parts[f"{name}_ms"] for name in ("sort", "draft", "mask", "bookkeeping"))
    steps = decoder.one_pass(params, state, drafts, context, reach=1)[0].step_B - state.step_B
    return {
        **parts,
        "overhead_share": overhead / parts["step_ms"],
        "pass_ratio": parts["pass_ms"] / parts["plain_pass_ms"],
        "steps_taken": float(steps.mean()),
    }


TURNS = 5
"""Of a timed loop inside one program: calling a program costs as much as a small part."""


def looped(call: Callable[..., Any], values: tuple[Any, ...]) -> Callable[[], Any]:
    """The call, several times in one program; each turn is tied to the one before."""

    @jax.jit
    def run(values: tuple[Any, ...]) -> Any:
        def body(_: jax.Array, before: Any) -> Any:
            tied, _ = jax.lax.optimization_barrier((values, before))
            return call(*tied)

        shapes = jax.eval_shape(call, *values)
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, TURNS, body, none)

    return lambda: run(values)


if __name__ == "__main__":
    sys.exit(run_as_command(lambda _: main(), sys.argv[1:]))
