"""The record of drafts where the target's chat template refuses its questions."""

from __future__ import annotations

from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.draft_record import reference_record
from tests.data import templates
from tests.training import tiny


def test_a_template_that_wants_a_system_turn_costs_the_record_and_not_the_export(tmp_path, capsys):
    needs_system = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", needs_system + templates.OPENING)
    tokenizer = Tokenizer.load(folder)
    turns = [{"role": role, "content": "Hi."} for role in ("system", "user")]
    assert tokenizer.encode_prompt(turns), "with a system turn, the template works"
    record = reference_record({}, {}, target=tiny.TARGET, drafter=tiny.DRAFTER, tokenizer=tokenizer)
    assert record == {}
    printed = capsys.readouterr().out
    assert "no record of drafts" in printed and "no system" in printed
