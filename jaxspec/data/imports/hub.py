"""Data sets of the Hugging Face Hub: their data files, downloaded once into its usual cache.

>>> download("hf:HuggingFaceH4/ultrachat_200k", split="train_sft")             # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from jaxspec.data.imports.locate import DataFiles, files_of_split, names_split

PREFIX = "hf:"
_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz", ".arrow")
_CONVERTED = "refs/convert/parquet"
"""The branch into which the Hub converts other formats."""
_NAMED = 8
"""Folders that a message names."""


def download(source: str, *, split: str, revision: str = "") -> DataFiles:
    """Downloads the files of a split; those that are in the cache are not downloaded again.

    Args:
      source: "hf:NAME", with the name of a data set.
      split: the files with this split in their names, or with none.
      revision: branch, tag or commit; "": the newest.

    Raises:
      ValueError: no such data set, no network, no files that can be read, or files of several
        configurations.
    """
    # Imported here because it takes a while and few need it.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    name = source.removeprefix(PREFIX)
    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision or None)
        every = sorted(sibling.rfilename for sibling in info.siblings or ())
        found = _data_files(source, every, split=split)
        chosen = files_of_split(found, split)
        _check_folder(source, chosen, of=found, split=split)
        files = [
            huggingface_hub.hf_hub_download(
                name, filename=file, repo_type="dataset", revision=info.sha
            )
            for file in chosen
        ]
    except HFValidationError as error:
        raise ValueError(f"{source} is not a name on the Hugging Face Hub: {error}") from error
    except HfHubHTTPError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{source} cannot be downloaded: {reason}. Check the name; for a data set that asks "
            "for permission, log in first (hf auth login)."
        ) from error
    except (OSError, HTTPError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"{source} cannot be downloaded: {reason}. If the Hugging Face Hub cannot be reached "
            f"from here, download it on a machine with a network {_by_hand(name)}."
        ) from error
    return DataFiles(
        source, tuple(map(Path, files)), tuple(chosen), {"revision": info.sha or revision}
    )


def _data_files(source: str, names: list[str], *, split: str) -> list[str]:
    found = [
        name
        for name in names
        if name.endswith(_ENDINGS) and name.rpartition("/")[2] != "dataset_infos.json"
    ]
    # A data set may hold the same rows in two formats.
    for ending in _ENDINGS:
        if alike := [name for name in found if name.endswith(ending)]:
            return alike
    raise ValueError(
        f"{source} has no files ending in {', '.join(_ENDINGS)}. Most data sets have them on "
        f"another branch: --revision {_CONVERTED} --split {split}."
    )


def _check_folder(source: str, chosen: list[str], *, of: list[str], split: str) -> None:
    """Refuses files of several folders.

    A data set has a folder for each of its configurations, which may hold the same rows in other
    words.
    """
    folders = sorted({_folder(name) for name in chosen})
    if len(folders) == 1:
        return
    ways = []
    for folder in filter(None, folders):
        for words in (f"{folder}/{split}", folder):
            if {_folder(name) for name in of if names_split(name, words)} == {folder}:
                ways.append(f"--split {words}")
                break
    choose = f"Choose one: {', '.join(ways[:_NAMED])}. " if ways else ""
    named = ", ".join(folder or "." for folder in folders[:_NAMED])
    raise ValueError(
        f"The files of the split {split!r} of {source} are in {len(folders)} folders, which may be "
        f"configurations with the same questions: {named}. {choose}To have all of them, download "
        f"the data set {_by_hand(source.removeprefix(PREFIX))}."
    )


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _by_hand(name: str) -> str:
    return f"(hf download {name} --repo-type dataset --local-dir FOLDER), and import that folder"
