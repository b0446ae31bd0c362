"""Runs in .venv-third-party: z-lab's decoding, speculators' model and the reference forward.

    python program.py FOLDER

FOLDER/request.json lists the cases: folders of a target and of its drafter in both formats, prompts
as ids, new tokens. FOLDER/answer.json gets, for each case, what the programs drafted and accepted.
Nothing here knows jaxspec.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import dflash.model
import torch
from dflash.model import DFlashDraftModel
from reference_forward import ReferenceDrafter
from speculators import DFlashDraftModel as SpeculatorsModel
from speculators import DFlashSpeculatorConfig
from transformers import AutoModelForCausalLM

# Its clock waits for a GPU.
dflash.model._cuda_time = time.perf_counter


class Recorded(DFlashDraftModel):
    """z-lab's drafter, which keeps what it drafts."""

    def compute_logits(self, hidden: torch.Tensor, output_head: Any) -> torch.Tensor:
        logits = super().compute_logits(hidden, output_head)
        self.drafts.append(logits.argmax(-1)[0].tolist())
        return logits


def zlab(case: dict[str, Any], target: Any, drafter: Recorded) -> list[dict[str, Any]]:
    """Its own loop on each prompt: the text, and drafts and new tokens of each round."""
    answers = []
    for prompt in case["prompts"]:
        drafter.drafts = []
        result = dflash.model.dflash_generate(
            drafter,
            target,
            torch.tensor([prompt]),
            case["new_tokens"],
            None,
            return_stats=True,
        )
        text = result.output_ids[0, len(prompt) :].tolist()
        answers.append(
            {"text": text, "drafts": drafter.drafts, "produced": result.acceptance_lengths}
        )
    return answers


@torch.no_grad()
def features(case: dict[str, Any], target: Any, text: list[int]) -> torch.Tensor:
    states = target(torch.tensor([text]), output_hidden_states=True).hidden_states
    return torch.cat([states[i + 1] for i in case["layer_ids"]], -1)


@torch.no_grad()
def reference(
    case: dict[str, Any],
    target: Any,
    texts: list[list[int]],
    states: list[torch.Tensor],
    *,
    window_from_anchor: bool = False,
) -> list[list[list[int]]]:
    """What the written-out forward drafts at each anchor."""
    drafter = ReferenceDrafter(Path(case["zlab"]), window_from_anchor=window_from_anchor)
    embed, head = target.get_input_embeddings(), target.get_output_embeddings()
    answers = []
    for text, states_1SE, anchors in zip(texts, states, case["anchors"], strict=True):
        drafts = []
        for anchor in anchors:
            block = torch.full((case["block_size"],), case["mask_id"])
            block[0] = text[anchor]
            hidden = drafter(states_1SE[0, :anchor], embed(block))
            drafts.append(head(hidden[1:]).argmax(-1).tolist())
        answers.append(drafts)
    return answers


def speculators_model(case: dict[str, Any], target: Any) -> SpeculatorsModel:
    config = DFlashSpeculatorConfig.from_pretrained(case["speculators"])
    # Its default needs a compiler; the masks are the same.
    config.transformer_layer_config._attn_implementation = "eager"
    if not case["speculators_finds_weights"]:
        try:
            SpeculatorsModel.from_pretrained(case["speculators"], config=config)
        except ValueError as error:
            assert "None of the requested tensor names" in str(error), error
        else:
            raise AssertionError("speculators opened this target: tell the warning of the export")
        config.speculators_config.verifier.name_or_path = None
    model = SpeculatorsModel.from_pretrained(case["speculators"], config=config).eval()
    if not case["speculators_finds_weights"]:
        model.embed_tokens.weight.data = target.get_input_embeddings().weight.data
        model.lm_head.weight.data = target.get_output_embeddings().weight.data
    return model


@torch.no_grad()
def speculators(
    case: dict[str, Any], target: Any, texts: list[list[int]], states: list[torch.Tensor]
) -> list[list[list[int]]]:
    """What speculators' training pass drafts at each anchor, all anchors of a text in one pass."""
    model = speculators_model(case, target)
    assert model.target_layer_ids == [i + 1 for i in case["layer_ids"]]
    block = model.block_size
    answers = []
    for text, states_1SE, anchors in zip(texts, states, case["anchors"], strict=True):
        # No anchor may lie in the last block.
        padded = torch.tensor([text + [0] * block])
        padded_1SE = torch.nn.functional.pad(states_1SE, (0, 0, 0, block))
        loss_mask = torch.zeros_like(padded)
        loss_mask[0, anchors] = 1
        logits = model._backbone_forward(
            padded_1SE,
            padded,
            loss_mask,
            padded_1SE[..., : model.hidden_size],
            torch.zeros_like(padded),
            max_anchors=len(anchors),
        )[1]
        answers.append(logits[0].unflatten(0, (len(anchors), block))[:, 1:].argmax(-1).tolist())
    return answers


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What all programs draft; the anchors of the reference and speculators are every position."""
    target = AutoModelForCausalLM.from_pretrained(case["target"], dtype=torch.float32).eval()
    drafter = Recorded.from_pretrained(case["zlab"], dtype=torch.float32).eval()
    rounds = zlab(case, target, drafter)
    texts = [prompt + each["text"] for prompt, each in zip(case["prompts"], rounds, strict=True)]
    last = case["new_tokens"] - case["block_size"]
    case["anchors"] = [
        list(range(len(prompt), len(prompt) + last + 1)) for prompt in case["prompts"]
    ]
    states = [features(case, target, text) for text in texts]
    return {
        "zlab": rounds,
        "anchors": case["anchors"],
        "reference": reference(case, target, texts, states),
        "reference_from_anchor": reference(case, target, texts, states, window_from_anchor=True)
        if case["is_narrow"]
        else None,
        "speculators": speculators(case, target, texts, states),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(1)  # The models are tiny.
    cases = json.loads((folder / "request.json").read_text())
    answers, seconds = {}, {}
    for name, case in cases.items():
        started = time.perf_counter()
        answers[name] = answer(case)
        seconds[name] = round(time.perf_counter() - started, 1)
        print(name, seconds[name], flush=True)
    print(json.dumps(seconds))
    (folder / "answer.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
