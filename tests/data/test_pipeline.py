import dataclasses
import json
import os

import numpy as np
import pytest

from jaxspec.config import DataConfig
from jaxspec.data import pipeline as pipeline_module
from jaxspec.data.examples import Example
from jaxspec.data.pipeline import make_pipeline, tokenize, tokenized_documents
from jaxspec.data.tokenizer import Tokenizer

DATA = DataConfig(embedded_examples=90, sequence_length=192, batch_size=6, seed=4)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("embedded")


@pytest.fixture(scope="module")
def steps(tokenizer):
    """The first batches, read one after the other."""
    pipeline = make_pipeline(DATA, tokenizer)
    return [next(pipeline) for _ in range(25)]


def _assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_have_the_promised_form(steps, tokenizer):
    for batch in steps:
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "tokens": ((6, 192), "int32"),
            "segments": ((6, 192), "int32"),
            "positions": ((6, 192), "int32"),
            "loss_mask": ((6, 192), "bool"),
        }
        assert batch["tokens"].min() >= 0 and batch["tokens"].max() < tokenizer.vocab_size
        assert (batch["tokens"][batch["segments"] == 0] == tokenizer.pad_id).all()
        assert batch["loss_mask"].any(axis=1).all()
        assert not batch["loss_mask"][batch["positions"] == 0].any()


def test_learned_tokens_are_the_answers(tokenizer):
    pipeline = make_pipeline(DATA, tokenizer)
    rows = pipeline.rows
    examples = {
        example.id: example
        for example in pipeline_module.sources.load_examples("embedded", split="train", data=DATA)
    }
    for index in range(10):
        row = rows[index]
        for segment, name in enumerate(rows.names(index), start=1):
            here = (row["segments"] == segment) & row["loss_mask"]
            text = tokenizer.decode(row["tokens"][here].tolist(), skip_special=True)
            assert text.strip() == examples[name].turns[-1][1].strip()[: len(text.strip())]


