"""Tokenizers, always a `tiktoken.Encoding`: GPT-2's own, or a byte-level BPE that we train on the corpus.

What a tokenizer *is* fits in a small dict (name, pattern, ranks, special tokens) that is written as tokenizer.json and
copied into every checkpoint, so that a checkpoint alone can be talked to.
"""

import base64
import hashlib
import heapq
import json
from collections import Counter, defaultdict
from pathlib import Path

import regex
import tiktoken
import tiktoken.load

from core.config import BadInput, require

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 cuts text into words before any merging: contractions, letters, digits, the rest, spaces.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def train_bpe(texts, vocab_size, pattern=GPT2_PATTERN):
    """Byte-pair encoding: start from the 256 bytes, and merge the most frequent neighbouring pair again and again.

    texts: iterable of str. Returns the list of tokens (bytes) in rank order, at most vocab_size - 1 of them (one id is
    left for end-of-text; fewer if the text has nothing left to merge). Ties go to the pair of lower ids.

    Only words that hold the merged pair are touched, and a heap finds the next pair, so the cost is that of the changes
    made and not vocab_size times the size of the corpus.
    """
    require(vocab_size > 257, f"--vocab_size {vocab_size}: needs more than the 256 bytes and end-of-text")
    counts = Counter()
    for text in texts:
        counts.update(regex.findall(pattern, text))
    words = [list(word.encode()) for word in counts]  # each distinct word as a list of token ids
    frequency = list(counts.values())
    pair_count, pair_words = Counter(), defaultdict(set)  # how often a pair occurs, and in which words
    for w, ids in enumerate(words):
        for pair in zip(ids, ids[1:]):
            pair_count[pair] += frequency[w]
            pair_words[pair].add(w)
    heap = [(-n, pair) for pair, n in pair_count.items()]
    heapq.heapify(heap)
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size - 1 and heap:
        n, pair = heapq.heappop(heap)
        if -n != pair_count[pair]:  # an old entry: the count has changed since it was pushed
            continue
        if -n < 2:
            break  # nothing occurs twice: merging more would only memorise the text
        new = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        changed = set()
        for w in list(pair_words[pair]):
            old = words[w]
            ids, i = [], 0
            while i < len(old):
                if i + 1 < len(old) and (old[i], old[i + 1]) == pair:
                    ids.append(new)
                    i += 2
                else:
                    ids.append(old[i])
                    i += 1
            for p in zip(old, old[1:]):
                pair_count[p] -= frequency[w]
                pair_words[p].discard(w)
                changed.add(p)
            for p in zip(ids, ids[1:]):
                pair_count[p] += frequency[w]
                pair_words[p].add(w)
                changed.add(p)
            words[w] = ids
        for p in changed:
            if pair_count[p] > 0:
                heapq.heappush(heap, (-pair_count[p], p))
    return tokens


def tokenizer_spec_from(tokens, name, pattern=GPT2_PATTERN):
    """Tokens in rank order -> what tokenizer.json and every checkpoint hold. End-of-text gets the last id."""
    ranks = [base64.b64encode(token).decode() for token in tokens]
    return {"name": name, "pattern": pattern, "ranks": ranks, "special": {END_OF_TEXT: len(tokens)}}


def build_tokenizer(tokenizer):
    """The dict of `tokenizer_spec_from` -> tiktoken.Encoding; its `eot_token` is end-of-text, its `n_vocab` the size."""
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(tokenizer["ranks"])}
    return tiktoken.Encoding(
        tokenizer["name"],
        pat_str=tokenizer["pattern"],
        mergeable_ranks=ranks,
        special_tokens=tokenizer["special"],
    )


def gpt2_tokenizer_spec(folder=""):
    """GPT-2's tokenizer: from `encoder.json` and `vocab.bpe` in `folder`, or by name (tiktoken then downloads it once)."""
    if folder:
        paths = [Path(folder) / name for name in ("vocab.bpe", "encoder.json")]
        for path in paths:
            require(path.is_file(), f"{path}: not found; the folder needs GPT-2's encoder.json and vocab.bpe")
        try:
            # The hashes make tiktoken look at the files: it caches by path, and would miss that they changed.
            hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
            ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*map(str, paths), *hashes)
        except (ValueError, AssertionError, KeyError, IndexError) as problem:
            raise BadInput(
                f"{folder}: encoder.json and vocab.bpe do not fit each other ({problem}); copy both again"
            ) from None
        tokens = sorted(ranks, key=ranks.get)
    else:
        try:
            encoding = tiktoken.get_encoding("gpt2")
        except Exception as problem:
            reason = type(problem).__name__
            raise BadInput(
                f"GPT-2's tokenizer could not be downloaded ({reason}); put encoder.json and vocab.bpe in a folder and pass "
                "--gpt2_files FOLDER, or train one with --vocab_size N"
            ) from None
        tokens = [encoding.decode_single_token_bytes(i) for i in range(50256)]
    return tokenizer_spec_from(tokens, "gpt2")


def read_tokenizer_spec(path):
    """Read tokenizer.json -> dict. `{"encoding": "gpt2"}` is GPT-2's by name."""
    try:
        tokenizer = json.loads(Path(path).read_text(encoding="utf-8"))
        if tokenizer.get("encoding") == "gpt2":
            return gpt2_tokenizer_spec()
        build_tokenizer(tokenizer)
    except FileNotFoundError:
        raise BadInput(f"{path}: not found; make the data folder first, e.g. python data/village.py") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BadInput(f"{path}: not a tokenizer ({problem!r}); make the data folder again") from None
    return tokenizer
