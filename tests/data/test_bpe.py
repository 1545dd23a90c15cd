"""data/bpe.py: the trainer against a slow one, the tokenizer against plain merging, GPT-2's own tokenizer."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken

from core.config import BadInput
from data import bpe
from data.bpe import (
    END_OF_TEXT,
    GPT2_PATTERN,
    build_tokenizer,
    gpt2_tokenizer_spec,
    read_tokenizer_spec,
    tokenizer_spec_from,
    train_bpe,
)

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
ALPHABETS = ["ab", "aab ", "abc  \n", "aé 日🙂'", "don't 123 ll\t!?"]


def replace_pair(ids, pair, new):
    """ids with every `pair`, from left to right, replaced by `new`."""
    result = []
    for i in ids:
        result.append(i)
        if tuple(result[-2:]) == pair:
            result[-2:] = [new]
    return result


def slow_bpe(texts, vocab_size):
    """The definition: count all pairs of all words again before every merge."""
    words = [list(word.encode()) for text in texts for word in regex.findall(GPT2_PATTERN, text)]
    tokens = [bytes([b]) for b in range(256)]
    merges = []
    while len(tokens) < vocab_size - 1:
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        pair = min(counts, key=lambda p: (-counts[p], p), default=None)
        if pair is None or counts[pair] < 2:
            break
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        merges.append(pair)
        words = [replace_pair(word, pair, len(tokens) - 1) for word in words]
    return tokens, merges


def random_texts(rng):
    alphabet = rng.choice(ALPHABETS)
    return ["".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(rng.randint(1, 8))]


@pytest.mark.parametrize("seed", range(60))
def test_trainer_equals_the_slow_definition(seed):
    rng = random.Random(seed)
    texts, vocab_size = random_texts(rng), rng.choice([258, 260, 270, 300])
    assert train_bpe(texts, vocab_size) == slow_bpe(texts, vocab_size)[0]


def test_trainer_on_runs_of_one_letter():
    """Overlapping pairs: "aaa" holds the pair twice, but only one of them can be merged."""
    for n in range(1, 20):
        texts = ["a" * n, "b" + "a" * n]
        assert train_bpe(texts, 270) == slow_bpe(texts, 270)[0]


@pytest.mark.parametrize("seed", range(20))
def test_tokenizer_merges_as_the_trainer_did(seed):
    """Applying the merges one after the other, in the order they were learnt, gives the ids that tiktoken gives."""
    rng = random.Random(seed)
    texts = random_texts(rng)
    tokens, merges = slow_bpe(texts, 300)
    tokenizer = build_tokenizer(tokenizer_spec_from(tokens, "t"))
    for text in texts + random_texts(rng):
        expected = []
        for word in regex.findall(GPT2_PATTERN, text):
            ids = list(word.encode())
            for new, pair in enumerate(merges, 256):
                ids = replace_pair(ids, pair, new)
            expected += ids
        assert tokenizer.encode_ordinary(text) == expected


def test_ids_are_worked_out_by_hand():
    # " l", "lo" and "ow" occur 3 times each; " l" has the lowest ids. Then " l"+"o" (256, 111) against "ow" (111, 119).
    tokens = train_bpe([" low low lower"], 259)
    assert tokens[256:] == [b" l", b"ow"]
    assert build_tokenizer(tokenizer_spec_from(tokens, "t")).encode_ordinary(" lower") == [256, 257, ord("e"), ord("r")]


def unicode_texts(rng, count):
    """Any code point but the halves of surrogate pairs, which are no characters."""
    ranges = [(0, 0x7F), (0, 0x2FFF), (0xE000, 0x10FFFF), (0x1F300, 0x1FAFF)]
    for _ in range(count):
        yield (
            "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 80)))
            .encode("utf-8", "ignore")
            .decode()
        )


def round_trips(tokenizer):
    rng = random.Random(0)
    special = [
        "",
        "\0",
        "\0\0 \0",
        "a\r\nb\r",
        "  \n\n \t x",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\ufeff",
        "\ufffd",
        "é",
        "é",
        "\U0010ffff",
    ]
    for text in [*special, END_OF_TEXT, *unicode_texts(rng, 300)]:
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot_token not in ids  # the text of end-of-text is text
        assert all(0 <= i < tokenizer.n_vocab for i in ids)


def test_any_text_comes_back():
    round_trips(build_tokenizer(tokenizer_spec_from(train_bpe(["the cat sat on the mat, it sat"] * 3, 280), "t")))
    round_trips(build_tokenizer(tokenizer_spec_from(train_bpe([], 300), "t")))  # bytes only


@pytest.mark.parametrize("vocab_size", [258, 259, 300, 400])
def test_vocabulary_has_the_size_asked_for(vocab_size):
    rng = random.Random(1)
    texts = [" ".join("".join(rng.choices("abcdef", k=5)) for _ in range(300))]
    tokens = train_bpe(texts, vocab_size)
    tokenizer = build_tokenizer(tokenizer_spec_from(tokens, "t"))
    assert len(tokens) == len(set(tokens)) == vocab_size - 1
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (vocab_size, vocab_size - 1)


def test_training_stops_when_nothing_occurs_twice():
    assert train_bpe(["abcdef"], 1000) == [bytes([b]) for b in range(256)]
    assert len(train_bpe(["ab ab"], 1000)) == 257  # "ab" alone: " ab" occurs once


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(BadInput, match="--vocab_size 257"):
        train_bpe(["ab ab"], 257)


def test_tokenizer_equals_one_made_by_hand():
    tokens = train_bpe(["she sells sea shells by the sea shore"] * 2, 290)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    hand = tiktoken.Encoding(
        "h", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(tokens)}
    )
    ours = build_tokenizer(json.loads(json.dumps(tokenizer_spec_from(tokens, "t"))))  # as it is read from a file
    assert (ours.n_vocab, ours.eot_token) == (hand.n_vocab, hand.eot_token)
    for text in unicode_texts(random.Random(2), 100):
        assert ours.encode_ordinary(text) == hand.encode_ordinary(text)
    assert ours.encode("sea" + END_OF_TEXT, allowed_special="all")[-1] == ours.eot_token


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "t"}', '{"encoding": "other"}', "[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadInput, match="tokenizer.json"):
        read_tokenizer_spec(tmp_path / "tokenizer.json")
    with pytest.raises(BadInput, match="not found"):
        read_tokenizer_spec(tmp_path / "other.json")


def test_a_spec_that_would_crash_tiktoken_is_refused(tmp_path):
    good = tokenizer_spec_from(train_bpe(["sea sea"], 260), "t")
    wrong = {
        "single bytes are missing": good
        | {"ranks": good["ranks"][1:], "special": {END_OF_TEXT: len(good["ranks"]) - 1}},
        "comes twice": good | {"ranks": [*good["ranks"], good["ranks"][-1]]},
        "one special token": good | {"special": {END_OF_TEXT: 3}},
        "with the id that no other": good | {"special": {}},
        "no other token has": good | {"ranks": [None, *good["ranks"], None], "special": {END_OF_TEXT: 0}},
        "not a tokenizer": good | {"pattern": "("},
    }
    for message, tokenizer_spec in {"": good, **wrong}.items():
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_spec))
        if message:
            with pytest.raises(BadInput, match=rf"tokenizer\.json: not a tokenizer.*{message}|{message}"):
                read_tokenizer_spec(tmp_path / "tokenizer.json")
        else:
            assert read_tokenizer_spec(tmp_path / "tokenizer.json") == good


@pytest.mark.parametrize("place", [0, 1, 100, 256, 260, 274])
def test_end_of_text_may_have_any_id(tmp_path, place):
    """The tokenizer with end-of-text at the end, every id from `place` on moved up by one, says what it should be."""
    tokens = train_bpe(["she sells sea shells by the sea shore"] * 9, 275)
    plain = build_tokenizer(tokenizer_spec_from(tokens, "gpt2"))
    tokenizer_spec = json.loads(json.dumps(tokenizer_spec_from(tokens, "gpt2", end_of_text=place)))
    moved = build_tokenizer(tokenizer_spec)
    assert (moved.eot_token, moved.n_vocab) == (place, len(tokens) + 1)
    for text in ["sea shells", *unicode_texts(random.Random(3), 30)]:
        ids = moved.encode_ordinary(text)
        assert ids == [i + (i >= place) for i in plain.encode_ordinary(text)] and moved.decode(ids) == text
    round_trips(moved)

    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_spec))
    assert read_tokenizer_spec(tmp_path / "tokenizer.json") == tokenizer_spec
    bpe.write_gpt2_files(tmp_path, moved)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    assert vocabulary[END_OF_TEXT] == place and vocabulary["s"] == ord("s") + (ord("s") >= place)
    assert gpt2_tokenizer_spec(tmp_path) == tokenizer_spec


def test_no_network_is_one_clear_error(monkeypatch):
    def no_network(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(bpe.tiktoken, "get_encoding", no_network)
    with pytest.raises(BadInput, match="--gpt2_files"):
        gpt2_tokenizer_spec()


# ---------------------------------------------------------------------------------------------------- GPT-2's own


def write_gpt2_files(folder, merges):
    """encoder.json and vocab.bpe as GPT-2 spells them, with these merges of printable ASCII."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    vocabulary = letters + ["".join(pair) for pair in merges]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate([*vocabulary, END_OF_TEXT])}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")


