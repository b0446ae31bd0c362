"""Opens a released model as it is, and compares its greedy text with that of transformers.

    python -m benchmarks.real_target /models/Qwen2.5-Coder-1.5B-Instruct
    python -m benchmarks.real_target /models/Qwen2.5-Coder-1.5B-Instruct --dtype bfloat16

Three questions of the kind of GSM8K and HumanEval go through the model's own chat template, and
both libraries continue them greedily with the same weights in the same dtype. A different token is
shown with the gap between the two tokens' logits in transformers: a gap near 0 is a tie that
rounding decides. transformers' other settings of generation_config.json (a penalty on repetition,
for instance) are off, since jaxspec decodes what the model computes. One model is in memory at a
time: in float32, a model of 1.5B parameters takes 7 GB.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import jax

from jaxspec.config import TargetConfig
from jaxspec.decoding import Autoregressive, DecodeRules, generate
from jaxspec.evals.opening import open_target

QUESTIONS = (
    "A baker sells 14 loaves in the morning and twice as many in the afternoon. Each loaf costs 3 "
    "dollars. How many dollars does she take in that day?",
    "Complete this Python function.\n\ndef running_maximum(numbers: list[int]) -> list[int]:\n"
    '    """The largest number so far, at each place of the list."""\n',
    "A train leaves at 9:40 and needs 2 hours and 35 minutes. It is 20 minutes late. When does it "
    "arrive?",
)


def main() -> None:
    """Prints a line for each question and dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=24, help="of each answer (24)")
    args = parser.parse_args()
    for dtype in args.dtype:
        prompts, ours, stop_ids = jaxspec_answers(args.folder, dtype, args.tokens)
        gc.collect()
        compare(args.folder, dtype, args.tokens, prompts=prompts, ours=ours, stop_ids=stop_ids)
        gc.collect()


def jaxspec_answers(
    folder: Path, dtype: str, tokens: int
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """(prompts, answers, ids that end an answer)."""
    start = time.perf_counter()
    target = open_target(TargetConfig(path=str(folder), dtype=dtype))  # type: ignore[arg-type]
    jax.block_until_ready(target.params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(target.params))
    print(
        f"{dtype}: opened in {time.perf_counter() - start:.1f} s, {size / 1e9:.2f} GB", flush=True
    )
    prompts = [
        target.tokenizer.encode_prompt([{"role": "user", "content": text}]) for text in QUESTIONS
    ]
    strategy = Autoregressive(target.model, DecodeRules(tokens, target.stop_ids))
    start = time.perf_counter()
    ids = [str(number) for number in range(len(prompts))]
    responses = generate(strategy, target.params, prompts, ids=ids, batch_size=1)
    print(f"{dtype}: jaxspec answered in {time.perf_counter() - start:.0f} s", flush=True)
    return prompts, [list(response.tokens) for response in responses], list(target.stop_ids)


def compare(
    folder: Path,
    dtype: str,
    tokens: int,
    *,
    prompts: list[list[int]],
    ours: list[list[int]],
    stop_ids: list[int],
) -> None:
    """Prints how many tokens are equal, and what the first difference is worth."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    start = time.perf_counter()
    for text, prompt, answer in zip(QUESTIONS, prompts, ours, strict=True):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer(rendered, add_special_tokens=False).input_ids == prompt
        ids = torch.tensor([prompt])
        with torch.no_grad():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=tokens,
                eos_token_id=stop_ids,
                pad_token_id=stop_ids[0],
                output_logits=True,
                return_dict_in_generate=True,
            )
        theirs = output.sequences[0, len(prompt) :].tolist()
        equal = next(
            (
                place
                for place, pair in enumerate(zip(answer, theirs, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(answer), len(theirs)),
        )
        line = f"{dtype}: {equal} of {len(theirs)} tokens equal"
        if equal < max(len(answer), len(theirs)):
            logits = output.logits[equal][0].float()
            gap = float(logits[theirs[equal]] - logits[answer[equal]])
            line += (
                f"; then {tokenizer.decode(answer[equal])!r} instead of "
                f"{tokenizer.decode(theirs[equal])!r}, {gap:.3g} apart in logits"
            )
        print(f"{line}: {tokenizer.decode(theirs)!r}", flush=True)
    print(f"{dtype}: transformers answered in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