def test_an_epoch_reads_every_row_once_and_the_next_in_another_order(tokenizer):
    pipeline = make_pipeline(dataclasses.replace(DATA, batch_size=1), tokenizer)
    size = len(pipeline.rows)
    epochs = [
        [pipeline.row_numbers(step)[0] for step in range(epoch * size, (epoch + 1) * size)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert pipeline.steps_per_epoch == size


def test_a_step_depends_on_nothing_read_before(steps, tokenizer):
    pipeline = make_pipeline(DATA, tokenizer)
    for step in (17, 3, 24):
        _assert_equal(pipeline.batch(step), steps[step])
    _assert_equal(next(make_pipeline(DATA, tokenizer, start_step=9)), steps[9])
    other = make_pipeline(dataclasses.replace(DATA, seed=5), tokenizer).batch(0)
    assert (other["tokens"] != steps[0]["tokens"]).any()


def test_processes_take_contiguous_slices_of_the_same_batch(steps, tokenizer):
    for count in (2, 3):
        parts = [
            make_pipeline(DATA, tokenizer, process_index=index, process_count=count)
            for index in range(count)
        ]
        for step in range(4):
            slices = [next(part) for part in parts]
            whole = {name: np.concatenate([part[name] for part in slices]) for name in slices[0]}
            _assert_equal(whole, steps[step])


def test_the_state_is_small_json_and_restores_on_another_number_of_processes(steps, tokenizer):
    saver = make_pipeline(DATA, tokenizer, process_index=1, process_count=2)
    for _ in range(11):
        next(saver)
    text = json.dumps(saver.get_state())
    assert len(text) < 100
    reader = make_pipeline(DATA, tokenizer)
    reader.set_state(json.loads(text))
    _assert_equal(next(reader), steps[11])
    assert reader.get_state()["step"] == 12


@pytest.mark.parametrize("batch_size", [2, 5, 12])
def test_another_batch_size_goes_on_with_the_next_row(tokenizer, batch_size):
    """As long as the data are the same; the state of a run with other settings has no name."""
    before = make_pipeline(DATA, tokenizer)
    read = [number for step in range(7) for number in before.row_numbers(step)]
    for _ in range(7):
        next(before)
    state = {name: value for name, value in before.get_state().items() if name != "fingerprint"}
    after = make_pipeline(dataclasses.replace(DATA, batch_size=batch_size), tokenizer)
    after.set_state(state)
    assert after.epochs_at(7) == before.epochs_at(7)
    read += [number for step in range(7, 12) for number in after.row_numbers(step)]
    endless = [int(before._order[place]) for place in range(len(read))]
    assert read == endless
    for _ in range(3):
        next(after)
    again = make_pipeline(dataclasses.replace(DATA, batch_size=batch_size), tokenizer)
    again.set_state(after.get_state())
    assert again.row_numbers(10) == after.row_numbers(10)


def test_a_state_of_other_data_is_refused(tokenizer):
    state = make_pipeline(DATA, tokenizer).get_state()
    other = make_pipeline(dataclasses.replace(DATA, seed=5), tokenizer)
    with pytest.raises(ValueError, match="belongs to other data"):
        other.set_state(state)
    for bad in ({}, {"step": -1}, {"step": "3"}):
        with pytest.raises(ValueError, match="pipeline state"):
            other.set_state(bad)


def test_a_batch_that_processes_cannot_share_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"batch_size 6 for process 0 of 4"):
        make_pipeline(DATA, tokenizer, process_count=4)


def test_loss_on_all_learns_everything_but_first_tokens_and_padding(tokenizer):
    batch = make_pipeline(dataclasses.replace(DATA, loss_on="all"), tokenizer).batch(0)
    expected = (batch["segments"] > 0) & (batch["positions"] > 0)
    np.testing.assert_array_equal(batch["loss_mask"], expected)


def test_without_packing_a_row_is_a_document(tokenizer):
    pipeline = make_pipeline(dataclasses.replace(DATA, packing=False), tokenizer)
    assert len(pipeline.rows) == pipeline.statistics.documents
    assert pipeline.batch(0)["segments"].max() == 1


def test_rows_are_filled_with_the_end_of_text(tokenizer):
    data = DataConfig(packing=False, sequence_length=128, embedded_examples=8)
    filled = dataclasses.replace(data, fill_rows=True)
    plain, ours = (make_pipeline(each, tokenizer) for each in (data, filled))
    assert plain.fingerprint != ours.fingerprint
    one, other = next(iter(plain)), next(iter(ours))
    empty = one["segments"] == 0
    assert empty.any() and (other["tokens"][empty] == tokenizer.eos_id).all()
    assert other["loss_mask"][empty].all() and (other["segments"] == 1).all()
    with pytest.raises(ValueError, match=r"set data\.packing to False"):
        dataclasses.replace(filled, packing=True)


def test_data_are_named_by_the_files_that_are_read(tokenizer, tmp_path):
    """A run continues although its tokenizer's folder has a file for other programs."""
    data = DataConfig(packing=False, sequence_length=128, embedded_examples=8)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    copy = Tokenizer.load(tmp_path)
    name = make_pipeline(data, tokenizer).fingerprint
    assert make_pipeline(data, copy).fingerprint == name
    (tmp_path / "special_tokens_map.json").write_text("{}")
    assert make_pipeline(data, copy).fingerprint != name


def test_names_of_a_batch(tokenizer):
    pipeline = make_pipeline(DATA, tokenizer)
    names = pipeline.example_ids(2)
    assert len(names) == 6
    assert all(name.startswith("embedded-") for row in names for name in row)


def test_running_text_ends_with_the_end_token_and_is_split_where_it_is_long(tokenizer):
    text = "A little girl walked to the park. " * 20
    documents = tokenize(
        [Example("story", (("assistant", text),), "text")],
        tokenizer,
        loss_on="response",
        sequence_length=64,
    ).documents
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    assert documents.tokens.tolist() == ids
    assert len(documents) == -(-len(ids) // 64)
    assert set(documents.names) == {"story"}
    first, mask = documents[0]
    assert len(first) == 64 and mask.tolist() == [False] + [True] * 63


def test_rendered_chats_in_running_text_are_named(tokenizer, tmp_path, monkeypatch):
    """They may have been meant as conversations: a text's special tokens stay text."""
    monkeypatch.setattr(pipeline_module, "CACHE_FROM", 1)
    texts = ["A park.", "<|im_start|>user\nHi.<|im_end|>", "One <|im_end|>"]
    examples = [Example(f"{n}", (("assistant", text),), "a") for n, text in enumerate(texts)]
    data = dataclasses.replace(DATA, data_dir=str(tmp_path))
    notes = []
    for _ in range(2):  # The second time, from the cache.
        made, _ = tokenized_documents(examples, tokenizer, data=data)
        assert not set(made.documents.tokens.tolist()) & {*tokenizer.special_ids} - {
            tokenizer.eos_id
        }
        notes.append(made.notes)
    ((note,), (again,)) = notes
    assert (
        note == again and "a special token's text: 2 (first '<|im_start|>' in example '1'" in note
    )
    assert "import their turns as `messages`" in note
    monkeypatch.setattr(pipeline_module.sources, "load_examples", lambda *a, **b: examples)
    run = dataclasses.replace(data, sources=("a",), batch_size=1)
    assert note in make_pipeline(run, tokenizer).notes
    assert tokenized_documents(examples[:1], tokenizer, data=data)[0].notes == []


def test_long_tokenizing_says_how_far_it_is(tokenizer, monkeypatch, capsys):
    examples = [Example(f"{number}", (("assistant", "A park."),), "text") for number in range(4)]
    monkeypatch.setattr(pipeline_module, "_PROGRESS_S", 0.0)
    tokenize(examples, tokenizer, loss_on="response", sequence_length=64)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        f"Tokenized {done} of 4 examples" for done in (1, 2, 3)
    ]
    assert "about 0 seconds left" in lines[-1]


def test_many_examples_are_tokenized_once(tokenizer, tmp_path, monkeypatch):
    data = dataclasses.replace(DATA, data_dir=str(tmp_path))
    examples = pipeline_module.sources.load_examples("embedded", split="train", data=data)
    plain, digest = tokenized_documents(examples, tokenizer, data=data)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(pipeline_module, "CACHE_FROM", 1)
    tokenized_documents(examples, tokenizer, data=data)
    assert [path.name for path in tmp_path.glob("tokenized/*")] == [f"{digest}.npz"]
    monkeypatch.setattr(pipeline_module, "tokenize", None)  # not called again
    kept, same_digest = tokenized_documents(examples, tokenizer, data=data)
    assert same_digest == digest and kept.documents.names == plain.documents.names
    assert (kept.answers, kept.left_out) == (plain.answers, plain.left_out)
    for name in ("tokens", "loss_mask", "offsets"):
        np.testing.assert_array_equal(getattr(kept.documents, name), getattr(plain.documents, name))
    other = dataclasses.replace(data, loss_on="all")
    with pytest.raises(TypeError):  # other settings, other documents
        tokenized_documents(examples, tokenizer, data=other)


@pytest.fixture
def cached(tokenizer, tmp_path, monkeypatch):
    """The cache's file, and what opens it (or makes it again)."""
    monkeypatch.setattr(pipeline_module, "CACHE_FROM", 1)
    data = dataclasses.replace(DATA, data_dir=str(tmp_path), max_examples=6)
    examples = pipeline_module.sources.load_examples("embedded", split="train", data=data)

    def read():
        return tokenized_documents(examples, tokenizer, data=data)[0].documents

    read()
    (file,) = tmp_path.glob("tokenized/*.npz")
    return file, read


def _same(one, other):
    return one.names == other.names and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("tokens", "loss_mask", "offsets")
    )


