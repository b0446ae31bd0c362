"""The Python way."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxspec
from jaxspec.config import EvaluationConfig, TargetConfig
from jaxspec.data.chat_template import PLAIN
from jaxspec.decoding import generate as decode
from jaxspec.evals.opening import open_target
from jaxspec.evals.speculative.strategies import build_autoregressive
from tests.evals.drafter_folders import write_folders

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROMPT = "What is 12 + 30?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


def test_a_drafter_changes_only_the_rounds(folders):
    path, (run, _) = folders
    target = jaxspec.open_target(path)
    drafter = jaxspec.open_drafter(run, target=target)  # or "ngram", which needs no training
    answer = jaxspec.generate(target, PROMPT, drafter=drafter, max_new_tokens=12)
    alone = jaxspec.generate(target, PROMPT, max_new_tokens=12)

    assert answer.text == alone.text and answer.tokens == alone.tokens
    assert answer.tau == 11 / len(answer.rounds) and alone.tau == 1.0
    assert answer.tokens_per_s > 0 and answer.compile_s > 0 and answer.prefill_s > 0
    assert not answer.stopped
    assert {len(each.drafted) for each in answer.rounds} == {3}
    assert {each.drafted for each in alone.rounds} == {()}
    # The same as in an evaluation.
    strategy = build_autoregressive(EvaluationConfig(max_new_tokens=12), target)
    ids = target.tokenizer.encode_prompt([{"role": "user", "content": PROMPT}])
    (response,) = decode(strategy, target.params, [ids], ids=["a"], batch_size=1)
    assert answer.tokens == response.tokens
    # The weights are in memory once.
    prepared = jax.tree.leaves(strategy.prepare(target.params))
    opened = jax.tree.leaves(target.params)
    assert len(prepared) == len(opened)
    assert all(after is before for after, before in zip(prepared, opened, strict=True))
    reference = open_target(TargetConfig(path=str(path)), default_template=PLAIN)
    assert (target.name, target.fingerprint) == (reference.name, reference.fingerprint)


def test_look_up_conversations_and_sampling(folders):
    target = jaxspec.open_target(folders[0])
    drafter = jaxspec.open_drafter("ngram", target=target)
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye."},
    ]
    asked = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    first, again = (
        jaxspec.generate(target, turns, drafter=drafter, seed=3, **asked) for _ in range(2)
    )
    assert first.tokens == again.tokens
    # Without decoding the prompt twice.
    assert first.compile_s > 0 and again.compile_s == 0
    other = jaxspec.generate(target, turns, drafter=drafter, seed=4, **asked)
    system = jaxspec.generate(target, turns, drafter=drafter, seed=3, system="Be brief.", **asked)
    assert first.tokens not in (other.tokens, system.tokens)


def test_mistakes_are_named(folders):
    target = jaxspec.open_target(folders[0])
    with pytest.raises(ValueError, match="The prompt is empty"):
        jaxspec.generate(target, " \n")
    with pytest.raises(ValueError, match=r"has \d+ tokens; with 999 new ones"):
        jaxspec.generate(target, PROMPT, max_new_tokens=999)
    with pytest.raises(ValueError, match="has a system prompt of its own"):
        turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        jaxspec.generate(target, turns, system="c")
    with pytest.raises(ValueError, match=r"a text, or a list of messages .*: got \['a', 'b'\]"):
        jaxspec.generate(target, ["a", "b"])
    with pytest.raises(ValueError, match=r"dtype must be .*: got 'float16'"):
        jaxspec.open_target(folders[0], dtype="float16")
    with pytest.raises(ValueError, match="No folder nowhere"):
        jaxspec.open_drafter("nowhere", target=target)
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        jaxspec.generat  # noqa: B018


def test_importing_stays_quick():
    """Nothing heavy is imported before it is used."""
    code = "import jaxspec, sys; dir(jaxspec); print({'jax', 'numpy', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert {"generate", "open_target"} <= set(dir(jaxspec))


def documented() -> dict[str, str]:
    """Each program in the documents that opens a target -> a document that shows it."""
    return {
        block: file.name
        for file in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
        for block in BLOCK.findall(file.read_text(encoding="utf-8"))
        if "jaxspec.open_target(" in block
    }


def test_the_readme_has_such_a_program():
    assert "jaxspec.open_target(" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", documented())
def test_the_lines_of_the_documents_run(program, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    names = runpy.run_path(str(file))
    assert names["answer"].tokens == names["alone"].tokens
    assert len([line for line in program.splitlines() if line]) <= 10
