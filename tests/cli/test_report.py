"""``jaxspec report``: where it writes, and what it refuses."""

from __future__ import annotations

import copy
import json
import sys

import pytest

from jaxspec.cli import report
from jaxspec.cli.main import main
from jaxspec.cli.mistakes import message_of
from tests.evals.html_report.files import diffusion_rows, drafter_rows, write_results


def nested_places(value, place=()):
    yield place
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        yield from nested_places(item, (*place, key))


WRONG = [None, True, -1, 0, 1e308, "text", [], {}, [[1]], {"a": []}]


@pytest.mark.parametrize("rows", [drafter_rows(), diffusion_rows()], ids=["drafters", "diffusion"])
def test_damaged_files_are_reported_or_refused_with_one_message(rows, tmp_path):
    """Each value in turn is replaced by others, or left out."""
    document = {"provenance": {"command": "x", "config": {"a": 1}}, "results": rows[:2]}
    file = tmp_path / "results.json"
    refused = reported = 0
    for number, place in enumerate(list(nested_places(document))[1:]):
        changed = copy.deepcopy(document)
        *path, last = place
        inner = changed
        for key in path:
            inner = inner[key]
        if number % (len(WRONG) + 1):
            inner[last] = WRONG[number % (len(WRONG) + 1) - 1]
        else:
            del inner[last]
        file.write_text(json.dumps(changed))
        try:
            report.main([str(file)])
            reported += 1
        except Exception as error:
            assert message_of(error) is not None, (place, inner)
            refused += 1
    assert refused > 20 and reported > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"a": 1}', "is not a result file"),
        ('{"provenance": 1, "results": []}', "provenance must be an object: got int"),
        ('{"provenance": {}, "results": {}}', "results must be a list: got dict"),
        ('{"provenance": {}, "results": [1]}', "must be an object: got int"),
        ('{"provenance": {}, "results": []}', "holds no rows"),
        ('{"provenance": {}, "results": [{}]}', r"r\.json' is damaged(.|\n)*target is missing"),
    ],
)
def test_what_is_no_result_file_is_refused(content, message, tmp_path):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        report.main([str(tmp_path / "r.json")])
    assert not (tmp_path / "r.html").exists()


def test_a_mistake_is_one_message_and_status_2(tmp_path, monkeypatch, capsys):
    rows = drafter_rows()
    rows[0]["by_prompt"] = [{}] * 500
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"provenance": {}, "results": rows}))
    monkeypatch.setattr(sys, "argv", ["jaxspec", "report", str(file)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {str(file)!r} is damaged, or was not written by eval.py:"
    assert lines[1] == "- results[0] (uniform, gsm8k): by_prompt[0].prompt_id is missing"
    assert lines[-1] == "- and 1,960 more" and len(lines) == 42


def test_the_command_writes_next_to_the_first_file(tmp_path, capsys):
    file = write_results(tmp_path / "r.json", drafter_rows())
    report.main([str(file)])
    assert capsys.readouterr().out == f"Written: {tmp_path / 'r.html'}\n"
    before = (tmp_path / "r.html").read_text()
    report.main([str(file), "--output", str(tmp_path / "r.html")])  # Its own page is replaced.
    assert (tmp_path / "r.html").read_text() == before


def test_places_that_cannot_be_written_to_are_refused(tmp_path):
    file = str(write_results(tmp_path / "r.json", drafter_rows()))
    with pytest.raises(ValueError, match=r"must be an \.html file"):
        report.main([file, "--output", str(tmp_path / "r.json")])
    (tmp_path / "mine.html").write_text("<p>my own page</p>")
    with pytest.raises(ValueError, match="It would be lost"):
        report.main([file, "--output", str(tmp_path / "mine.html")])
    with pytest.raises(ValueError, match="named twice"):
        report.main([file, file])
    with pytest.raises(ValueError, match="No result file"):
        report.main([str(tmp_path / "none.json")])
    assert (tmp_path / "mine.html").read_text() == "<p>my own page</p>"
