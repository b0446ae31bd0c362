import pytest

from jaxspec.data.answer_journal import AnswerJournal


@pytest.fixture
def journal(tmp_path):
    journal = AnswerJournal(tmp_path / "answers.jsonl")
    journal.add("a", [1, 2], tokens=[3, 4], stopped=True)
    journal.add("b", [1, 2], tokens=(5,), stopped=False)
    return journal


def test_answers_are_found_again(journal):
    again = AnswerJournal(journal.path)
    assert len(again) == 2
    assert again.find("a", [1, 2]) == ((3, 4), True)
    assert again.find("b", (1, 2)) == ((5,), False)
    assert again.find("a", [1, 2, 3]) is None, "another prompt"
    assert again.find("c", [1, 2]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-9],
        lambda raw: raw[:-9] + b"9" + raw[-8:],
        lambda raw: raw[: raw.index(b"\n") + 1] + b"\xff\xfe\n\n" + b"[" * 10,
    ],
)
def test_damaged_lines_are_asked_again(journal, damage):
    journal.path.write_bytes(damage(journal.path.read_bytes()))
    again = AnswerJournal(journal.path)
    assert again.find("a", [1, 2]) == ((3, 4), True)
    assert again.find("b", [1, 2]) is None
    again.add("b", [1, 2], tokens=[5], stopped=False)
    assert len(AnswerJournal(journal.path)) == 2


def test_a_finished_shard_needs_no_journal(journal):
    journal.clear()
    assert not journal.path.exists()
    assert len(journal) == len(AnswerJournal(journal.path)) == 0
    journal.clear()
