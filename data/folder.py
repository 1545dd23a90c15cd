"""What a data folder holds, and how its files are read: the contract between data sets and scripts.

    tokenizer.json              the tokenizer_spec (data/bpe.py)
    corpus.{train,valid}.bin    token ids, uint16 or uint32, documents end with end-of-text
    prompts.jsonl               {"prompt", "user", "split", "use_case"}
    demonstrations.jsonl        {"prompt", "completion", "labeler", "split"}
    comparisons.jsonl           {"prompt", "completions": [K], "ranks": [K], "labeler", "split"}   1 = best, equal = tie
                                {"prompt", "chosen", "rejected"} is read as K = 2

The model reads prompt and completion joined as they stand: what separates them (a newline, "\\n\\nAssistant:") is part
of the prompt. A ranking may also say "ended": [K], false for answers that were cut off, "ratings": [K] from 1 to 7, and
"group", the population its labeler is from; a demonstration "source": "labeler" if its prompt is the labeler's own.
Other keys are ignored. A wrong record is refused with file, line, key and fix.
"""

import codecs
import gzip
import hashlib
import json
import reprlib
import zlib
from pathlib import Path

import numpy as np
import torch

from core.config import BadInput, require
from core.output import whole_file
from data.bpe import build_tokenizer, read_tokenizer_spec

SPLITS = ("train", "valid", "test")
TEXT_KEYS = ("user", "labeler", "group", "source", "use_case")  # may be left out or null; else they must be text

# ---------------------------------------------------------------------------------------------------- lines and records


