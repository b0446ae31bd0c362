"""Tokenizer files from others: any damage gives one message with the file's name."""

import json
import os
import pathlib
import shutil
import time

import pytest
import tokenizers

from jaxspec.data import tokenizer_files
from jaxspec.data.chat_template import PLAIN
from jaxspec.data.examples import Example
from jaxspec.data.pipeline import tokenize
from jaxspec.data.tokenizer import EMBEDDED_FOLDER, Tokenizer


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded tokenizer to change."""
    return pathlib.Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "tokenizer"))


@pytest.fixture
def gpt2_folder(tmp_path):
    """vocab.json and merges.txt, as GPT-2 was published."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["The lake is 12 miles away.", "How far is it to the lake?"] * 3,
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    folder = tmp_path / "gpt2"
    folder.mkdir()
    trained.save_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


def _change(file, change):
    """Applies a function to the document of a JSON file; {} if there is no file."""
    document = json.loads(file.read_text()) if file.exists() else {}
    change(document)
    file.write_text(json.dumps(document))


def _refused(folder, message):
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(folder)
    assert str(folder) in str(error.value)


def test_null_as_stop_id_is_none(folder):
    file = folder / "generation_config.json"
    file.write_text('{"bos_token_id": null, "eos_token_id": null, "pad_token_id": null}')
    assert Tokenizer.load(folder).stop_ids == (2,)
    file.write_text('{"eos_token_id": []}')
    assert Tokenizer.load(folder).stop_ids == (2,)


@pytest.mark.parametrize(
    "stated",
    [[2, None], "2", ["2"], True, [False], -1, [2, -1], 1024, [2, 10**30], 2.0, [[2]], {"id": 2}],
)
def test_stop_ids_that_are_none_are_refused(folder, stated):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    _refused(folder, r"eos_token_id in .*generation_config\.json.*0 to 1023.*or null")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"eos_token": None}, "has no eos_token .*None"),
        ({"eos_token": 2}, r"eos_token in .*tokenizer_config\.json.*got 2"),
        ({"eos_token": ["<|im_end|>"]}, r"eos_token in .*got \['<|im_end|>'\]"),
        ({"eos_token": {"text": "<|im_end|>"}}, "eos_token in .*got {'text'"),
        ({"eos_token": {"content": 7}}, "eos_token in .*got 7"),
        ({"eos_token": ""}, "has no eos_token .*''"),
        ({"pad_token": "<|nowhere|>"}, "has no pad_token .*nowhere"),
        ({"mask_token": "<|nowhere|>"}, "has no mask_token .*nowhere"),
        ({"bos_token": "<|nowhere|>"}, "has no bos_token .*nowhere"),
        ({"mask_token": False}, "mask_token in .*got False"),
        ({"tokenizer_class": 5}, r"tokenizer_class in .*tokenizer_config\.json.*got 5"),
        ({"chat_template": 5}, r"chat template in .*tokenizer_config\.json.*got 5"),
        ({"chat_template": [{"name": "default"}]}, "chat template in .*got "),
        ({"chat_template": ["default"]}, "chat template in .*got "),
    ],
)
def test_special_tokens_and_templates_of_a_wrong_kind_are_refused(folder, entries, message):
    _change(folder / "tokenizer_config.json", lambda config: config.update(entries))
    _refused(folder, message)


def test_a_mask_need_not_be_an_added_token(gpt2_folder):
    _change(gpt2_folder / "vocab.json", lambda vocab: vocab.update({"<hole>": len(vocab)}))
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<hole>"}))
    loaded = Tokenizer.load(gpt2_folder)
    assert loaded.mask_id == loaded.vocabulary()["<hole>"]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "gpt_neox"])
def test_base_families_know_no_turns_whatever_their_tokenizer_is_called(folder, name):
    change = {"tokenizer_class": "TokenizersBackend", "chat_template": None}
    _change(folder / "tokenizer_config.json", lambda config: config.update(change))
    turns = [{"role": "user", "content": "Hi."}]
    with pytest.raises(ValueError, match="has no chat template"):
        Tokenizer.load(folder).encode_prompt(turns)
    (folder / "config.json").write_text(json.dumps({"model_type": name}))
    loaded = Tokenizer.load(folder)
    assert loaded.encode_prompt(turns) == loaded.encode("Hi.") and not loaded.has_template


