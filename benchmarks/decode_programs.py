"""What the compiled programs of decoding move, for devices that need not be there.

    python -m benchmarks.decode_programs --device v5e --layers 28
    python -m benchmarks.decode_programs --device H100 --programs step "verify 16"

Compiles the loops for a target of the shape of Qwen2.5-Coder-1.5B (28 layers, width 1,536) in
bfloat16 and reads them; no weight is allocated. A step at the speed of the memory reads all
weights and the cache once and does nothing else, so the columns are

  ratio        bytes that a turn of the loop reads and writes, over those of weights and cache
  copied       megabytes of results in the shape of a weight or a cache, in each turn
  kernels      instructions that run in a turn
  temporaries  megabytes that the program needs besides its arguments

Devices: cpu (this machine's compiler), v5e, v5p, v6e (needs libtpu), H100 (needs the packages
jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12, but no GPU; without one nothing is
tuned, so kernels are those that the compiler takes by default). XLA_FLAGS has to be unset.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks.shapes import SHAPES
from jaxspec.config import TransformerConfig
from jaxspec.decoding import Autoregressive, DecodeRules, Prompts, Speculative
from jaxspec.decoding.layout import unrolls
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.models.transformer import Transformer
from jaxspec.planning.gpu_compiler import h100
from jaxspec.planning.loop_program import LoopTurn, loop_turn
from jaxspec.planning.program_costs import program_costs
from jaxspec.planning.topologies import (
    compiling_for,
    parse_topology,
    prepare_platform,
    topology_devices,
)
from jaxspec.provenance import provenance, write_json

SLICES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}
PROGRAMS = ("step", "verify 8", "verify 16", "verify 32", "prefill")
Shapes = Any


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "H100", *SLICES), default="v5e", help="(v5e)")
    parser.add_argument("--layers", type=int, default=28, help="layers of the target (28)")
    parser.add_argument(
        "--programs", choices=PROGRAMS, nargs="+", default=PROGRAMS, help="programs (all)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="rows (1)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt (512)")
    parser.add_argument("--capacity", type=int, default=1024, help="slots of the cache (1024)")
    parser.add_argument(
        "--layout",
        choices=("auto", "unrolled", "scanned"),
        default="auto",
        help="of the layers; auto: as decoding chooses (auto)",
    )
    parser.add_argument("--copies", action="store_true", help="name what copies")
    parser.add_argument("--texts", default="", help="folder for the programs' texts")
    parser.add_argument("--output", default="", help="JSON file to write")
    return parser.parse_args()


def qwen(layers: int, *, unrolled: bool) -> TransformerConfig:
    """The shape of Qwen2.5-Coder-1.5B, with this many layers."""
    target, _ = SHAPES["1.5B"]().for_decoding("bfloat16")
    return dataclasses.replace(target, num_layers=layers, unroll_layers=unrolled)


def device_of(name: str) -> Any:
    """A device to compile for.

    Raises:
      ValueError: the compiler is not installed.
    """
    if name == "cpu":
        return jax.devices("cpu")[0]
    return h100() if name == "H100" else topology_devices(parse_topology(SLICES[name]))[0]


@dataclasses.dataclass(frozen=True)
class Case:
    """A target's shapes, on the device that is compiled for."""

    model: Transformer
    device: Any
    batch: int
    prompt: int
    capacity: int

    @property
    def params(self) -> Shapes:
        """Of the target."""
        tokens_BS = jnp.zeros((1, 4), jnp.int32)
        return jax.eval_shape(self.model.init, jax.random.key(0), tokens_BS)["params"]

    @property
    def prompts(self) -> Prompts:
        """A batch of prompts."""
        shape = jax.ShapeDtypeStruct
        return Prompts(
            tokens_BS=shape((self.batch, self.prompt), jnp.int32),
            lengths_B=shape((self.batch,), jnp.int32),
            active_B=shape((self.batch,), jnp.bool_),
            keys_B=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch)),
        )

    def strategy(self, rows: int) -> Autoregressive | Speculative:
        """One that reads this many rows in a turn; drafts are looked up in the text."""
        rules = DecodeRules(max_new_tokens=256, stop_ids=(151_643, 151_645))
        if rows == 1:
            return Autoregressive(self.model, rules)
        return Speculative(self.model, NGramProposer(block_size=rows), rules)

    def compiled(self, program: str) -> Any:
        """The program of that name."""
        rows = int(program.split()[-1]) if program.startswith("verify") else 1
        strategy: Any = self.strategy(rows)
        params = self.params if rows == 1 else {"target": self.params, "drafter": {}}
        prompts = self.prompts
        pieces = jax.eval_shape(strategy.prepare, params)
        kind = type(strategy)
        if program == "prefill":
            arguments = self._placed((pieces, prompts))
            return kind.start.lower(strategy, *arguments, capacity=self.capacity).compile()
        state = jax.eval_shape(
            lambda params, prompts: strategy.start(params, prompts, capacity=self.capacity),
            pieces,
            prompts,
        )
        return kind.run.lower(strategy, *self._placed((pieces, state))).compile()

    def _placed(self, shapes: Shapes) -> Shapes:
        sharding = SingleDeviceSharding(self.device)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
        )

    def large(self) -> list[tuple[int, ...]]:
        """Shapes of the weights and of the cache, whole and of a layer."""
        cfg = self.model.config
        cache = (self.batch, cfg.num_kv_heads, self.capacity, cfg.head_dim)
        stacked = [leaf.shape for leaf in jax.tree.leaves(self.params["layers"])]
        ends = [leaf.shape for leaf in jax.tree.leaves(self.params["embed"])]
        layers = [shape[1:] for shape in stacked]
        return [*ends, *stacked, *layers, cache, (cfg.num_layers, *cache)]

    def needed_bytes(self) -> float:
        """Weights and cache, each read once."""
        cfg = self.model.config
        slots = cfg.num_layers * self.batch * cfg.num_kv_heads * self.capacity
        weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.params))
        return float(weights + 2 * 2 * slots * cfg.head_dim)


