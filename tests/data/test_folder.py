"""data/folder.py: what the training scripts read is checked, record by record and token by token."""

import json
import shutil

import numpy as np
import pytest
import torch

from core.batches import generator
from core.config import BadInput
from data import folder
from data.folder import (
    Corpus,
    corpus_dtype,
    largest_id,
    load_tokenizer,
    read_comparisons,
    read_demonstrations,
    read_prompts,
    write_corpus,
    write_jsonl,
)


@pytest.fixture
def copy(data, tmp_path):
    """A data folder that may be written into."""
    return shutil.copytree(data, tmp_path / "data")


def refused(read, match):
    with pytest.raises(BadInput, match=match) as problem:
        read()
    assert "\n" not in str(problem.value)


# ---------------------------------------------------------------------------------------------------- the corpus


def test_a_corpus_holds_what_was_written(data, tokenizer):
    corpus = Corpus(data, "valid")
    assert corpus.ids.dtype == np.uint16 and corpus.ids[-1] == tokenizer.eot_token
    assert tokenizer.decode(corpus.ids[:-1].tolist()).startswith("The cat is red.")


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_ids_beyond_the_vocabulary_are_refused(copy, tokenizer, place):
    ids = np.zeros(10_000, dtype=np.uint16)
    ids[place] = tokenizer.n_vocab - 1
    ids.tofile(copy / "corpus.train.bin")
    assert len(Corpus(copy, "train").ids) == 10_000
    ids[place] = tokenizer.n_vocab
    ids.tofile(copy / "corpus.train.bin")
    refused(
        lambda: Corpus(copy, "train"), r"corpus\.train\.bin: holds token 300, but the tokenizer ends at 299; .*again"
    )


def corpus_of(folder, tokenizer, lengths, split="train"):
    """A corpus with documents of so many tokens, end-of-text among them; a token is 1 + the number of its document."""
    documents = [[1 + i] * (n - 1) + [tokenizer.eot_token] for i, n in enumerate(lengths)]
    np.array(sum(documents, []), dtype=np.uint16).tofile(folder / f"corpus.{split}.bin")
    return Corpus(folder, split)


def beginnings_by_hand(lengths, length):
    """Walk through documents: at each start, and in a long one at the last token of every example, while one fits."""
    starts, position = [], 0
    for n in lengths:
        inside = 0
        while inside == 0 or inside < n - 1:
            starts.append(position + inside)
            inside += max(1, length - 1)
        position += n
    return [start for start in starts if start + length <= position]


