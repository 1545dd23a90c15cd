"""What a data folder holds, and how its files are read: the contract between data sets and scripts.

    tokenizer.json              the tokenizer (data/bpe.py)
    corpus.{train,valid}.bin    token ids, uint16 or uint32, documents end with end-of-text
    prompts.jsonl               {"prompt", "user", "split", "use_case"}
    demonstrations.jsonl        {"prompt", "completion", "labeler", "split"}
    comparisons.jsonl           {"prompt", "completions": [K], "ranks": [K], "labeler", "split"}   1 = best, equal = tie
                                {"prompt", "chosen", "rejected"} is read as K = 2

The model reads prompt and completion joined as they stand: what separates them (a newline, "\\n\\nAssistant:") is part
of the prompt. A ranking may also say "ended": [K], false for answers that were cut off, and "group", the population its
labeler is from; a demonstration "source": "labeler" if its prompt is the labeler's own. Other keys are ignored. A wrong record is refused with file, line, key and fix.
"""

import gzip
import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from core.config import BadInput, require
from core.output import whole_file
from data.bpe import build_tokenizer, read_tokenizer_spec

SPLITS = ("train", "valid", "test")


def open_bytes(path):
    """Open a file, gzipped or not, by its name."""
    path = Path(path)
    require(path.is_file(), f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; check the path")
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def read_lines(path):
    """Yield (line number, line) of a text file; unreadable bytes become one clear error.

    Lines are decoded one by one: a text file decodes whole blocks, and would blame an earlier line.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        raise BadInput(f"{path}:{number}: not readable as UTF-8 text ({problem}); save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise BadInput(f"{path}:{number + 1}: damaged or cut short ({problem}); copy the file again") from None


def read_jsonl(path):
    """Yield (where, record) for each line, where = 'file:line'. Blank lines are passed over."""
    for number, line in read_lines(path):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as problem:
                raise BadInput(
                    f"{path}:{number}: not JSON ({problem.msg} at column {problem.colno}); one object per line"
                ) from None
            require(
                isinstance(record, dict),
                f"{path}:{number}: expected an object like {{...}}, got {type(record).__name__}",
            )
            yield f"{path}:{number}", record


def write_jsonl(path, records):
    """Write one JSON object per line, whole or not at all."""
    with whole_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def text_of(record, key, where):
    """record[key] as a string that is not empty. End-of-text written out in it is encoded as ordinary text."""
    require(key in record, f'{where}: key "{key}" is missing; found {sorted(record)}')
    value = record[key]
    require(isinstance(value, str) and value.strip() != "", f'{where}: "{key}" must be text that is not empty')
    return value


def split_of(record, where):
    split = record.get("split", "train")
    require(split in SPLITS, f'{where}: "split" is {split!r}; use one of {", ".join(SPLITS)}')
    return split


def read_prompts(folder, split):
    """Prompts of one split, as a list of records, in an order that says nothing about who sent them."""
    records = [
        r | {"prompt": text_of(r, "prompt", w)}
        for w, r in read_jsonl(Path(folder) / "prompts.jsonl")
        if split_of(r, w) == split
    ]
    require(records, f'{folder}/prompts.jsonl: no prompt has "split": "{split}"')
    return sorted(records, key=lambda r: hashlib.sha256(r["prompt"].encode()).digest())


def read_demonstrations(folder, split):
    """Demonstrations of one split, as a list of records."""
    records = []
    for where, record in read_jsonl(Path(folder) / "demonstrations.jsonl"):
        text_of(record, "prompt", where), text_of(record, "completion", where)
        if split_of(record, where) == split:
            records.append(record)
    require(records, f'{folder}/demonstrations.jsonl: none has "split": "{split}"')
    return records


def read_comparisons(path):
    """All rankings in a file, in the K-way form. Chosen/rejected pairs become K = 2."""
    records = []
    for where, record in read_jsonl(path):
        text_of(record, "prompt", where)
        if "completions" not in record:
            chosen, rejected = text_of(record, "chosen", where), text_of(record, "rejected", where)
            require(chosen != rejected, f"{where}: chosen and rejected are the same text; drop the pair")
            record = record | {"completions": [chosen, rejected], "ranks": [1, 2]}
        completions, ranks = record["completions"], record.get("ranks")
        require(
            isinstance(completions, list) and len(completions) >= 2,
            f'{where}: "completions" must list at least 2 texts',
        )
        require(
            isinstance(ranks, list) and len(ranks) == len(completions),
            f'{where}: "ranks" must list {len(completions)} numbers, one per completion',
        )
        for text in completions:
            require(
                isinstance(text, str) and text.strip() != "",
                f'{where}: "completions" holds an empty text; drop it and its rank',
            )
        for rank in ranks:
            require(
                isinstance(rank, (int, float)) and not isinstance(rank, bool) and math.isfinite(rank),
                f"{where}: rank {rank!r} is not a number (1 = best)",
            )
        ratings = record.get("ratings", [4] * len(ranks))
        graded = isinstance(ratings, list) and len(ratings) == len(ranks) and all(type(n) is int for n in ratings)
        require(graded, f'{where}: "ratings" must list {len(ranks)} whole numbers from 1 to 7, or be left out')
        ended = record.get("ended", [True] * len(ranks))
        fits = isinstance(ended, list) and len(ended) == len(ranks) and all(isinstance(e, bool) for e in ended)
        require(fits, f'{where}: "ended" must list {len(ranks)} times true or false, or be left out')
        records.append(record | {"split": split_of(record, where)})
    require(records, f"{path}: no comparisons in it")
    return records


def with_room(records, encoding, limit, key="prompt"):
    """Records whose prompt is at most `limit` tokens; says how many were dropped, and refuses to go on with none."""
    kept = [r for r in records if len(encoding.encode_ordinary(r[key])) <= limit]
    if len(kept) < len(records):
        print(
            f"dropped {len(records) - len(kept):,} of {len(records):,} prompts that leave no room in the context (over {limit} tokens)"
        )
    require(
        kept,
        f"no prompt is short enough: at most {max(limit, 0)} tokens fit; use a model with a longer context or fewer new tokens",
    )
    return kept


class Corpus:
    """One split of the corpus, memory-mapped: the file may be larger than memory."""

    def __init__(self, folder, split):
        self.path = Path(folder) / f"corpus.{split}.bin"
        require(self.path.is_file(), f"{self.path}: not found; make the data folder first, e.g. python data/village.py")
        dtype = corpus_dtype(load_tokenizer(folder)[1].n_vocab)
        size = self.path.stat().st_size
        require(
            size and size % np.dtype(dtype).itemsize == 0,
            f"{self.path}: empty or cut short; make the data folder again",
        )
        self.ids = np.memmap(self.path, dtype=dtype, mode="r")

    def windows(self, count, length, generator):
        """`count` random stretches of `length` tokens, as an int64 array (count, length). Drawn with `generator`."""
        require(len(self.ids) >= length, f"{self.path}: {len(self.ids)} tokens are fewer than one example of {length}")
        starts = torch.randint(len(self.ids) - length + 1, (count,), generator=generator).tolist()
        return torch.from_numpy(np.stack([self.ids[s : s + length] for s in starts]).astype(np.int64))

    def consecutive(self, length, limit):
        """The first `limit` stretches of `length` tokens, one after the other: a fixed sample for measuring the loss."""
        count = min(limit, len(self.ids) // length)
        require(count > 0, f"{self.path}: {len(self.ids)} tokens are fewer than one example of {length}")
        return torch.from_numpy(self.ids[: count * length].astype(np.int64).reshape(count, length))


def corpus_dtype(n_vocab):
    """Two bytes per token while the vocabulary allows it."""
    return np.uint16 if n_vocab <= 65536 else np.uint32


def write_corpus(path, documents, encoding):
    """Encode documents (str), end each with end-of-text, write them as one array. Returns the number of tokens."""
    count = 0
    with whole_file(path, "wb") as file:
        batch = []
        for document in documents:
            batch.append(document)
            if len(batch) == 1000:
                count += _write_batch(file, batch, encoding)
                batch = []
        count += _write_batch(file, batch, encoding)
    return count


def _write_batch(file, batch, encoding):
    rows = encoding.encode_ordinary_batch(batch, num_threads=2) if batch else []
    ids = [i for row in rows for i in (*row, encoding.eot_token)]
    np.array(ids, dtype=corpus_dtype(encoding.n_vocab)).tofile(file)
    return len(ids)


def load_tokenizer(folder):
    """-> (tokenizer dict, tiktoken.Encoding) of a data folder."""
    require(
        Path(folder).is_dir(),
        f"{folder}: no such data folder; make it first, e.g. python data/village.py --out {folder}",
    )
    tokenizer = read_tokenizer_spec(Path(folder) / "tokenizer.json")
    return tokenizer, build_tokenizer(tokenizer)
