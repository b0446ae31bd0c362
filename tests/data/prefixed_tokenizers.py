"""Small tokenizers that put a space before a text, as those of Llama 2, Mistral and Phi-3 do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_TEXTS = [
    "How far is it to the lake?",
    "The lake is 12 miles away, don't worry.",
    "[INST] Hello world [/INST] Hello there. A lake.It is",
]
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme,
            "split": False,
        },
    }


RULES = {
    "Prepend": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, _SPACES],
        },
        "pre_tokenizer": None,
    },
    **{scheme: _metaspace(scheme) for scheme in ("first", "always", "never")},
}
"""How each kind writes spaces."""

TEMPLATES = {
    "Mistral": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        "{% elif m.role == 'system' %}{{ m.content }}\n\n"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
    "Llama": (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }} </s>"
        "{% elif m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
        "{% else %}<<{{ m.content }}>>\n{% endif %}{% endfor %}"
    ),
    "Phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "Zephyr": (
        "{% for m in messages %}<:{{ m.role }}:>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<:assistant:>\n{% endif %}"
    ),
}
"""Chat templates in words of our own."""


def document(rule: str) -> dict[str, Any]:
    """A tokenizer.json with a small vocabulary and 256 bytes."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=150, special_tokens=list(SPECIAL), show_progress=False
    )
    # Words, so that no merge goes over the end of one.
    words = [f" {word}" for text in _TEXTS for word in text.split(" ")]
    trained.train_from_iterator(words * 2, trainer=trainer)
    made: dict[str, Any] = json.loads(trained.to_str())
    vocab = made["model"]["vocab"]
    vocab.update({f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)})
    made["model"].update(byte_fallback=True, fuse_unk=True)
    for entry in made["added_tokens"]:
        # Phi-3's tokens absorb the line break after them.
        entry["rstrip"] = entry["content"].startswith("<|")
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if rule != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {**made, **RULES[rule], "decoder": {"type": "Sequence", "decoders": decoders}}


def write(
    folder: Path, content: dict[str, Any], *, template: str = TEMPLATES["Mistral"], **config: Any
) -> Path:
    """A folder with a tokenizer.json and a tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    stated = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return folder
