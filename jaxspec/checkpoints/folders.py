"""Where a target lies (the user's folder, or the one shipped in the package), or a run's weights.

>>> target_folder("embedded").name
'target'
"""

from __future__ import annotations

import hashlib
from pathlib import Path

EMBEDDED_TARGET = Path(__file__).parent.parent / "data" / "embedded" / "target"
_HEAD_BYTES = 1 << 20


def target_folder(path: str) -> Path:
    """The folder with config.json, safetensors and tokenizer that `TargetConfig.path` names.

    Raises:
      ValueError: nothing is named, or there is no such folder.
    """
    if not path:
        raise ValueError(
            "target.path is empty: name a folder with config.json, safetensors and tokenizer.json "
            '(--target.path FOLDER), or "embedded" for the small target in the package.'
        )
    folder = EMBEDDED_TARGET if path == "embedded" else Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"target.path is {path!r}, but there is no config.json in {folder}: a target is a "
            "folder as Hugging Face models have it (config.json, *.safetensors, tokenizer.json). "
            "A target trained here lies in WORKDIR/export. Models are not downloaded: "
            "hf download NAME --local-dir FOLDER."
        )
    return folder


def fingerprint(folder: Path, *, config_json: bytes | None = None) -> str:
    """Tells models apart without reading all of their weights.

    Args:
      folder: the model's.
      config_json: the content of its config.json, where it has been read already.
    """
    if config_json is None:
        config_json = (folder / "config.json").read_bytes()
    digest = hashlib.sha256(config_json)
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as weights:
            digest.update(weights.read(_HEAD_BYTES))
            # The end too: the head of a large file is its table of names.
            weights.seek(max(0, file.stat().st_size - _HEAD_BYTES))
            digest.update(weights.read())
    return digest.hexdigest()[:16]


def exported_weights(folder: Path) -> Path:
    """Where the weights of a run's folder lie.

    Raises:
      ValueError: says what is missing.
    """
    for candidate in (folder / "export", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.is_dir():
        raise ValueError(f"No folder {folder}: expected the --workdir of a training run.")
    raise ValueError(
        f"No exported weights in {folder}: expected {folder / 'export' / 'config.json'}. "
        "train.py writes it at the end of a run (training.export true); for a run that was "
        "stopped, `jaxspec export` makes it from the last checkpoint."
    )
