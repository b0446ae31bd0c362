"""Training a target: the next token, every weight; from scratch, or from the weights of another.

>>> TARGET.build(RunConfig()).frozen_shapes
{}
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.folders import target_folder
from jaxspec.checkpoints.huggingface import load_target, read_config, save_target
from jaxspec.config import Dtype, LanguageModelConfig, RunConfig, TargetConfig
from jaxspec.data.parts import training_examples
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.models.registry import make_model
from jaxspec.parallel.divisibility import split_sizes
from jaxspec.training.objectives import TargetObjective
from jaxspec.training.tasks.shapes import (
    COMPUTED,
    agreed,
    check_architecture,
    check_positions,
    in_float32,
)
from jaxspec.training.tasks.task import (
    Save,
    Task,
    TaskKind,
    check_attention,
    check_vocabulary,
    initialiser,
    kept_tokenizer,
)


def build(config: RunConfig, *, tokenizer: Tokenizer | None = None) -> Task:
    """The task of a run.

    Raises:
      ValueError: no architecture, settings of it that contradict each other, one whose vocabulary
        is smaller than the tokenizer's, one with fewer positions than a row, or one that could not
        be exported at the end.
    """
    config = dataclasses.replace(config, target=_as_asked(config.target))
    source = None if tokenizer is None else _source(config)
    if tokenizer is None:
        # Shapes may be those of a model that exists, although it could not be trained like this.
        architecture = config.target.architecture or _stored(
            config, target_folder(config.target.path)
        )
    else:
        architecture = _architecture(config)
        check_vocabulary(tokenizer, architecture)
        if config.training.export:
            target_family(architecture)
    check_positions(config, architecture)
    check_attention(config, architecture)
    if architecture.attention == "cudnn" and config.data.sequence_length % 2:
        raise ValueError(
            f"data.sequence_length is {config.data.sequence_length}, but cudnn "
            "(target.attention) has a gradient for even lengths only. Choose one, or 'auto'."
        )
    architecture = in_float32(architecture)
    model = make_model(architecture)

    def load_initial(shardings: Any) -> Any:
        assert source is not None, "there are weights to start from"
        _, params = load_target(source, dtype=architecture.param_dtype, shardings=shardings)
        return params

    return Task(
        title="target",
        config=config,
        objective=TargetObjective(model, chunk_tokens=config.training.chunk_tokens),
        init=initialiser(model),
        models={"The target": split_sizes(architecture)},
        save=_saves(architecture),
        load_initial=None if source is None else load_initial,
        reads={} if source is None else {"target.path": source},
    )


def open_tokenizer(config: RunConfig, *, workdir: Path) -> Tokenizer:
    """The tokenizer that is named, that of the weights to start from, or one trained on the text.

    A trained one lies in a temporary folder until `PreparedTask.keep_tokenizer`.

    Raises:
      ValueError: no such tokenizer, a run without an architecture, or a tokenizer to be trained for
        weights that have one.
    """
    _architecture(config)  # Before a tokenizer is trained for nothing.
    source = _source(config)
    if source is not None and config.data.tokenizer == "train":
        raise ValueError(
            f'data.tokenizer is "train", but training starts from the weights in {source}, which '
            "know the ids of their own tokenizer: leave data.tokenizer empty."
        )
    choice = config.data.tokenizer or (source or "embedded")
    if choice != "train":
        return Tokenizer.load(choice, template_options=config.target.template_options)
    kept = kept_tokenizer(workdir)
    if (kept / "tokenizer.json").is_file():
        return Tokenizer.load(kept)
    texts = [content for example in training_examples(config.data) for _, content in example.turns]
    print(f"Training a tokenizer of {config.data.tokenizer_vocab} tokens.", flush=True)
    folder = tempfile.mkdtemp(prefix="jaxspec-tokenizer-")
    try:
        tokenizer = Tokenizer.train(texts, vocab_size=config.data.tokenizer_vocab, folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(tokenizer, shutil.rmtree, folder, ignore_errors=True)
    return tokenizer


def read_export(config: RunConfig, folder: Path) -> tuple[Any, Save]:
    """See `TaskKind.read_export`."""
    del config
    architecture, params = load_target(folder)
    return params, _saves(architecture)


def _source(config: RunConfig) -> Path | None:
    """The folder of the weights that training starts from; None: from scratch.

    A shape and the target that ships in the package, which is the default of target.path, mean a
    model of this shape from scratch.
    """
    path = config.target.path
    from_scratch = path in ("", "embedded") if config.target.architecture else not path
    return None if from_scratch else target_folder(path)


def _architecture(config: RunConfig) -> LanguageModelConfig:
    source, asked = _source(config), config.target.architecture
    if source is not None:
        found = _stored(config, source)
        check_architecture(asked, found, source)
        return found
    if asked is None:
        raise ValueError(
            "Training a target needs target.architecture (its sizes, to train from scratch) or "
            "target.path (weights to start from)."
        )
    return asked


def _stored(config: RunConfig, folder: Path) -> LanguageModelConfig:
    """The shape in a folder, computed as the run asks for and not as it was stored."""
    asked = config.target.architecture
    computed = agreed(config.target)
    if asked is not None:
        computed = {name: getattr(asked, name) for name in COMPUTED} | computed
    return dataclasses.replace(read_config(folder), **computed)


def _as_asked(target: TargetConfig) -> TargetConfig:
    """The target's settings, with an architecture that says how it is computed."""
    if target.architecture is None:
        return target
    architecture = dataclasses.replace(target.architecture, **agreed(target))
    return dataclasses.replace(target, architecture=architecture)


def _saves(architecture: LanguageModelConfig) -> Save:
    def save(
        folder: Path,
        params: Any,
        *,
        tokenizer: Tokenizer,
        dtype: Dtype | None,
        provenance: Mapping[str, Any],
    ) -> None:
        save_target(
            folder,
            architecture,
            params,
            dtype=dtype,
            tokenizer_folder=tokenizer.folder,
            eos_token_ids=tokenizer.stop_ids,
            provenance=provenance,
        )

    return save


TARGET = TaskKind(
    name="target",
    open_tokenizer=open_tokenizer,
    build=build,
    read_export=read_export,
    computed_as=lambda config: _as_asked(config.target).architecture or config.target,
    becomes=lambda config: "target",
)
