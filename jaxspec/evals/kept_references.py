"""The target's own answers, kept in a folder for other evaluations of the same target.

They depend on the target, the prompts and a few settings, but on no drafter. So where many drafters
of a target are measured one by one, only the first evaluation decodes them.

>>> kept = KeptReferences(                                                     # doctest: +SKIP
...     folder, identity=identity, answered=Response, echo=print)
>>> reference = kept.reference("gsm8k", examples, decode=evaluation.reference)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from jaxspec.data.examples import Example
from jaxspec.evals.benchmarks import Reference
from jaxspec.evals.conversations import AnsweredT
from jaxspec.evals.progress import Echo
from jaxspec.evals.unfinished import CONDITIONS, digest, reference_of
from jaxspec.files import refusing, write_text
from jaxspec.json_files import LARGEST_OF_RESULTS, read_object
from jaxspec.provenance import jsonable

SETTINGS = (
    *("max_new_tokens", "batch_size", "temperature", "top_k", "top_p", "min_p", "suppress"),
    *("reference_rows", "max_prompt_tokens", "passage_tokens", "seed"),
)
"""Settings of `EvaluationConfig` that the target's own answers depend on. (The batch is one of
them because sums round differently in other shapes.)"""


@dataclasses.dataclass(frozen=True)
class KeptReferences(Generic[AnsweredT]):
    """A folder of the target's own answers, a file for each benchmark.

    Args:
      folder: the folder; it is made when something is kept.
      identity: see `jaxspec.evals.unfinished.identity_of`.
      answered: the class of responses. Its fields are plain values and tuples of them.
      echo: where lines of text go.
    """

    folder: Path
    identity: Mapping[str, Any]
    answered: type[AnsweredT]
    echo: Echo

    def reference(
        self,
        name: str,
        examples: Sequence[Example],
        *,
        decode: Callable[[str, Sequence[Example]], Reference[AnsweredT]],
    ) -> Reference[AnsweredT]:
        """A benchmark's prompts and the target's own answers, decoded if they are not kept.

        A line says so if they cannot be kept.

        Raises:
          ValueError: the file is damaged.
        """
        about = self._about(name, examples)
        file = self.folder / f"{digest([name, about])}.json"
        if file.is_file():
            found = read_object(file, largest=LARGEST_OF_RESULTS)
            if found.get("about") != about or found.get("digest") != digest(found.get("reference")):
                raise ValueError(
                    f"{file} is damaged: delete it, and the target answers these prompts again."
                )
            self.echo(f"{name}: the target's own answers are in {file}.")
            return reference_of(found["reference"], answered=self.answered)
        reference = decode(name, examples)
        kept = _as_json(reference)
        content = {"about": about, "digest": digest(kept), "reference": kept}
        try:
            with refusing(self.folder, option="--references"):
                # On one line: tokens are most of it.
                write_text(file, json.dumps(content) + "\n")
        except ValueError as error:
            # Hours of decoding are not thrown away for it.
            self.echo(f"{error} The target's own answers to {name} are used, but not kept there.")
        return reference

    def _about(self, name: str, examples: Sequence[Example]) -> dict[str, Any]:
        """What the answers depend on, as JSON holds it."""
        about: dict[str, Any] = {
            "benchmark": name,
            "prompts": digest(jsonable(examples)),
            "target": self.identity["target"],
            "settings": {key: self.identity["evaluation"][key] for key in SETTINGS},
            **{key: self.identity[key] for key in CONDITIONS},
        }
        return _as_json(about)


def _as_json(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(jsonable(value)))
    return found
