"""The Python way: open a target and a drafter, and generate.

>>> import jaxspec
>>> target = jaxspec.open_target("embedded")
>>> drafter = jaxspec.open_drafter("ngram", target=target)
>>> answer = jaxspec.generate(target, "What is 12 + 30?", drafter=drafter, max_new_tokens=8)
>>> len(answer.tokens), len(answer.rounds) < 8
(8, True)
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from jaxspec.config import Dtype, EvaluationConfig, MeshConfig, TargetConfig
from jaxspec.data.chat_template import PLAIN
from jaxspec.data.prompts import Prompt, conversation_of
from jaxspec.decoding import Adaptive
from jaxspec.decoding.generate import bucket_length, check_prompts
from jaxspec.decoding.placement import on_mesh_of
from jaxspec.decoding.stream import Round, stream, warm_up
from jaxspec.drafters.registry import KINDS
from jaxspec.evals import opening
from jaxspec.evals.mesh import decoding_mesh
from jaxspec.evals.opening import DrafterBundle, TargetBundle, untrained_drafter
from jaxspec.evals.speculative.strategies import build_strategy

_compiled_for: weakref.WeakKeyDictionary[TargetBundle, set[tuple[Any, int]]] = (
    weakref.WeakKeyDictionary()
)
"""Of each target, the strategies and padded lengths whose programs jax has by now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """An answer, and how it came about."""

    text: str
    """Without special tokens."""
    tokens: tuple[int, ...]
    """Ids, with the stop token if there was one."""
    stopped: bool
    """Whether a stop token ended the answer; otherwise the limit did."""
    rounds: tuple[Round, ...]
    """The draft-verify rounds; without a drafter, one token each. The first token of the answer
    comes from the prefill and belongs to none of them."""
    prefill_s: float
    """Seconds from the prompt to the first token."""
    compile_s: float
    """Seconds of compiling, which are in no other figure; 0 if this target has answered a prompt of
    similar length in the same way before."""

    @property
    def tau(self) -> float | None:
        """Tokens per round, the target's own included; None: there was no round."""
        emitted = len(self.tokens) - 1
        return emitted / len(self.rounds) if self.rounds else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of the rounds by their wall-clock time; None: there was no round."""
        seconds = sum(each.seconds for each in self.rounds)
        return (len(self.tokens) - 1) / seconds if self.rounds else None


class Generator:
    """A target, alone or with a drafter, that answers one prompt after the other.

    Args:
      target: the model whose output it is.
      drafter: what drafts for it; None: nothing does.
      settings: how to decode.

    Raises:
      ValueError: settings that do not go together.
    """

    def __init__(
        self, target: TargetBundle, drafter: DrafterBundle | None, settings: EvaluationConfig
    ) -> None:
        self.target = target
        self.drafter = drafter or untrained_drafter("none")
        self._seed = settings.seed
        strategy = build_strategy(settings, target, self.drafter)
        assert not isinstance(strategy, Adaptive), "one size is shown round by round"
        self._strategy = strategy
        with on_mesh_of(target.params):
            self._params = strategy.prepare(self.drafter.params_with(target))
        self._compiled = _compiled_for.setdefault(target, set())

    @property
    def block_size(self) -> int:
        """The most tokens of a round."""
        return self._strategy.round_tokens

    def needs_compiling(self, prompt: Sequence[int]) -> bool:
        """Whether no generator like this one has decoded prompts of this length yet."""
        return self._programs(prompt) not in self._compiled

    def compile(self, prompt: Sequence[int]) -> float:
        """Compiles for prompts of this length, unless that is done.

        Returns:
          Seconds.
        """
        if not self.needs_compiling(prompt):
            return 0.0
        seconds = warm_up(self._strategy, self._params, prompt)
        self._compiled.add(self._programs(prompt))
        return seconds

    def _programs(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """What the programs depend on, but for the target's weights and devices."""
        return self._strategy, bucket_length(len(prompt))

    def rounds(self, prompt: Sequence[int], *, name: str) -> Iterator[Round]:
        """The first token and then every round of an answer, as soon as it is there.

        Args:
          prompt: ids.
          name: what errors call the prompt; its random stream depends on it.

        Raises:
          ValueError: see `jaxspec.decoding.stream.stream`.
        """
        return stream(self._strategy, self._params, prompt, name=name, seed=self._seed)

    def generation(self, rounds: Sequence[Round], *, compile_s: float) -> Generation:
        """The answer that all of `rounds` make."""
        tokens = sum((each.emitted for each in rounds), ())
        return Generation(
            text=self.target.tokenizer.decode(tokens),
            tokens=tokens,
            stopped=tokens[-1] in self.target.stop_ids,
            rounds=tuple(rounds[1:]),
            prefill_s=rounds[0].seconds,
            compile_s=compile_s,
        )

    def answer(self, prompt: Sequence[int], *, name: str) -> Generation:
        """The whole answer to a prompt of ids; see `rounds`."""
        # Compiling takes the room that the prompt needs, however long it is.
        check_prompts([prompt], ids=[name], strategy=self._strategy)
        compile_s = self.compile(prompt)
        return self.generation(list(self.rounds(prompt, name=name)), compile_s=compile_s)


