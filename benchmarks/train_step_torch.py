"""The step of benchmarks/train_step.py in eager PyTorch, as PyTorch trainers write it.

    python benchmarks/train_step_torch.py
    python benchmarks/train_step_torch.py --alternate     beside jaxspec's step, in turns

For comparison: the same sizes (the defaults there), float32, AdamW, clipping. Attention is one call
over the context and all blocks with a dense boolean mask. torch comes with the extra "test" where a
CPU build exists.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

SEQUENCE, WIDTH, FEATURES, VOCABULARY, LAYERS = 512, 256, 3, 4096, 2
HEADS, KV_HEADS, HEAD_DIM, MLP, BLOCK, ANCHORS = 8, 4, 32, 768, 16, 64

Angles = tuple[torch.Tensor, torch.Tensor]


def angles(positions: torch.Tensor) -> Angles:
    """Cosine and sine, [positions, C]."""
    frequencies = 1e4 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = torch.cat([positions[:, None] * frequencies] * 2, -1)
    return turns.cos(), turns.sin()


def rotate(x: torch.Tensor, turned: Angles) -> torch.Tensor:
    """Rotary embedding, half-split."""
    first, second = x.chunk(2, -1)
    return x * turned[0] + torch.cat((-second, first), -1) * turned[1]


class Layer(nn.Module):
    """One DFlash layer."""

    def __init__(self) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.q, self.o = linear(WIDTH, HEADS * HEAD_DIM), linear(HEADS * HEAD_DIM, WIDTH)
        self.k, self.v = (linear(WIDTH, KV_HEADS * HEAD_DIM) for _ in range(2))
        self.gate, self.up, self.down = linear(WIDTH, MLP), linear(WIDTH, MLP), linear(MLP, WIDTH)
        self.input_norm, self.post_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q_norm, self.k_norm = nn.RMSNorm(HEAD_DIM), nn.RMSNorm(HEAD_DIM)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        mask: torch.Tensor,
        own: Angles,
        every: Angles,
    ) -> torch.Tensor:
        """Blocks x [1, N * K, D], after the layer."""
        normed = self.input_norm(x)
        seen = torch.cat((context, normed), 1)
        q = self.q_norm(self.q(normed).view(1, -1, HEADS, HEAD_DIM)).transpose(1, 2)
        k = self.k_norm(self.k(seen).view(1, -1, KV_HEADS, HEAD_DIM)).transpose(1, 2)
        v = self.v(seen).view(1, -1, KV_HEADS, HEAD_DIM).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            rotate(q, own), rotate(k, every), v, attn_mask=mask, enable_gqa=True
        )
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        normed = self.post_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Drafter(nn.Module):
    """The drafter of `jaxspec.models.dflash`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES * WIDTH, WIDTH, bias=False)
        self.hidden_norm, self.final_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(
        self,
        features: torch.Tensor,
        x: torch.Tensor,
        mask: torch.Tensor,
        own: Angles,
        every: Angles,
    ) -> torch.Tensor:
        """Blocks x [1, N * K, D], after the final norm."""
        context = self.hidden_norm(self.fc(features))
        for layer in self.layers:
            x = layer(x, context, mask, own, every)
        return self.final_norm(x)


def torch_step() -> Callable[[], None]:
    """The step, with its parameters and inputs."""
    torch.manual_seed(0)
    drafter = Drafter()
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-3)
    features = torch.randn(1, SEQUENCE, FEATURES * WIDTH)
    embedding = 0.02 * torch.randn(VOCABULARY, WIDTH)
    anchors = torch.randint(1, SEQUENCE - BLOCK, (ANCHORS,)).sort()[0]
    labels = torch.randint(0, VOCABULARY, (ANCHORS, BLOCK))
    tokens = torch.ones_like(labels)
    tokens[:, 0] = labels[:, 0]
    positions = (anchors[:, None] + torch.arange(BLOCK)).flatten()
    block = torch.arange(ANCHORS).repeat_interleave(BLOCK)
    before_anchor = torch.arange(SEQUENCE) < anchors[block][:, None]
    mask = torch.cat((before_anchor, block[:, None] == block), 1)[None, None]
    own, every = angles(positions), angles(torch.cat((torch.arange(SEQUENCE), positions)))
    decay = torch.exp(-torch.arange(BLOCK - 1) / 10)

    def step() -> None:
        x = embedding[tokens].view(1, -1, WIDTH)
        hidden = drafter(features, x, mask, own, every).view(ANCHORS, BLOCK, WIDTH)[:, 1:]
        logits = hidden @ embedding.T
        log_p = logits.log_softmax(-1).gather(-1, labels[:, 1:, None])[..., 0]
        right = logits.detach().argmax(-1) == labels[:, 1:]
        first_error = (~right) & (right.cumprod(1).roll(1, 1).index_fill(1, torch.tensor(0), 1) > 0)
        focal = (decay * -log_p * first_error).sum() / first_error.sum().clamp(min=1)
        chain = log_p.cumsum(1).exp().mean()
        loss = (decay * -log_p).sum(1).mean() + 0.3 * focal - 40 * chain
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()

    return step


def jaxspec_step() -> Callable[[], None]:
    """The whole step of benchmarks/train_step.py, with the sizes of this file."""
    import jax

    from benchmarks.train_step import build, parse, programs

    objective, inputs = build(parse([]))
    function, arguments = list(programs(objective, inputs).values())[-1]
    return lambda: jax.block_until_ready(function(*arguments))


def main() -> None:
    """Prints the median, or both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10, help="timed steps (10)")
    parser.add_argument(
        "--alternate", action="store_true", help="time jaxspec's step too, step by step in turns"
    )
    args = parser.parse_args()
    steps = {"torch": torch_step()}
    if args.alternate:
        steps["jaxspec"] = jaxspec_step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(args.repeats + 3):
        for name, step in steps.items():
            started, used = time.perf_counter(), time.process_time()
            step()
            if repeat >= 3:
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - used)
    for name in steps:
        print(
            f"{name:<10}{1e3 * statistics.median(seconds[name]):8.1f} ms a step, "
            f"{1e3 * statistics.median(processor[name]):.1f} ms of the processors "
            f"(medians of {args.repeats})"
        )
    if args.alternate:
        ratios = (
            statistics.median(times["jaxspec"]) / statistics.median(times["torch"])
            for times in (seconds, processor)
        )
        print("jaxspec / torch: {:.2f} of the time, {:.2f} of the processors'".format(*ratios))


if __name__ == "__main__":
    main()