@pytest.mark.parametrize("token", ["!", "Ġlake"])
@pytest.mark.parametrize("key", ["eos_token", "pad_token", "mask_token"])
def test_special_tokens_that_ordinary_text_gives_are_refused(gpt2_folder, key, token):
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps({key: token}))
    _refused(gpt2_folder, rf"'{token}' \(id \d+\) as a special token, but ordinary text")


def test_stop_ids_that_ordinary_text_gives_are_refused(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 300]}))
    _refused(folder, "id 300.* as a special token, but ordinary text")


JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MORE_JSON_FILES = ("chat_template.json", "generation_config.json", "config.json")


@pytest.mark.parametrize("name", [*JSON_FILES, *MORE_JSON_FILES])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"null", "JSON object: got a NoneType"),
        (b'{"a": 1, "a": 2}', "'a' more than once"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a":\n"\xff"}', "not UTF-8: line 2 has the byte 0xff"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_damaged_json_files_are_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    _refused(folder, rf"{name}.*{message}")


def test_whole_surrogate_pairs_are_characters(folder):
    (folder / "special_tokens_map.json").write_text('{"note": "\\ud83d\\ude42"}')
    assert Tokenizer.load(folder).eos_id == 2


def test_very_large_files_are_not_read(folder, gpt2_folder):
    for file in (folder / "tokenizer_config.json", gpt2_folder / "merges.txt"):
        os.truncate(file, tokenizer_files.LARGEST_FILE_BYTES + 1)
        _refused(file.parent, rf"{file.name}.* has 268,435,457 bytes")


def test_unreadable_files_are_named(folder, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    _refused(folder, r"tokenizer_config\.json.* cannot be read: Permission denied")


def _added(**entries):
    return lambda document: document["added_tokens"][2].update(entries)


def _model(**entries):
    return lambda document: document["model"].update(entries)


def _vocab(**entries):
    return lambda document: document["model"]["vocab"].update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_added(id=7), "'<|im_end|>' has the id 7, but its id is 2"),
        (_added(id=1), "'<|im_end|>' has the id 1, but its id is 2"),
        (_added(id=None), "id of the added token '<|im_end|>' .*got None"),
        (_added(id=-1), "got -1"),
        (_added(id=2**40), "got 1099511627776"),
        (_added(id=2000, content="<x>"), "'<x>' the id 2000, but .* the id is 1024"),
        (_added(content=None), "must have text"),
        (_added(content=""), "empty text"),
        (_added(special="yes"), "special of the added token .*got 'yes'"),
        (lambda d: d["added_tokens"].append(d["added_tokens"][2]), "adds a token more than once"),
        (lambda d: d.update(added_tokens={}), "cannot be read as a tokenizer"),
        (lambda d: d.update(added_tokens={"id": 1}), "added_tokens .* must be a list"),
        (_vocab(Q=5), "both have the id 5"),
        (_vocab(Q=5000), "none with these ids"),
        (_vocab(Q=2**40), "id of 'Q' must be an integer"),
        (_vocab(Q=-1), "id of 'Q' must be an integer"),
        (_vocab(Q=1.0), "id of 'Q' must be an integer"),
        (lambda d: d["model"]["vocab"].pop("Q"), "none with these ids"),
        (lambda d: d["model"]["merges"].append(d["model"]["merges"][0]), "a pair more than once"),
        (lambda d: d["model"]["merges"].append(["zz", "qq"]), "`zz` out of vocabulary"),
        (_model(dropout=0.5), "model.dropout .* must be null: got 0.5"),
        (_model(continuing_subword_prefix="##"), "continuing_subword_prefix .* must be null"),
        (_model(end_of_word_suffix="</w>"), "end_of_word_suffix .* must be null"),
        (_model(vocab=None), "cannot be read as a tokenizer"),
        (_model(type="Unknown"), "cannot be read as a tokenizer"),
        (lambda d: d.update(model=[1]), "model in .* must be an object"),
        (lambda d: d.update(pre_tokenizer=None), "loses characters"),
        (lambda d: d.update(decoder=None), "not byte-level"),
        (lambda d: d.update(decoder="ByteLevel"), "decoder in .* must be an object"),
        (lambda d: d.update(decoder={"decoders": 5}), "not byte-level"),
        (lambda d: d.update(normalizer={"type": "Replace"}), "cannot be read as a tokenizer"),
    ],
)
def test_damaged_tokenizer_json_is_refused(folder, change, message):
    _change(folder / "tokenizer.json", change)
    _refused(folder, message)


