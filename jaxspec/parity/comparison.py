"""Whether a drafter computes the same in training, in decoding and in an independent program.

>>> findings = compare(TargetConfig(path="embedded"), "runs/full")             # doctest: +SKIP
>>> [finding.name for finding in findings if finding.status == "FAIL"]         # doctest: +SKIP
[]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxspec.checkpoints.folders import exported_weights, target_folder
from jaxspec.config import TargetConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.data.tokenizer_files import has_tokenizer
from jaxspec.evals.opening import DrafterBundle, TargetBundle, open_drafter, open_target
from jaxspec.files import user_path
from jaxspec.json_files import read_object
from jaxspec.ops.precision import exact_products
from jaxspec.parity import independent
from jaxspec.parity.findings import Finding, equal_arrays, equal_drafts, judged
from jaxspec.parity.passes import by_decoding, by_training
from jaxspec.parity.questions import QUESTIONS
from jaxspec.parity.recorded import as_recorded
from jaxspec.parity.reference_drafter import ReferenceDrafter
from jaxspec.parity.sources import OwnTarget, Source, TransformersTarget, Unavailable
from jaxspec.parity.texts import answered
from jaxspec.training.draft_pass import Text
from jaxspec.training.draft_record import KEY

NEW_TOKENS = 48
"""Tokens of an answer."""
MOST_QUESTIONS = 16
"""The training pass takes all texts in one row."""
_LAYERS = "layers: jaxspec, transformers"


def compare(
    target: TargetConfig,
    drafter: str,
    *,
    questions: Sequence[str] = QUESTIONS,
    new_tokens: int = NEW_TOKENS,
    with_variants: bool = True,
    say: Callable[[str], None] = print,
) -> list[Finding]:
    """Every line of the comparison; all is computed in float32.

    Args:
      target: the target.
      drafter: a run's folder, or a drafter's, in z-lab's format or in that of speculators.
      questions: the target answers them, and the drafter drafts in its answers.
      new_tokens: length of an answer.
      with_variants: whether to find out if the checkpoint was trained otherwise than it says.
      say: is told what is being done.

    Raises:
      ValueError: folders that cannot be opened, a drafter of another kind or for another target, or
        questions that do not fit.
    """
    with exact_products("float32"):
        folder = target_folder(target.path)
        say(f"Opening {target.path} and {drafter} in float32 ...")
        opened = open_target(target)
        bundle = open_drafter(drafter, target=opened)
        if bundle.kind != "dflash":
            raise ValueError(
                f"{drafter} is a drafter of kind {bundle.kind}: expected a DFlash drafter, which "
                "is what servers load."
            )
        weights = exported_weights(user_path(drafter))
        second = ReferenceDrafter(weights)
        if second.mask_token_id is None:
            second.mask_token_id = bundle.model.config.mask_token_id
        if len(questions) > MOST_QUESTIONS:
            say(f"Of {len(questions)} questions, the first {MOST_QUESTIONS} are asked.")
            questions = questions[:MOST_QUESTIONS]
        say(f"{target.path} answers {len(questions)} questions ...")
        texts = answered(opened, questions, new_tokens=new_tokens, block_size=second.block_size)
        say("Comparing ...")
        own = _own_tokenizer(weights, target)
        findings = [*_files(opened, bundle, second, texts, own)]
        findings += _passes(opened, bundle, second, texts, folder, with_variants=with_variants)
        findings += _record(opened, bundle, weights)
    return findings


def _files(
    target: TargetBundle,
    drafter: DrafterBundle,
    second: ReferenceDrafter,
    texts: Sequence[Text],
    own: Tokenizer | None,
) -> Iterator[Finding]:
    """What the files say; `own` is the tokenizer in the drafter's folder."""
    config = drafter.model.config
    pairs = {
        "layer ids": (list(config.target_layer_ids), list(second.layer_ids)),
        "mask token": (config.mask_token_id, second.mask_token_id),
        "block size": (config.block_size, second.block_size),
    }
    for name, (ours, theirs) in pairs.items():
        detail = f"{ours}" if ours == theirs else f"{ours} and {theirs}"
        yield judged(f"read alike: {name}", ours == theirs, detail)
    yield _mask_row(target, second.mask_token_id, texts)
    if own is not None and own.has_template and target.tokenizer.has_template:
        turns = [{"role": "user", "content": QUESTIONS[0]}]
        same = own.encode_prompt(turns) == target.tokenizer.encode_prompt(turns)
        detail = "the same prompt ids" if same else "the drafter's folder has another one"
        yield judged("chat template", same, detail)