LENGTHS = [[30], [8, 8, 8], [5, 1, 17, 3, 40, 1, 1, 9], [16, 32, 7], [1] * 20, [3, 50], [50, 3]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("length", [1, 4, 8, 16])
def test_examples_begin_where_documents_do(copy, tokenizer, lengths, length):
    corpus = corpus_of(copy, tokenizer, lengths)
    starts = corpus.beginnings(length).tolist()
    assert starts == beginnings_by_hand(lengths, length)
    ids = corpus.ids.tolist()
    want = {tuple(ids[start : start + length]) for start in starts}
    drawn = corpus.windows(300, length, generator(0))
    assert drawn.shape == (300, length) and drawn.dtype == torch.int64
    assert {tuple(row) for row in drawn.tolist()} == want, "every example, and no other"
    assert torch.equal(drawn, corpus.windows(300, length, generator(0)))
    if len(want) > 2:
        assert not torch.equal(drawn, corpus.windows(300, length, generator(1)))


def test_examples_may_begin_anywhere(copy, tokenizer):
    corpus_of(copy, tokenizer, [5, 1, 7, 3])
    corpus = Corpus(copy, "train", anywhere=True)
    ids = corpus.ids.tolist()
    drawn = corpus.windows(500, 4, generator(0))
    assert {tuple(row) for row in drawn.tolist()} == {tuple(ids[start : start + 4]) for start in range(16 - 3)}
    assert torch.equal(drawn, corpus.windows(500, 4, generator(0))) and drawn.dtype == torch.int64
    assert corpus.fixed_windows(4, 100).tolist() == [ids[start : start + 4] for start in range(16 - 3)]


def test_every_token_of_a_long_document_is_in_an_example(copy, tokenizer):
    lengths = [3, 41, 2, 64, 100, 5, 30]
    corpus, seen = corpus_of(copy, tokenizer, lengths), set()
    for start in corpus.beginnings(16).tolist():
        seen |= set(range(start, start + 16))
    last = sum(lengths) - 16  # an example that would begin later does not fit
    assert seen >= set(range(last + 1)), "all that comes before the end"


@pytest.mark.parametrize("block", [1, 7, 8, 1000])
def test_documents_begin_behind_ends_of_text(copy, tokenizer, block):
    corpus = corpus_of(copy, tokenizer, [5, 1, 1, 9, 8])
    assert corpus.document_starts(block).tolist() == [0, 5, 6, 7, 16]
    np.append(corpus.ids, np.uint16(3)).tofile(copy / "corpus.valid.bin")  # no end-of-text behind the last one
    assert Corpus(copy, "valid").document_starts(block).tolist() == [0, 5, 6, 7, 16, 24]


def test_fixed_examples_are_spread_from_end_to_end(copy, tokenizer):
    corpus = corpus_of(copy, tokenizer, [10] * 50)
    windows = corpus.fixed_windows(10, 5)
    assert (windows[:, 0] - 1).tolist() == [0, 12, 24, 36, 49] and torch.equal(windows, corpus.fixed_windows(10, 5))
    everything = corpus.fixed_windows(10, 1000)
    assert everything.flatten().tolist() == corpus.ids.tolist(), "each once, if there are no more"
    assert corpus.fixed_windows(10, 1).shape == (1, 10)


@pytest.mark.parametrize("draw", ["windows", "fixed_windows", "anywhere"])
def test_a_corpus_shorter_than_an_example_is_refused(copy, tokenizer, draw):
    corpus = corpus_of(copy, tokenizer, [4, 6])
    take = {
        "windows": lambda n: corpus.windows(1, n, generator(0)),
        "fixed_windows": lambda n: corpus.fixed_windows(n, 1),
        "anywhere": lambda n: Corpus(copy, "train", anywhere=True).windows(1, n, generator(0)),
    }
    assert take[draw](10).shape == (1, 10)
    refused(lambda: take[draw](11), r"corpus\.train\.bin: 10 tokens are fewer than one example of 11")


@pytest.mark.parametrize("length", [1, 9, 10, 11, 100])
def test_the_largest_id_is_found_wherever_it_stands(length):
    for place in range(length):
        ids = np.arange(length) % 3
        ids[place] = 7
        assert largest_id(ids, block=10) == 7


def test_of_a_long_corpus_blocks_from_end_to_end_are_looked_at(monkeypatch):
    looked_at = np.zeros(10_007, dtype=int)

    class Spy(np.ndarray):
        def __getitem__(self, stretch):
            looked_at[stretch] += 1
            return np.asarray(self)[stretch]

    largest_id(np.zeros(10_007, dtype=int).view(Spy), block=10, blocks=50)
    assert looked_at.max() == 1 and looked_at[0] == looked_at[-1] == 1
    assert 490 <= looked_at.sum() <= 500 and np.diff(np.flatnonzero(looked_at)).max() < 250


def test_a_corpus_that_is_not_whole_is_refused(copy):
    path = copy / "corpus.train.bin"
    for content in (b"", path.read_bytes()[:-1]):
        path.write_bytes(content)
        refused(lambda: Corpus(copy, "train"), "empty or cut short")
    path.unlink()
    refused(lambda: Corpus(copy, "train"), "not found; make the data folder first, e.g. python data/village/make.py")


def test_two_bytes_a_token_while_they_suffice(tmp_path, tokenizer):
    assert corpus_dtype(65536) == np.uint16 and corpus_dtype(65537) == np.uint32
    texts = [f"page {i}" for i in range(2345)]  # more than one batch of 1000
    count = write_corpus(tmp_path / "x.bin", texts, tokenizer)
    ids = np.fromfile(tmp_path / "x.bin", dtype=np.uint16).tolist()
    assert len(ids) == count
    assert ids == [i for text in texts for i in (*tokenizer.encode_ordinary(text), tokenizer.eot_token)]


def test_a_folder_that_is_not_there_says_how_to_make_it(tmp_path):
    refused(lambda: load_tokenizer(tmp_path / "none"), "no such data folder.*data/village/make.py --out .*none")
    refused(lambda: load_tokenizer(tmp_path), "tokenizer.json: not found.*data/village/make.py")


# ---------------------------------------------------------------------------------------------------- records

GOOD = {
    "prompts.jsonl": {"prompt": "a", "user": "u", "split": "train"},
    "demonstrations.jsonl": {"prompt": "a", "completion": "b", "split": "train"},
    "comparisons.jsonl": {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]},
}