def test_a_character_that_the_vocabulary_lacks_is_noticed(folder):
    def forget(document):
        vocab = document["model"]["vocab"]
        vocab["QQQ"] = vocab.pop("Q")

    _change(folder / "tokenizer.json", forget)
    _refused(folder, r"loses characters of text \('Q' and so on\)")


def test_a_panic_of_the_library_is_one_message(folder):
    class Panic(BaseException):
        """As pyo3's, which is not an Exception."""

    message = "cannot be opened: Panic: slice index"
    with pytest.raises(ValueError, match=message) as error, tokenizer_files.refusing(folder):
        raise Panic("slice index starts at 2 but ends at 1")
    assert str(folder) in str(error.value)
    with pytest.raises(KeyboardInterrupt), tokenizer_files.refusing(folder):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab: vocab.pop("Ġlake"), "none with these ids"),
        (lambda vocab: vocab.popitem(), "merges .* but vocab.json has no token"),
        (lambda vocab: vocab.pop("<|endoftext|>"), "none with these ids: 0"),
        (lambda vocab: vocab.update(a=5.0), "id of 'a' must be an integer"),
        (lambda vocab: vocab.update(a=None), "id of 'a' must be an integer"),
        (lambda vocab: vocab.update(a=2**32), "id of 'a' must be an integer"),
        (lambda vocab: vocab.update(a=0), "both have the id 0"),
        (lambda vocab: vocab.update(a=700), "none with these ids"),
        (lambda vocab: vocab.update(abcabc=len(vocab)), "makes the token 'abcabc'"),
        (lambda vocab: vocab.clear(), "vocab.json has no token"),
    ],
)
def test_damaged_vocabulary_is_refused(gpt2_folder, change, message):
    _change(gpt2_folder / "vocab.json", change)
    _refused(gpt2_folder, message)


def test_truncated_vocabulary_is_refused(gpt2_folder):
    file = gpt2_folder / "vocab.json"
    os.truncate(file, file.stat().st_size // 2)
    _refused(gpt2_folder, r"vocab\.json.* is not valid JSON")


def test_merges_cut_anywhere_are_refused(gpt2_folder):
    file = gpt2_folder / "merges.txt"
    content = file.read_bytes()
    for size in range(len(content) - 1):
        file.write_bytes(content[:size])
        _refused(gpt2_folder, r"merges\.txt")
    file.write_bytes(content.removesuffix(b"\n"))
    assert Tokenizer.load(gpt2_folder).vocab_size > 260


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"one", "must be two pieces .*got 'one'"),
        (b"a b c", "must be two pieces"),
        (b"", "must be two pieces .*got ''"),
        (b"zz qq", "has no token 'zz'"),
        (b"\xff a", "not UTF-8: line 2 has the byte 0xff"),
    ],
)
def test_damaged_lines_of_merges_are_refused(gpt2_folder, line, message):
    file = gpt2_folder / "merges.txt"
    first, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(b"\n".join([first, line, rest]))
    _refused(gpt2_folder, message)


def test_a_merge_that_is_there_twice_is_refused(gpt2_folder):
    file = gpt2_folder / "merges.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[1]]))
    _refused(gpt2_folder, r"merges\.txt.*a pair more than once")


def test_tokens_that_no_text_gives_need_no_merge(gpt2_folder):
    """Placeholders in a vocabulary, as those of OPT, and ends of lines as on Windows."""
    _change(gpt2_folder / "vocab.json", lambda v: v.update({"madeupword0000": len(v)}))
    expected = Tokenizer.load(gpt2_folder).encode("How far is the lake?")
    file = gpt2_folder / "merges.txt"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.load(gpt2_folder).encode("How far is the lake?") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<a>": "1"}, "id of the added token '<a>' .*got '1'"),
        ("added_tokens.json", {"<a>": -1}, "got -1"),
        ("added_tokens.json", {"": 300}, "empty text"),
        ("added_tokens.json", {"<a>": 7}, "should have id 7, but got"),
        ("added_tokens.json", {"<a>": 10**9}, "should have id 1000000000, but got"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": ["<a>"]},
            "must be an object with ids as keys",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": "<a>"}}, "must have text"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {}}}, "must have text"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<a>"}}}, "got 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "a"}}}, "got '-1'"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "lstrip": 1}}},
            "lstrip of the added token",
        ),
        (
            "tokenizer_config.json",
            {
                "added_tokens_decoder": {
                    "0": {"content": "<|endoftext|>"},
                    "1": {"content": "<|endoftext|>"},
                }
            },
            "should have id 1, but got 0",
        ),
    ],
)
def test_damaged_added_tokens_are_refused(gpt2_folder, name, content, message):
    (gpt2_folder / name).write_text(json.dumps(content))
    _refused(gpt2_folder, message)


