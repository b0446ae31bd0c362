"""README.md of an exported drafter: where it comes from, what was measured, how to serve it.

>>> print(model_card(document, format="zlab", record=record, target="someone/target",
...                  drafter="my-drafter", results=[], warnings=[]))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.checkpoints.families.servers import Format, commands
from jaxspec.config import LossConfig
from jaxspec.training.run_record import from_jsonable

_NOT_RECORDED = "not recorded"


def model_card(
    document: Mapping[str, Any],
    *,
    format: Format,
    record: Mapping[str, Any],
    target: str,
    drafter: str,
    results: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
) -> str:
    """The text of the card.

    Args:
      document: config.json of the drafter in z-lab's format.
      format: the format that it is written in.
      record: the record of the run that trained it (provenance.json), with its "step".
      target: what servers load as the target: its name on the Hub, or a folder.
      drafter: name or folder of the drafter.
      results: rows of a result file of jaxspec; [] if nothing was measured.
      warnings: where servers compute something else.
    """
    block = document["block_size"]
    parts = [
        "---\ntags:\n- speculative-decoding\n- dflash\n---",
        f"# {drafter}",
        f"A DFlash drafter (arXiv 2602.06036) for {target}, trained with jaxspec. It drafts blocks "
        f"of {block} tokens, the first of which is the target's own. It has neither embedding nor "
        "head and is of no use without its target.",
        "## Training\n\n" + _table(_provenance(document, record, target=target)),
        "## Accepted length\n\n" + _measured(results),
    ]
    if warnings:
        parts.append("## Before serving\n\n" + "\n".join(f"- {line}" for line in warnings))
    runs = commands(document, format=format, target=target, drafter=drafter)
    counts = (
        f"vLLM and tpu-inference count the {block - 1} drafted tokens of a block; SGLang and "
        "z-lab's script count the block."
        if format == "zlab"
        else f"vLLM counts the {block - 1} drafted tokens of a block. For SGLang, tpu-inference "
        "and z-lab's script, export the zlab format."
    )
    parts.append(
        f"## Serving\n\n{counts}\n\n"
        + "\n\n".join(f"{name}:\n\n```bash\n{command}\n```" for name, command in runs.items())
    )
    return "\n\n".join(parts) + "\n"


def _provenance(
    document: Mapping[str, Any], record: Mapping[str, Any], *, target: str
) -> dict[str, Any]:
    config = record.get("config") or {}
    data, fingerprints = config.get("data") or {}, record.get("fingerprints") or {}
    step = record.get("step", (config.get("training") or {}).get("steps"))
    commit = record.get("commit")
    return {
        "Target": target,
        "Target's weights (fingerprint)": fingerprints.get("target.path", _NOT_RECORDED),
        "Captured layers": ", ".join(map(str, document["dflash_config"]["target_layer_ids"])),
        "Data": ", ".join(map(str, data.get("sources", ()))) or _NOT_RECORDED,
        "Data (fingerprint)": fingerprints.get("data", _NOT_RECORDED),
        "Loss": _loss(config.get("loss")),
        "Steps": _NOT_RECORDED if step is None else step,
        "Rows per step": data.get("batch_size", _NOT_RECORDED),
        "Commit of jaxspec": f"{commit}{' with changes' if record.get('dirty') else ''}"
        if commit
        else _NOT_RECORDED,
        "Command": f"`{record['command']}`" if record.get("command") else _NOT_RECORDED,
    }


def _loss(recorded: Mapping[str, Any] | None) -> str:
    if not recorded:
        return _NOT_RECORDED
    loss = from_jsonable(LossConfig, recorded, where="loss")
    assert isinstance(loss, LossConfig)
    return f"{loss.label} (decay {loss.decay}, focal {loss.focal}, chain {loss.chain})"


def _measured(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return (
            "Not measured. `python eval.py --config CONFIG --workdir RUN --output FILE.json` "
            "measures it, and `jaxspec export --results FILE.json` writes it here."
        )
    lines = [
        "Tokens per round (tau), the target's own token included: the mean over rounds (micro) and "
        "the mean of each response's mean (macro).",
        "",
        "| Benchmark | Prompts | Temperature | Block | tau micro | tau macro | 95% interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        interval = row["tau_ci95"]
        shown = "–" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
        lines.append(
            f"| {row['benchmark']} | {row['prompts']} | {row['temperature']:g} | "
            f"{row['block_size']} | {row['tau_micro']:.2f} | {row['tau_macro']:.2f} | {shown} |"
        )
    return "\n".join(lines)


def _table(fields: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in fields.items())
    return f"| | |\n|---|---|\n{rows}"