def test_a_damaged_cache_is_made_again(cached, caplog):
    file, read = cached
    whole, content = read(), file.read_bytes()
    rng = np.random.default_rng(5)
    damaged = [b"", b"text", content[: len(content) // 2], content[:-1], bytes(len(content))]
    for at in rng.integers(len(content), size=60):
        damaged.append(content[:at] + bytes([content[at] ^ 1 << int(at) % 8]) + content[at + 1 :])
    noticed = 0
    for bad in damaged:
        caplog.clear()
        file.write_bytes(bad)
        assert _same(read(), whole)
        noticed += "is damaged" in caplog.text
        if "is damaged" in caplog.text:
            assert len(caplog.records) == 1
            assert file.read_bytes() == content, "made again"
    assert noticed > len(damaged) / 2  # A date in the archive, say, changes nothing that is read.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"tokens": d.tokens[:-1]}, "do not fit together"),
        (lambda d: {"tokens": d.tokens.astype(np.float32)}, "tokens: got float32"),
        (lambda d: {"tokens": d.tokens[None]}, "expected int32 [length]"),
        (lambda d: {"tokens": d.tokens + 10**6}, "outside the vocabulary"),
        (lambda d: {"tokens": d.tokens - 10**6}, "outside the vocabulary"),
        (lambda d: {"offsets": d.offsets[::-1].copy()}, "offsets do not rise from 0"),
        (lambda d: {"offsets": np.sort(np.append(d.offsets, 0))}, "offsets do not rise from 0"),
        (lambda d: {"offsets": d.offsets[:0]}, "do not fit together"),
        (lambda d: {"names": d.names[:-1]}, "names for"),
        (lambda d: {"names": (1,) * len(d.names)}, "a name is not text"),
        (lambda d: {"loss_mask": ~d.loss_mask}, "first token is learned"),
    ],
)
def test_wrong_arrays_in_the_cache_are_made_again(cached, caplog, change, message):
    file, read = cached
    whole = read()
    changed = dataclasses.replace(whole, **change(whole))
    pipeline_module._save(pipeline_module.Tokenized(changed, 1, {}), file)
    assert _same(read(), whole)
    assert f"{file} is damaged" in caplog.text and message in caplog.text


def test_others_can_read_the_cache(cached):
    file, read = cached
    file.unlink()
    before = os.umask(0o022)
    try:
        read()
    finally:
        os.umask(before)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o644


def test_without_room_for_a_cache_the_run_goes_on(tokenizer, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pipeline_module, "CACHE_FROM", 1)
    data = dataclasses.replace(DATA, data_dir=str(tmp_path / "file"))
    assert len(make_pipeline(data, tokenizer).rows) > 0
    assert "cannot be cached" in caplog.text


def test_prompts_alone_cannot_be_trained_on(tokenizer, monkeypatch):
    prompts = [Example("p", (("user", "Who?"), ("user", "Why?")), "bench")]
    monkeypatch.setattr(pipeline_module.sources, "load_examples", lambda *_, **__: prompts)
    with pytest.raises(ValueError, match="no assistant turns"):
        make_pipeline(DATA, tokenizer)