def test_damaged_template_files_are_named(folder):
    file = folder / "chat_template.jinja"
    file.write_bytes(b"{{ messages }}\n\xe9")
    _refused(folder, r"chat_template\.jinja.* not UTF-8: line 2 has the byte 0xe9")
    file.write_bytes(b"")
    _refused(folder, r"chat_template\.jinja.* is empty")


def test_a_text_by_itself_begins_as_the_tokenizer_begins_it(folder):
    """As those of Llama 3 and Gemma do; the text of a conversation is the template's."""
    plain = Tokenizer.load(folder)
    assert plain.text_start == []
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    start, start_id = "<|im_start|>", plain.encode_prompt([{"role": "user", "content": "a"}])[0]
    bos = {"SpecialToken": {"id": start, "type_id": 0}}
    rule = {
        "type": "TemplateProcessing",
        "single": [bos, sequence],
        "pair": [bos, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {start: {"id": start, "ids": [start_id], "tokens": [start]}},
    }
    _change(folder / "tokenizer.json", lambda document: document.update(post_processor=rule))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.text_start == [start_id]
    text = Example("a", (("assistant", "It was dark."),), "own")
    assert text.is_running_text
    made = tokenize([text], tokenizer, loss_on="all", sequence_length=32)
    expected = [start_id, *plain.encode("It was dark."), plain.eos_id]
    assert made.documents.tokens.tolist() == expected
    question = [{"role": "user", "content": "a"}]
    assert tokenizer.encode_prompt(question) == plain.encode_prompt(question)
    # A base model's conversations are texts, too.
    _change(
        folder / "tokenizer_config.json",
        lambda document: [document.pop("chat_template"), document.update(bos_token=start)],
    )
    base = Tokenizer.load(folder, default_template=PLAIN)
    assert base.encode_prompt(question) == [start_id, *plain.encode("a")]
    with pytest.raises(ValueError, match=r"unchanged:\n\{\{ bos_token \}\}\{% for"):
        Tokenizer.load(folder).encode_prompt(question)


def test_a_token_that_only_the_configuration_adds(folder):
    """transformers adds it after those of tokenizer.json."""
    entry = {"content": "<|new|>", "special": True}
    _change(
        folder / "tokenizer_config.json",
        lambda document: document.setdefault("added_tokens_decoder", {}).update({"1024": entry}),
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}<|new|>{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 1025
    assert tokenizer.encode_prompt([{"role": "user", "content": "<|new|>"}]).count(1024) == 1


def test_many_tokens_that_take_white_space_read_long_white_space_at_once(folder):
    flags = {"single_word": False, "normalized": False, "special": True}
    tokens = [
        {"id": 1024 + n, "content": f"<|{n}|>", "lstrip": True, "rstrip": n % 2 == 0, **flags}
        for n in range(90)
    ]
    _change(folder / "tokenizer.json", lambda document: document["added_tokens"].extend(tokens))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} \n<|2|> \n<|1|> \n{% endfor %}"
    )
    tokenizer = Tokenizer.load(folder)
    started = time.monotonic()
    ids = tokenizer.encode_prompt([{"role": "user", "content": "a" + " " * 20_000 + "b"}])
    assert time.monotonic() - started < 5.0, "a search from each of its places takes a minute"
    # The first takes the white space on both sides, the second that before it.
    place = ids.index(1026)
    assert ids[place + 1] == 1025 and tokenizer.decode(ids[place - 1 : place]) == " b"
    assert ids[place + 2 :] == tokenizer.encode(" \n")