def open_bytes(path):
    """Open a file, gzipped or not, by its name."""
    path = Path(path)
    require(path.is_file(), f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; check the path")
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def read_lines(path):
    """Yield (line number, line) of a text file, without a byte-order mark. Unreadable bytes become one clear error.

    Lines are decoded one by one: a text file decodes whole blocks, and would blame an earlier line.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        raise BadInput(f"{path}:{number}: not readable as UTF-8 text ({problem}); save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise BadInput(f"{path}:{number + 1}: damaged or cut short ({problem}); copy the file again") from None


def read_jsonl(path):
    """Yield (where, record) for each line, where = 'file:line'. Blank lines are passed over."""
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as problem:
                raise BadInput(f"{where}: not JSON ({json_problem(problem)}); one object per line") from None
            check_record(record, where)
            yield where, record


def json_problem(problem):
    """What the JSON parser did not like, in a few words."""
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if isinstance(problem, json.JSONDecodeError):
        return f"{problem.msg} at column {problem.colno}"
    return str(problem)  # a number of thousands of digits


def check_record(record, where):
    """Refuse what is not an object, or holds half a character, which JSON can spell and UTF-8 cannot."""
    require(isinstance(record, dict), f"{where}: expected an object like {{...}}, got {type(record).__name__}")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadInput(f'{where}: half a character (an escape like "\\ud83d" alone); remove it') from None
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply; is this the right file?") from None


def write_jsonl(path, records):
    """Write one JSON object per line, whole or not at all."""
    with whole_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------- keys of a record


def text_of(record, key, where):
    """record[key] as a string that is not empty. End-of-text written out in it is encoded as ordinary text."""
    require(key in record, f'{where}: key "{key}" is missing; found {sorted(record)}')
    value = record[key]
    require(isinstance(value, str) and value.strip() != "", f'{where}: "{key}" must be text that is not empty')
    return value


def split_of(record, where):
    """The split that a record says, "train" if it says none."""
    split = record.get("split", "train")
    require(split in SPLITS, f'{where}: "split" is {reprlib.repr(split)}; use one of {", ".join(SPLITS)}')
    return split


def check_texts(record, where):
    """Refuse a record with a user, labeler, group, source or use case that is not text, or with an empty user."""
    for key in TEXT_KEYS:
        value = record.get(key)
        require(value is None or isinstance(value, str), f'{where}: "{key}" must be text, or left out')
    user = record.get("user")
    require(user is None or user.strip() != "", f'{where}: "user" must be text that is not empty, or left out')


def as_ranking(record, where):
    """A record of comparisons in the K-way form: a chosen/rejected pair becomes K = 2. Refuses a wrong one."""
    text_of(record, "prompt", where)
    if "completions" not in record:
        chosen, rejected = text_of(record, "chosen", where), text_of(record, "rejected", where)
        require(chosen != rejected, f"{where}: chosen and rejected are the same text; drop the pair")
        record = record | {"completions": [chosen, rejected], "ranks": [1, 2]}
    completions = record["completions"]
    several = isinstance(completions, list) and len(completions) >= 2
    require(several, f'{where}: "completions" must list at least 2 texts')
    for text in completions:
        is_text = isinstance(text, str) and text.strip() != ""
        require(is_text, f'{where}: "completions" holds an empty text; drop it and its rank')
    K = len(completions)
    ranks = record.get("ranks")
    require(isinstance(ranks, list) and len(ranks) == K, f'{where}: "ranks" must list {K} numbers, one per completion')
    for rank in ranks:
        require(is_rank(rank), f"{where}: rank {reprlib.repr(rank)} is not a number that can be a rank (1 = best)")
    if "ratings" in record:
        ratings = record["ratings"]
        fits = isinstance(ratings, list) and len(ratings) == K and all(is_rating(value) for value in ratings)
        require(fits, f'{where}: "ratings" must list {K} whole numbers from 1 to 7, or be left out')
    if "ended" in record:
        ended = record["ended"]
        fits = isinstance(ended, list) and len(ended) == K and all(isinstance(value, bool) for value in ended)
        require(fits, f'{where}: "ended" must list {K} times true or false, or be left out')
    return record


def is_rank(value):
    """Whether this is a number, not a truth value, NaN, infinity or one too large for a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def is_rating(value):
    """Whether this is an overall quality as the paper's labelers gave it: a whole number from 1 to 7."""
    return type(value) is int and 1 <= value <= 7


# ---------------------------------------------------------------------------------------------------- the three files


def read_prompts(folder, split):
    """Prompts of one split, as a list of records, in an order that says nothing about who sent them."""
    records = []
    for where, record in read_jsonl(Path(folder) / "prompts.jsonl"):
        text_of(record, "prompt", where)
        check_texts(record, where)
        if split_of(record, where) == split:
            records.append(record)
    require(records, f'{folder}/prompts.jsonl: no prompt has "split": "{split}"')
    return sorted(records, key=lambda record: hashlib.sha256(record["prompt"].encode()).digest())


def read_demonstrations(folder, split):
    """Demonstrations of one split, as a list of records."""
    records = []
    for where, record in read_jsonl(Path(folder) / "demonstrations.jsonl"):
        text_of(record, "prompt", where)
        text_of(record, "completion", where)
        check_texts(record, where)
        if split_of(record, where) == split:
            records.append(record)
    require(records, f'{folder}/demonstrations.jsonl: none has "split": "{split}"')
    return records


def read_comparisons(path):
    """All rankings in a file, in the K-way form. Chosen/rejected pairs become K = 2."""
    records = []
    for where, record in read_jsonl(path):
        check_texts(record, where)
        records.append(as_ranking(record, where) | {"split": split_of(record, where)})
    require(records, f"{path}: no comparisons in it")
    return records


def with_room(records, tokenizer, limit, key="prompt"):
    """Records whose prompt is at most `limit` tokens; says how many were dropped, and refuses to go on with none."""
    kept = [record for record in records if len(tokenizer.encode_ordinary(record[key])) <= limit]
    if len(kept) < len(records):
        dropped = len(records) - len(kept)
        print(
            f"dropped {dropped:,} of {len(records):,} prompts that leave no room in the context (over {limit} tokens)"
        )
    fix = "use a model with a longer context or fewer new tokens"
    require(kept, f"no prompt is short enough: at most {max(limit, 0)} tokens fit; {fix}")
    return kept


# ---------------------------------------------------------------------------------------------------- the corpus


class Corpus:
    """One split of the corpus, memory-mapped: the file may be larger than memory.

    anywhere: examples begin at any token, not where documents do.
    """

    def __init__(self, folder, split, anywhere=False):
        self.anywhere = anywhere
        self.path = Path(folder) / f"corpus.{split}.bin"
        hint = "make the data folder first, e.g. python data/village/make.py"
        require(self.path.is_file(), f"{self.path}: not found; {hint}")
        tokenizer = load_tokenizer(folder)[1]
        n_vocab, self.eot = tokenizer.n_vocab, tokenizer.eot_token
        dtype = np.dtype(corpus_dtype(n_vocab))
        size = self.path.stat().st_size
        whole = size > 0 and size % dtype.itemsize == 0
        require(whole, f"{self.path}: empty or cut short; make the data folder again")
        self.ids = np.memmap(self.path, dtype=dtype, mode="r")
        self.known_beginnings = {}
        largest = largest_id(self.ids)
        fix = "it was written with another tokenizer, make the data folder again"
        require(
            largest < n_vocab, f"{self.path}: holds token {largest}, but the tokenizer ends at {n_vocab - 1}; {fix}"
        )

    def windows(self, count, length, generator):
        """`count` random examples of `length` tokens, as an int64 array (count, length). Drawn with `generator`."""
        starts = self.beginnings(length)
        drawn = torch.randint(len(starts), (count,), generator=generator)
        return self.examples([starts[i] for i in drawn.tolist()], length)

    def fixed_windows(self, length, limit):
        """At most `limit` examples of `length` tokens, spread evenly: a fixed sample for measuring the loss."""
        starts = self.beginnings(length)
        spread = np.linspace(0, len(starts) - 1, min(limit, len(starts))).astype(int)
        return self.examples([starts[i] for i in spread], length)

    def examples(self, starts, length):
        return torch.from_numpy(np.stack([self.ids[s : s + length] for s in starts]).astype(np.int64))

    def beginnings(self, length):
        """Where examples of `length` tokens begin: where a document does, because prompts begin at position 0, too; and
        in a longer document also at the last token of the example before, so that every token is predicted once. A
        short one is followed by the next documents."""
        if length not in self.known_beginnings:
            last = len(self.ids) - length
            require(last >= 0, f"{self.path}: {len(self.ids)} tokens are fewer than one example of {length}")
            if self.anywhere:
                return range(last + 1)
            documents = self.document_starts()
            lengths = np.diff(documents, append=len(self.ids))
            step = max(1, length - 1)
            pieces = np.maximum(1, -(-(lengths - 1) // step))
            nth_piece = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
            starts = np.repeat(documents, pieces) + step * nth_piece
            self.known_beginnings[length] = starts[starts <= last]
        return self.known_beginnings[length]

    def document_starts(self, block=1 << 24):
        """Positions at which documents begin: 0, and behind every end-of-text but a last one."""
        ends = [
            start + np.flatnonzero(self.ids[start : start + block] == self.eot)
            for start in range(0, len(self.ids), block)
        ]
        starts = np.concatenate([[0], np.concatenate(ends) + 1])
        return starts[starts < len(self.ids)]


def largest_id(ids, block=1 << 20, blocks=128):
    """The largest token id of an array, which is read in blocks: all of them, or of a long one 128 spread evenly."""
    starts = np.arange(0, len(ids), block)
    if len(starts) > blocks:
        starts = starts[np.linspace(0, len(starts) - 1, blocks).astype(int)]
    return max(int(ids[start : start + block].max()) for start in starts)


def corpus_dtype(n_vocab):
    """Two bytes per token while the vocabulary allows it."""
    return np.uint16 if n_vocab <= 65536 else np.uint32


def write_corpus(path, documents, tokenizer):
    """Encode documents (str), end each with end-of-text, write them as one array. Returns the number of tokens."""
    count = 0
    with whole_file(path, "wb") as file:
        batch = []
        for document in documents:
            batch.append(document)
            if len(batch) == 1000:
                count += _write_batch(file, batch, tokenizer)
                batch = []
        count += _write_batch(file, batch, tokenizer)
    return count


def _write_batch(file, batch, tokenizer):
    rows = tokenizer.encode_ordinary_batch(batch, num_threads=2) if batch else []
    ids = [i for row in rows for i in (*row, tokenizer.eot_token)]
    np.array(ids, dtype=corpus_dtype(tokenizer.n_vocab)).tofile(file)
    return len(ids)


def load_tokenizer(folder):
    """-> (tokenizer_spec, tiktoken.Encoding) of a data folder."""
    hint = f"make it first, e.g. python data/village/make.py --out {folder}"
    require(Path(folder).is_dir(), f"{folder}: no such data folder; {hint}")
    tokenizer_spec = read_tokenizer_spec(Path(folder) / "tokenizer.json")
    return tokenizer_spec, build_tokenizer(tokenizer_spec)
