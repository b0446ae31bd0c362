"""The files that make up a tokenizer in a Hugging Face folder.

>>> set(TOKENIZER_FILES) - set(READ_FILES)
{'tokenizer.model'}
"""

from __future__ import annotations

TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
"""Where transformers saves the chat template that it uses with tools, if there are several."""
READ_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    TOOL_TEMPLATE,
)
"""What jaxspec reads; a folder has some of them. Tokenized data is named by their contents, in this
order."""
TOKENIZER_FILES = (*READ_FILES, "tokenizer.model")
"""What exports and runs copy: other programs read tokenizer.model."""