def test_gpt2_files_are_read_and_changes_are_seen(tmp_path):
    for merges, tokens in (([("a", "b")], [b"ab"]), ([("a", "c"), ("ac", "d")], [b"ac", b"acd"])):
        write_gpt2_files(tmp_path, merges)
        tokenizer = build_tokenizer(gpt2_tokenizer_spec(tmp_path))
        assert tokenizer.n_vocab == 257 + len(tokens)
        assert [tokenizer.decode_single_token_bytes(256 + i) for i in range(len(tokens))] == tokens
        assert tokenizer.decode(tokenizer.encode_ordinary("abacd é\n")) == "abacd é\n"


def test_wrong_gpt2_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="holds neither vocab.json and merges.txt nor encoder.json and vocab.bpe"):
        gpt2_tokenizer_spec(tmp_path)
    write_gpt2_files(tmp_path, [("a", "b"), ("c", "d")])
    vocabulary, merges = (tmp_path / "encoder.json").read_text(), (tmp_path / "vocab.bpe").read_text()
    ids = json.loads(vocabulary)
    wrong = {
        "does not fit encoder.json": ("vocab.bpe", merges.replace("a b", "a c")),
        "vocab.bpe: does not fit": ("vocab.bpe", merges + "a b c\n"),
        "vocab.bpe: its merges are not": ("vocab.bpe", "#version: 0.2\nc d\na b\n"),
        "not encoder.json in the order": ("vocab.bpe", "#version: 0.2\na b\n"),
        "not GPT-2's vocabulary": ("encoder.json", "{"),
        "not GPT-2's vocabulary ": ("encoder.json", json.dumps(ids | {"☃": 259})),
        "encoder.json: not GPT-2's": ("encoder.json", "[" * 100_000),
        "not GPT-2's voc": ("encoder.json", json.dumps(ids | {"ab": "b"})),
        "the ids are not 0 to 258": ("encoder.json", json.dumps(ids | {END_OF_TEXT: 300})),
        "each once": ("encoder.json", json.dumps(ids | {END_OF_TEXT: 0})),
        "has no <.endoftext": ("encoder.json", vocabulary.replace(END_OF_TEXT, "ac")),
        "its merges are not encoder.json": ("encoder.json", json.dumps(ids | {"<pad>": 259})),
    }
    for message, (name, content) in wrong.items():
        write_gpt2_files(tmp_path, [("a", "b"), ("c", "d")])
        gpt2_tokenizer_spec(tmp_path)
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(BadInput, match=message) as problem:
            gpt2_tokenizer_spec(tmp_path)
        assert "\n" not in str(problem.value)
    write_gpt2_files(tmp_path, [("a", "b")])
    (tmp_path / "vocab.bpe").write_bytes(b"#\n\xff\n")
    with pytest.raises(BadInput, match="does not fit"):
        gpt2_tokenizer_spec(tmp_path)


