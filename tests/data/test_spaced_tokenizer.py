"""Tokenizers of Gemma's kind, which write spaces as "▁", against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from jaxspec.data.tokenizer import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEXTS = ["How far is it to the lake?", "The lake is 12 miles away.", "  two  spaces\n\n\tand more"]
TURNS = [
    {"role": "user", "content": "How far is the  lake? ▁ é 你 🙂 <end_of_turn>"},
    {"role": "assistant", "content": "It is 12 miles\naway."},
    {"role": "user", "content": "The   lake"},
]


@pytest.fixture
def document() -> dict[str, Any]:
    """tokenizer.json as Gemma 3 has it, with a small vocabulary."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    trained.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=120, special_tokens=list(SPECIAL), show_progress=False
    )
    trained.train_from_iterator(TEXTS * 3, trainer=trainer)
    made: dict[str, Any] = json.loads(trained.to_str())
    vocab = made["model"]["vocab"]
    vocab.update({f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)})
    made["model"].update(byte_fallback=True, fuse_unk=True)
    return made


def write(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_conversations_and_texts_are_those_of_transformers(
    document: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "gemma", document)
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, " é 你 🙂 ", "\n", " ", "<0x0A>"]:
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == expected
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True) == text
    # The text of a special token in a message stays text: transformers would end the turn there.
    turns = [{**turn, "content": turn["content"].replace("<end_of_turn>", "")} for turn in TURNS]
    prompt = ours.encode_prompt(turns)
    rendered = ours.render(turns, add_generation_prompt=True)
    assert prompt == theirs.encode(rendered, add_special_tokens=False)
    end = ours.vocabulary()["<end_of_turn>"]
    assert end in ours.stop_ids
    assert ours.encode_prompt(TURNS).count(end) == 3


def test_answers_are_learned_as_they_are_generated(
    document: dict[str, Any], tmp_path: Path
) -> None:
    ours = Tokenizer.load(write(tmp_path / "gemma", document))
    ids, mask = ours.encode_conversation(TURNS[:2])
    prompt = ours.encode_prompt(TURNS[:1])
    assert ids[: len(prompt)] == prompt
    learned = [id_ for id_, is_learned in zip(ids, mask, strict=True) if is_learned]
    assert ours.decode(learned, skip_special=False) == "It is 12 miles\naway.<end_of_turn>"


def test_a_byte_that_is_missing_is_noticed(document: dict[str, Any], tmp_path: Path) -> None:
    vocab = document["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    del vocab[last]
    # 0xF4, the first byte of the last characters; the id that it leaves goes to the last token.
    vocab[last] = vocab.pop("<0xF4>")
    with pytest.raises(ValueError, match="loses characters of text"):
        Tokenizer.load(write(tmp_path / "gemma", document))