def read(path, name):
    if name == "prompts.jsonl":
        return read_prompts(path, "train")
    if name == "demonstrations.jsonl":
        return read_demonstrations(path, "train")
    return read_comparisons(path / name)


WRONG = {
    "no object": ("[1]", "expected an object"),
    "deep": ("[" * 100_000, "not JSON .nested too deeply"),
    "long number": ('{"prompt": ' + "9" * 5000 + "}", "not JSON .*digits"),
    "half a character": ('{"prompt": "\\ud83d", "completion": "b"}', "half a character"),
    "prompt a list": ({"prompt": ["a"]}, '"prompt" must be text'),
    "split a list": ({"split": ["train"]}, r'"split" is \[.train.\]; use one of train, valid, test'),
    "split null": ({"split": None}, '"split" is None'),
    "user a list": ({"user": ["x"]}, '"user" must be text'),
    "labeler a list": ({"labeler": ["x"]}, '"labeler" must be text'),
    "group a list": ({"group": ["x"]}, '"group" must be text'),
    "use case an object": ({"use_case": {"x": 1}}, '"use_case" must be text'),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_records_say_file_and_line(tmp_path, name, kind):
    change, match = WRONG[kind]
    wrong = change if isinstance(change, str) else json.dumps(GOOD[name] | change)
    (tmp_path / name).write_text(json.dumps(GOOD[name]) + "\n\n" + wrong + "\n")
    refused(lambda: read(tmp_path, name), rf"{name}:3: {match}")


@pytest.mark.parametrize("name", GOOD)
def test_good_records_come_back(tmp_path, name):
    good = GOOD[name] | {"labeler": None, "note": ["kept", {"as": "it is"}]}
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps(good).encode())  # with a byte-order mark
    assert read(tmp_path, name) == [good | {"split": "train"}]


@pytest.mark.parametrize("ranks", [[1, 2], [2.5, -1], [0, 0], [999_999_999, 1]])
@pytest.mark.parametrize("more", [{}, {"ratings": [1, 7]}, {"ended": [True, False]}])
def test_good_rankings_come_back(tmp_path, ranks, more):
    ranking = GOOD["comparisons.jsonl"] | {"ranks": ranks, "split": "valid"} | more
    write_jsonl(tmp_path / "x.jsonl", [ranking])
    assert read_comparisons(tmp_path / "x.jsonl") == [ranking]


@pytest.mark.parametrize("rank", [10**400, float("nan"), float("inf"), True, "1", None, [1]])
def test_what_is_no_rank_is_refused(tmp_path, rank):
    write_jsonl(tmp_path / "x.jsonl", [GOOD["comparisons.jsonl"] | {"ranks": [1, rank]}])
    refused(lambda: read_comparisons(tmp_path / "x.jsonl"), r"x\.jsonl:1: rank .{1,60} is not a number")


@pytest.mark.parametrize("ratings", [[100, -50], [0, 1], [1, 8], [1, True], [1, 2.0], [1], "12", None])
def test_what_is_no_rating_is_refused(tmp_path, ratings):
    write_jsonl(tmp_path / "x.jsonl", [GOOD["comparisons.jsonl"] | {"ratings": ratings}])
    refused(
        lambda: read_comparisons(tmp_path / "x.jsonl"), r"x\.jsonl:1: .ratings. must list 2 whole numbers from 1 to 7"
    )


def test_prompts_too_long_are_dropped(tokenizer, capsys):
    records = [{"prompt": "a" * n} for n in range(1, 6)]
    lengths = [len(tokenizer.encode_ordinary(record["prompt"])) for record in records]
    kept = folder.with_room(records, tokenizer, lengths[2])
    assert kept == [record for record, length in zip(records, lengths) if length <= lengths[2]]
    assert f"dropped {len(records) - len(kept)} of 5 prompts" in capsys.readouterr().out
    refused(lambda: folder.with_room(records, tokenizer, -3), "at most 0 tokens fit")
