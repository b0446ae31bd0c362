"""Reading and writing of weights: Hugging Face folders (safetensors) and orbax train states.

>>> from jaxspec.checkpoints import huggingface
>>> config, params = huggingface.load_target("Qwen3-4B", dtype="bfloat16")  # doctest: +SKIP
"""
