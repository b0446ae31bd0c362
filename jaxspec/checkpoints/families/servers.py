"""What programs do with an exported drafter: what they ignore, and how they are started.

Facts are from the code of vLLM, SGLang, tpu-inference, speculators 0.9.0 and z-lab's dflash 0.1.0,
as seen in 2026.

>>> names = {"target": "someone/target", "drafter": "my-drafter"}
>>> list(commands({"block_size": 16}, format="zlab", **names))
['vLLM', 'SGLang', 'tpu-inference', "z-lab's script"]
>>> list(commands({"block_size": 16}, format="speculators", **names))
['vLLM']
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Literal

Format = Literal["zlab", "speculators"]


def check_servable(document: Mapping[str, Any]) -> None:
    """Raises ValueError for a drafter, described in z-lab's format, that no server computes."""
    if document["dflash_config"].get("qk_norm") is False:
        raise ValueError(
            "qk_norm: got false, expected true, because every server norms the queries and keys of "
            "a DFlash drafter. Train one with drafter.qk_norm True; jaxspec itself runs this one "
            "from WORKDIR/export."
        )


def warnings(
    document: Mapping[str, Any],
    *,
    format: Format,
    target: Mapping[str, Any],
    has_template: bool = True,
) -> list[str]:
    """Where a server computes something else than the drafter was trained to, one line each.

    Args:
      document: config.json of the drafter in z-lab's format.
      format: the format that it is written in.
      target: config.json of the target.
      has_template: whether the target has a chat template.
    """
    kinds, causal = document["layer_types"], document.get("is_causal")
    slides, is_mixed = "sliding_attention" in kinds, len(set(kinds)) == 2
    found = []
    if slides:
        found.append(
            "tpu-inference ignores sliding windows: it computes full attention in every layer."
        )
        if is_mixed:
            found.append(
                "vLLM serves sliding and full layers together only with its second model runner: "
                "set VLLM_USE_V2_MODEL_RUNNER=1."
            )
        if format == "speculators":
            found.append(
                "speculators counts a sliding window from the anchor, not from each slot, when it "
                "trains further; vLLM counts it from each slot, as here."
            )
        if format == "speculators" and is_mixed and causal is None:
            found.append(
                "vLLM reads this format as causal in every layer, the full ones included: serve "
                "the zlab format there."
            )
    if causal is not None and any(causal != (kind == "sliding_attention") for kind in kinds):
        found.append(
            f"SGLang ignores is_causal ({str(causal).lower()}): sliding layers are causal inside a "
            "block there, full layers are not."
        )
    if causal or (causal is None and slides):
        found.append("tpu-inference ignores causality: no layer is causal inside a block there.")
    if document["num_target_layers"] - 1 in document["dflash_config"]["target_layer_ids"]:
        found.append(
            "The target's last layer is captured. z-lab's code and jaxspec take it after the final "
            "norm; the converter of speculators leaves it out. Name other layers "
            "(drafter.target_layer_ids) if a server rejects it."
        )
    family = target.get("model_type")
    if family in ("gemma3", "gemma3_text"):
        found.append(
            "SGLang multiplies a Gemma 3's embeddings by the root of the width before a drafter "
            "reads them; this one was trained on them as they are stored. Serve it with vLLM."
        )
    if family in ("gpt2", "gpt_neox", "olmo2"):
        found.append(
            f"vLLM's own {family} model may not pass the states of its layers to a drafter. If "
            'serving ends with "Model does not support EAGLE3 interface", add '
            "--model-impl transformers."
        )
    if format == "speculators" and family in ("gpt2", "gpt_neo", "gpt_neox"):
        found.append(
            f"speculators finds no embedding in a {family} (it looks for embed_tokens.weight), so "
            "from_pretrained fails there."
        )
    if not has_template:
        script = " z-lab's script stops there." if format == "zlab" else ""
        found.append(
            f"The target has no chat template: servers refuse chats. Ask for completions.{script}"
        )
    return found


def commands(
    document: Mapping[str, Any],
    *,
    format: Format,
    target: str,
    drafter: str,
    thinks: bool | None = None,
) -> dict[str, str]:
    """Program -> the command that serves or measures with a drafter.

    vLLM counts the drafted tokens, the block without its anchor; SGLang counts the block. The
    format of speculators is for vLLM.

    Args:
      document: config.json of the drafter, in either format.
      format: the format that it is written in.
      target: name or folder of the target.
      drafter: likewise of the drafter.
      thinks: enable_thinking, where z-lab's script has to be told; servers are told per request.
    """
    reasoning = "" if thinks is None else f" --reasoning {'on' if thinks else 'off'}"
    block = document["block_size"]
    speculative = json.dumps(
        {"method": "dflash", "model": drafter, "num_speculative_tokens": block - 1}
    )
    served = (
        f"vllm serve {shlex.quote(target)} \\\n  --speculative-config {shlex.quote(speculative)}"
    )
    if format == "speculators":
        return {"vLLM": served}
    return {
        "vLLM": served,
        "SGLang": (
            f"python -m sglang.launch_server --model-path {shlex.quote(target)} \\\n"
            "  --speculative-algorithm DFLASH \\\n"
            f"  --speculative-draft-model-path {shlex.quote(drafter)} \\\n"
            f"  --speculative-num-draft-tokens {block}"
        ),
        "tpu-inference": served,
        "z-lab's script": (
            f"dflash benchmark transformers --model {shlex.quote(target)} \\\n"
            f"  --draft {shlex.quote(drafter)} --block-size {block}{reasoning} \\\n"
            "  --dataset gsm8k --max-samples 128"
        ),
    }
