"""data/bpe.py: the trainer against a slow one, the encoding against plain merging, GPT-2's own tokenizer."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken

from data import bpe
from data.bpe import END_OF_TEXT, GPT2_PATTERN, encoding_from, gpt2_tokenizer, load_tokenizer, tokenizer_dict, train_bpe
from plumbing import BadInput

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
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
def test_encoding_merges_as_the_trainer_did(seed):
    """Applying the merges one after the other, in the order they were learnt, gives the ids that tiktoken gives."""
    rng = random.Random(seed)
    texts = random_texts(rng)
    tokens, merges = slow_bpe(texts, 300)
    encoding = encoding_from(tokenizer_dict(tokens, "t"))
    for text in texts + random_texts(rng):
        expected = []
        for word in regex.findall(GPT2_PATTERN, text):
            ids = list(word.encode())
            for new, pair in enumerate(merges, 256):
                ids = replace_pair(ids, pair, new)
            expected += ids
        assert encoding.encode_ordinary(text) == expected


def test_ids_are_worked_out_by_hand():
    # " l", "lo" and "ow" occur 3 times each; " l" has the lowest ids. Then " l"+"o" (256, 111) against "ow" (111, 119).
    tokens = train_bpe([" low low lower"], 259)
    assert tokens[256:] == [b" l", b"ow"]
    assert encoding_from(tokenizer_dict(tokens, "t")).encode_ordinary(" lower") == [256, 257, ord("e"), ord("r")]


def unicode_texts(rng, count):
    """Any code point but the halves of surrogate pairs, which are no characters."""
    ranges = [(0, 0x7F), (0, 0x2FFF), (0xE000, 0x10FFFF), (0x1F300, 0x1FAFF)]
    for _ in range(count):
        yield (
            "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 80)))
            .encode("utf-8", "ignore")
            .decode()
        )


def round_trips(encoding):
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
        ids = encoding.encode_ordinary(text)
        assert encoding.decode(ids) == text
        assert encoding.eot_token not in ids  # the text of end-of-text is text
        assert all(0 <= i < encoding.n_vocab for i in ids)


def test_any_text_comes_back():
    round_trips(encoding_from(tokenizer_dict(train_bpe(["the cat sat on the mat, it sat"] * 3, 280), "t")))
    round_trips(encoding_from(tokenizer_dict(train_bpe([], 300), "t")))  # bytes only


@pytest.mark.parametrize("vocab_size", [258, 259, 300, 400])
def test_vocabulary_has_the_size_asked_for(vocab_size):
    rng = random.Random(1)
    texts = [" ".join("".join(rng.choices("abcdef", k=5)) for _ in range(300))]
    tokens = train_bpe(texts, vocab_size)
    encoding = encoding_from(tokenizer_dict(tokens, "t"))
    assert len(tokens) == len(set(tokens)) == vocab_size - 1
    assert (encoding.n_vocab, encoding.eot_token) == (vocab_size, vocab_size - 1)


def test_training_stops_when_nothing_occurs_twice():
    assert train_bpe(["abcdef"], 1000) == [bytes([b]) for b in range(256)]
    assert len(train_bpe(["ab ab"], 1000)) == 257  # "ab" alone: " ab" occurs once


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(BadInput, match="--vocab_size 257"):
        train_bpe(["ab ab"], 257)


def test_encoding_equals_one_made_by_hand():
    tokens = train_bpe(["she sells sea shells by the sea shore"] * 2, 290)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    hand = tiktoken.Encoding(
        "h", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(tokens)}
    )
    ours = encoding_from(json.loads(json.dumps(tokenizer_dict(tokens, "t"))))  # as it is read from a file
    assert (ours.n_vocab, ours.eot_token) == (hand.n_vocab, hand.eot_token)
    for text in unicode_texts(random.Random(2), 100):
        assert ours.encode_ordinary(text) == hand.encode_ordinary(text)
    assert ours.encode("sea" + END_OF_TEXT, allowed_special="all")[-1] == ours.eot_token


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "t"}', '{"encoding": "other"}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadInput, match="tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(BadInput, match="not found"):
        load_tokenizer(tmp_path / "other.json")


def test_no_network_is_one_clear_error(monkeypatch):
    def no_network(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(bpe.tiktoken, "get_encoding", no_network)
    with pytest.raises(BadInput, match="--gpt2_files"):
        gpt2_tokenizer()


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
        encoding = encoding_from(gpt2_tokenizer(tmp_path))
        assert encoding.n_vocab == 257 + len(tokens)
        assert [encoding.decode_single_token_bytes(256 + i) for i in range(len(tokens))] == tokens
        assert encoding.decode(encoding.encode_ordinary("abacd é\n")) == "abacd é\n"


def test_wrong_gpt2_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="vocab.bpe: not found"):
        gpt2_tokenizer(tmp_path)
    write_gpt2_files(tmp_path, [("a", "b")])
    for name, content in (("vocab.bpe", b"#\na c\n"), ("vocab.bpe", b"#\n\xff\n"), ("encoder.json", b"{")):
        write_gpt2_files(tmp_path, [("a", "b")])
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="do not fit"):
            gpt2_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def gpt2():
    if not (REAL / "gpt2").is_dir():
        pytest.skip("GPT-2's encoder.json and vocab.bpe: real files not present")
    return encoding_from(gpt2_tokenizer(REAL / "gpt2"))


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
