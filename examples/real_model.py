"""A released model on a CPU with 24 GB of memory: prompt look-up, exact and faster than the model.

    MODEL=/models/Qwen2.5-Coder-1.5B-Instruct python eval.py --config examples/real_model.py \
        --drafters ngram --output runs/real_model/block.json

examples/real_model.sh runs the whole comparison. In float32 the weights take 6.2 GB, and a token
about a second on 2 cores, so there are few prompts and short answers.
"""

import os

from jaxspec.config import EvaluationConfig, RunConfig, TargetConfig


def get_config() -> RunConfig:
    """The evaluation."""
    return RunConfig(
        name="real_model",
        target=TargetConfig(path=os.environ.get("MODEL", "models/Qwen2.5-Coder-1.5B-Instruct")),
        evaluation=EvaluationConfig(
            benchmarks=("humaneval", "mbpp", "spec_bench/summarization"),
            prompts=5,
            max_new_tokens=64,
            max_prompt_tokens=1024,
            batch_size=1,
            timing_prompts=5,
            timing_repeats=1,
        ),
    )
