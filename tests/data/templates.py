"""Chat templates that rewrite, in words of our own, and tokenizer folders that have them."""

import json
import pathlib
import shutil

from jaxspec.data.tokenizer import EMBEDDED_FOLDER

_HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_OFF = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
_QUESTIONS = (
    "{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n"
)
_SPLIT = (
    "{% set parts = m.content.split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
    "{% set thought = m.reasoning_content or (parts[0].split('<think>')[-1].strip('\n')"
    " if parts | length > 1 else '') %}"
)
_CALLS = (
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}"
    "({{ call.function.arguments | tojson }})</call>{% endfor %}"
)

THINKING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}"
    f"{{% endfor %}}{{% for m in messages %}}{_QUESTIONS}{_SPLIT}"
    "{% if loop.index0 > ns.asked and (loop.last or thought) %}"
    "<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    f"{{{{ said }}}}{_CALLS}<|im_end|>\n{{% endif %}}{{% endfor %}}"
    f"{_HEADER}{_OFF}{{% endif %}}{{% endif %}}"
)
"""Drops the thinking of earlier turns, writes an empty block into the last one, and one into the
generation prompt where thinking is off; tools, and calls of them."""

OPENING = (
    f"{{% for m in messages %}}{_QUESTIONS}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endif %}{% endfor %}"
    f"{_HEADER}<think>\n{{% endif %}}"
)
"""Begins the thinking in the generation prompt, and never writes it."""

NO_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
"""Ignores add_generation_prompt."""

BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
"""Needs no generation prompt, and refuses other roles."""


COUNTED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if 'tool_calls' in m %}{{ m.tool_calls | length }}: "
    "{% for call in m.tool_calls %}<call>{{ call.function.name }}</call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    f"{_HEADER}{{% endif %}}"
)
"""Counts the tool calls of each turn that has any, as those of Llama 3.1 and Mistral do."""

LAST_SYSTEM = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>"
    "{{ system + ' ' if loop.last and system }}{{ m.content }}<|im_sep|>"
    "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
"""Writes the system prompt only before a question that comes last, and a space before each answer,
as Mistral's does."""

SILENT = (
    "{% if enable_thinking is not defined or enable_thinking %}{% endif %}"
    f"{{% for m in messages %}}{_QUESTIONS}"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    f"{_HEADER}{_OFF}{{% endif %}}{{% endif %}}"
)
"""Of a model that thinks; it does not read thinking that is kept apart, as SmolLM3's does not."""


NO_THINKING = SILENT.partition("{% endif %}")[2].replace(_OFF, "{% if false %}")
"""The same of a model that does not think."""


def tokenizer_folder(
    folder: pathlib.Path, template: str, *, added: tuple[dict[str, object], ...] = ()
) -> pathlib.Path:
    """A copy of the embedded tokenizer with another template, and further added tokens."""
    shutil.copytree(EMBEDDED_FOLDER, folder)
    (folder / "chat_template.jinja").write_text(template)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    for number, token in enumerate(added):
        entry = {"id": 1024 + number, **dict.fromkeys(flags, False), "special": False, **token}
        document["added_tokens"].append(entry)
    file.write_text(json.dumps(document))
    return folder