def row(case: Case, program: str, *, texts: str) -> dict[str, Any]:
    """The figures of a program."""
    started = time.perf_counter()
    compiled = case.compiled(program)
    seconds = time.perf_counter() - started
    text, needed = compiled.as_text(), case.needed_bytes()
    if texts:
        Path(texts).mkdir(parents=True, exist_ok=True)
        (Path(texts) / f"{program.replace(' ', '_')}_{case.batch}.txt").write_text(text)
    if program == "prefill":
        turn = LoopTurn(program_costs(text).memory_bytes, 0, 0.0, ())
    else:
        turn = loop_turn(text, large=case.large())
    return {
        "program": program,
        "batch": case.batch,
        "ratio": turn.memory_bytes / needed,
        "copied_mb": turn.copied_bytes / 1e6,
        "kernels": turn.instructions,
        "temporaries_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "compile_s": seconds,
        "copies": turn.copies,
    }


def main() -> None:
    """Compiles the programs and prints a line for each."""
    args = parse()
    topology = parse_topology(SLICES[args.device]) if args.device in SLICES else None
    # The plugin for CUDA also wants libraries that only running takes.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    prepare_platform([topology] if topology else [])
    platform = "tpu" if topology else "gpu" if args.device == "H100" else "cpu"
    unrolled = args.layout == "unrolled" or (
        args.layout == "auto" and unrolls(args.layers, platform=platform)
    )
    config = qwen(args.layers, unrolled=unrolled)
    print(f"{args.device}, {args.layers} layers, {'unrolled' if unrolled else 'scanned'}")
    rows = []
    with compiling_for(topology):
        device = device_of(args.device)
        for batch in args.batches:
            case = Case(Transformer(config), device, batch, args.prompt, args.capacity)
            for program in args.programs:
                found = row(case, program, texts=args.texts)
                rows.append(found)
                print(
                    f"batch {batch:>3}  {program:<10} ratio {found['ratio']:.2f}  copied "
                    f"{found['copied_mb']:>8,.1f} MB  kernels {found['kernels']:>5}  temporaries "
                    f"{found['temporaries_mb']:>7,.1f} MB  compiled in {found['compile_s']:.0f} s",
                    flush=True,
                )
                if args.copies:
                    print(*(f"    {name}" for name in found["copies"]), sep="\n")
    if args.output:
        record = provenance(config=None, seed=None)
        write_json(args.output, {"provenance": record, "settings": vars(args), "rows": rows})
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