def open_target(
    path: str | os.PathLike[str] = "embedded",
    *,
    dtype: Dtype = "float32",
    enable_thinking: bool | None = None,
    tensor: int = 1,
) -> TargetBundle:
    """Opens a target.

    Its weights are laid out for decoding. For `target.model.apply`, take
    `jaxspec.decoding.layout.stack_layers(target.params)`.

    Args:
      path: a Hugging Face folder, or "embedded": the small target in the package.
      dtype: of its weights and computations, "float32" or "bfloat16".
      enable_thinking: for its chat template; None: the template's default.
      tensor: devices that share its heads and layers' widths, for a target that is larger than one
        device; -1: all. Its drafters are spread over the same ones.

    Raises:
      ValueError: no such folder, a model or a dtype that is not supported, or a number of devices
        that does not divide it.
    """
    target = TargetConfig(path=os.fspath(path), dtype=dtype, enable_thinking=enable_thinking)
    mesh = decoding_mesh(MeshConfig(data=1, tensor=tensor), rows=1, option="prompts")
    return opening.open_target(target, default_template=PLAIN, mesh=mesh, laid_out=True)


def open_drafter(path: str | os.PathLike[str], *, target: TargetBundle) -> DrafterBundle:
    """Opens a drafter.

    Args:
      path: the folder of a training run, an exported drafter, or "ngram": prompt look-up, which
        needs no training.
      target: what it drafts for.

    Raises:
      ValueError: no drafter there, or one for another target.
    """
    name = os.fspath(path)
    if name in KINDS and not KINDS[name].is_trained:
        return untrained_drafter(name)
    return opening.open_drafter(name, target=target)


def generate(
    target: TargetBundle,
    prompt: Prompt,
    *,
    drafter: DrafterBundle | None = None,
    system: str = "",
    tools: Sequence[Any] = (),
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    block_size: int = 0,
    seed: int = 0,
) -> Generation:
    """The target's answer to a prompt; a drafter makes it faster and does not change it.

    Args:
      target: what answers.
      prompt: a question, or a conversation: {"role": ..., "content": ...} for each turn.
      drafter: what drafts; None: the target alone.
      system: a system prompt; "": none.
      tools: what the assistant may call, as the target's chat template reads it.
      max_new_tokens: longest answer.
      temperature: 0: greedy; above: sampling.
      top_k: sample from the k likeliest tokens; 0: from all.
      top_p: sample from the likeliest tokens that reach this probability; 1: from all.
      block_size: slots of a draft, its anchor included; 0: the drafter's own.
      seed: of the sampling.

    Raises:
      ValueError: settings out of range, or a prompt that is too long, empty or of another form.
    """
    settings = EvaluationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        block_size=block_size,
        seed=seed,
    )
    ids = target.tokenizer.encode_prompt(conversation_of(prompt, system=system), tools=tools)
    return Generator(target, drafter, settings).answer(ids, name="prompt")
