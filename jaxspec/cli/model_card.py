"""README.md of an exported drafter: where it comes from, what was measured, how to serve it.

>>> print(model_card(document, format="zlab", record=record, target="someone/target",
...                  drafter=Path("my-drafter"), results=[], warnings=[]))  # doctest: +SKIP
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.checkpoints.families.servers import Format, commands
from jaxspec.config import LossConfig
from jaxspec.training.run_record import from_jsonable

_NOT_RECORDED = "not recorded"
_MODE = (
    "The drafter learned with `enable_thinking` {0}. Servers take the default of the chat template "
    'unless a request names the mode: send `"chat_template_kwargs": {{"enable_thinking": {0}}}` '
    "with each chat request."
)
_WHERE = " Run the commands in the folder that holds {}, or give its path or its name on the Hub."


def model_card(
    document: Mapping[str, Any],
    *,
    format: Format,
    record: Mapping[str, Any],
    target: str,
    drafter: Path,
    results: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
    has_thinking_mode: bool = False,
) -> str:
    """The text of the card.

    Args:
      document: config.json of the drafter in z-lab's format.
      format: the format that it is written in.
      record: the record of the run that trained it (provenance.json), with its "step".
      target: what servers load as the target: its name on the Hub, or a folder.
      drafter: its folder. The commands name it as they name the target: a folder where that is
        one, otherwise by its last part.
      results: its rows of a result file of jaxspec; [] if nothing was measured.
      warnings: where servers compute something else.
      has_thinking_mode: whether the target's chat template reads enable_thinking.
    """
    block = document["block_size"]
    thinks = _thinking(record) if has_thinking_mode else None
    # A name on the Hub has at most one slash, and not at its beginning.
    is_local = Path(target).is_absolute()
    parts = [
        "---\ntags:\n- speculative-decoding\n- dflash\n---",
        f"# {drafter.name}",
        f"A DFlash drafter (arXiv 2602.06036) for {target}, trained with jaxspec. It drafts blocks "
        f"of {block} tokens, the first of which is the target's own. It has neither embedding nor "
        "head and is of no use without its target.",
        "## Training\n\n"
        + _table(_provenance(document, record, target=target, has_modes=has_thinking_mode)),
        "## Accepted length\n\n" + _measured(results),
    ]
    if warnings:
        parts.append("## Before serving\n\n" + "\n".join(f"- {line}" for line in warnings))
    shown = str(drafter) if is_local else drafter.name
    runs = commands(document, format=format, target=target, drafter=shown, thinks=thinks)
    counts = (
        f"vLLM and tpu-inference count the {block - 1} drafted tokens of a block; SGLang and "
        "z-lab's script count the block."
        if format == "zlab"
        else f"vLLM counts the {block - 1} drafted tokens of a block. For SGLang, tpu-inference "
        "and z-lab's script, export the zlab format."
    )
    mode = "" if thinks is None else f"{_MODE.format(str(thinks).lower())}\n\n"
    parts.append(
        f"## Serving\n\n{counts}{'' if is_local else _WHERE.format(shown)}\n\n{mode}"
        + "\n\n".join(f"{name}:\n\n```bash\n{command}\n```" for name, command in runs.items())
    )
    return "\n\n".join(parts) + "\n"


def _provenance(
    document: Mapping[str, Any], record: Mapping[str, Any], *, target: str, has_modes: bool
) -> dict[str, Any]:
    config = record.get("config") or {}
    fingerprints = record.get("fingerprints") or {}
    step = record.get("step", (config.get("training") or {}).get("steps"))
    commit = record.get("commit")
    parts = record.get("segments") or [record]
    return {
        "Target": target,
        "Target's weights (fingerprint)": fingerprints.get("target.path", _NOT_RECORDED),
        "Captured layers": ", ".join(map(str, document["dflash_config"]["target_layer_ids"])),
        **({"Thinking (enable_thinking)": _in_turn(map(_mode, parts))} if has_modes else {}),
        "Data": _in_turn(_sources(part) for part in parts),
        "Data (fingerprint)": fingerprints.get("data", _NOT_RECORDED),
        "Loss": _in_turn(_loss(part) for part in parts),
        "Steps": _NOT_RECORDED if step is None else _steps(step, parts),
        "Rows per step": _in_turn(_setting(part, "data", "batch_size") for part in parts),
        "Commit of jaxspec": f"{commit}{' with changes' if record.get('dirty') else ''}"
        if commit
        else _NOT_RECORDED,
        "Command": _in_turn(
            f"`{part['command']}`" if part.get("command") else _NOT_RECORDED for part in parts
        ),
    }


def _in_turn(texts: Iterable[str]) -> str:
    """What the parts of a run had, one after the other; once what stayed the same."""
    return ", then ".join(text for text, _ in itertools.groupby(texts))


def _steps(step: int, parts: Sequence[Mapping[str, Any]]) -> str:
    changes = [str(part["from_step"]) for part in parts if part.get("from_step")]
    return (
        f"{step} (continued with other settings after {', '.join(changes)})"
        if changes
        else str(step)
    )


def _setting(part: Mapping[str, Any], group: str, name: str) -> str:
    settings = (part.get("config") or {}).get(group) or {}
    return str(settings.get(name, _NOT_RECORDED))


def _thinking(part: Mapping[str, Any]) -> bool | None:
    """The mode in which the target answered; None: the default of its chat template."""
    mode = ((part.get("config") or {}).get("target") or {}).get("enable_thinking")
    return mode if isinstance(mode, bool) else None


def _mode(part: Mapping[str, Any]) -> str:
    if not part.get("config"):
        return _NOT_RECORDED
    mode = _thinking(part)
    return "the chat template's default" if mode is None else str(mode).lower()


def _sources(part: Mapping[str, Any]) -> str:
    data = (part.get("config") or {}).get("data") or {}
    return ", ".join(map(str, data.get("sources", ()))) or _NOT_RECORDED


def _loss(part: Mapping[str, Any]) -> str:
    recorded = (part.get("config") or {}).get("loss")
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
        "| Benchmark | Decoding | Prompts | Temperature | Block | tau micro | tau macro | "
        "95% interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        interval = row["tau_ci95"]
        shown = "–" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
        lines.append(
            f"| {row['benchmark']} | {_decoding(row)} | {row['prompts']} | "
            f"{row['temperature']:g} | "
            f"{row['block_size']} | {row['tau_micro']:.2f} | {row['tau_macro']:.2f} | {shown} |"
        )
    return "\n".join(lines)


def _decoding(row: Mapping[str, Any]) -> str:
    """How drafts were verified. Servers verify one block at a time, not a tree."""
    nodes, chains = row.get("tree_nodes", 0), row.get("chains", 1)
    if nodes:
        return f"{row['verifier']}, tree of {nodes}"
    return f"{row['verifier']}, {chains} chains" if chains > 1 else str(row["verifier"])


def _table(fields: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in fields.items())
    return f"| | |\n|---|---|\n{rows}"