@pytest.fixture(scope="module")
def gpt2():
    if not (REAL / "gpt2").is_dir():
        pytest.skip("GPT-2's encoder.json and vocab.bpe: real files not present")
    return build_tokenizer(gpt2_tokenizer_spec(REAL / "gpt2"))


def test_gpt2_ids_are_the_published_ones(gpt2):
    assert (gpt2.n_vocab, gpt2.eot_token) == (50257, 50256)
    assert gpt2.encode_ordinary("Hello world") == [15496, 995]
    assert gpt2.encode_ordinary("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert gpt2.encode_ordinary("\n\n") == [628]
    round_trips(gpt2)


def test_gpt2_ids_equal_the_encoder_file(gpt2):
    """Every token of encoder.json has the id it has there; bytes are spelled as GPT-2 spells them."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    byte = {chr(b): b for b in printable}
    byte |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in printable)}
    for token, i in json.loads((REAL / "gpt2" / "encoder.json").read_text(encoding="utf-8")).items():
        if token != END_OF_TEXT:
            assert gpt2.decode_single_token_bytes(i) == bytes(byte[c] for c in token)


def test_gpt2s_own_merges_come_out_as_they_were_released(gpt2, tmp_path):
    bpe.write_gpt2_files(tmp_path, gpt2)
    released = (REAL / "gpt2" / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:] == [m for m in released[1:] if m]
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((REAL / "gpt2" / "encoder.json").read_text())