def _mask_row(target: TargetBundle, mask: int | None, texts: Sequence[Text]) -> Finding:
    """Whether texts use the mask; where every row is a token's, the end of a text may be it."""
    assert mask is not None, "open_drafter refuses a drafter without one"
    ends = mask in target.stop_ids and not target.reserved_ids
    uses = any(mask in (text.tokens[:-1] if ends else text.tokens) for text in texts)
    unused = not uses and (ends or mask not in target.stop_ids)
    detail = f"id {mask} of {target.config.vocab_size} rows"
    if not unused:
        detail += ", but texts use it"
        detail += "" if ends else ": choose an unused row, and train with it"
    elif ends:
        detail += ", all of which are used: this one only ends texts"
    return judged("mask row is unused", unused, detail)


def _own_tokenizer(weights: Path, target: TargetConfig) -> Tokenizer | None:
    if not has_tokenizer(weights):
        return None
    return Tokenizer.load(weights, template_options=target.template_options)


def _passes(
    target: TargetBundle,
    drafter: DrafterBundle,
    second: ReferenceDrafter,
    texts: Sequence[Text],
    folder: Path,
    *,
    with_variants: bool,
) -> Iterator[Finding]:
    """What is computed, three times."""
    source: Source = OwnTarget(target)
    try:
        source = TransformersTarget(folder)
    except Unavailable as reason:
        yield Finding(_LAYERS, "not run", str(reason))
    features, training_NGV = by_training(target, drafter, texts)
    if isinstance(source, TransformersTarget):
        theirs = [source.features(text.tokens, second.layer_ids) for text in texts]
        got_SE, expected_SE = np.concatenate(features), np.concatenate(theirs)
        if got_SE.shape == expected_SE.shape:
            yield equal_arrays(_LAYERS, got_SE, expected_SE)
        else:
            detail = f"got {got_SE.shape[1]} features, not {expected_SE.shape[1]}"
            yield judged(_LAYERS, False, detail)
    decoding_NGV = by_decoding(target, drafter, texts)
    stated_NGD = independent.drafted(second, source, texts)
    stated_NGV = source.logits(stated_NGD)
    yield equal_drafts("drafts: training, decoding", training_NGV, decoding_NGV)
    yield equal_drafts("drafts: training, independent", training_NGV, stated_NGV)
    yield equal_drafts("drafts: decoding, independent", decoding_NGV, stated_NGV)
    del training_NGV, decoding_NGV, stated_NGV  # Large where the vocabulary is.
    if with_variants:
        yield from independent.variants(
            second, source, texts, stated_NGD, num_layers=target.config.num_layers
        )


def _record(target: TargetBundle, drafter: DrafterBundle, weights: Path) -> list[Finding]:
    """What the export said of itself."""
    file = weights / "provenance.json"
    whole = read_object(file) if file.is_file() else {}
    record = whole.get(KEY)
    if not isinstance(record, dict):
        reason = "the folder has no record of its drafts: an export of jaxspec carries one"
        return [Finding("as exported", "not run", reason)]
    raw = read_object(weights / "config.json")
    stored = raw.get("dtype") or raw.get("torch_dtype")
    is_rounded = stored != "float32" or record.get("computed_in") != ["float32"]
    return as_recorded(record, target, drafter, is_rounded=is_rounded)
