"""Tokenizers, always a `tiktoken.Encoding`: GPT-2's own, or a byte-level BPE that we train on the corpus.

What a tokenizer *is* fits in a small dict, the tokenizer_spec, that is written as tokenizer.json and copied into every
checkpoint, so that a checkpoint alone can be talked to:

    name      as tiktoken calls it
    pattern   the regular expression that cuts text into words before any merging
    ranks     [base64 of each token]: the place of a token is its id and its rank; null where the id is end-of-text's
    special   {"<|endoftext|>": id}
"""

import base64
import heapq
import json
from collections import Counter, defaultdict
from pathlib import Path

import regex
import tiktoken

from core.config import BadInput, require
from core.output import whole_file

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


def tokenizer_spec_from(tokens, name, pattern=GPT2_PATTERN, end_of_text=None):
    """Tokens (bytes) in rank order -> tokenizer_spec.

    end_of_text: its id, the last one unless given; the tokens from there on have ids one higher than their place.
    """
    if end_of_text is None:
        end_of_text = len(tokens)
    ranks = [base64.b64encode(token).decode() for token in tokens]
    if end_of_text < len(tokens):
        ranks.insert(end_of_text, None)
    return {"name": name, "pattern": pattern, "ranks": ranks, "special": {END_OF_TEXT: end_of_text}}


def build_tokenizer(tokenizer_spec):
    """tokenizer_spec -> tiktoken.Encoding; its `eot_token` is end-of-text, its `n_vocab` the number of ids."""
    ranks = {base64.b64decode(t): rank for rank, t in enumerate(tokenizer_spec["ranks"]) if t is not None}
    return tiktoken.Encoding(
        tokenizer_spec["name"],
        pat_str=tokenizer_spec["pattern"],
        mergeable_ranks=ranks,
        special_tokens=tokenizer_spec["special"],
    )


def gpt2_tokenizer_spec(folder=""):
    """GPT-2's tokenizer: from its two files in `folder`, or by name (tiktoken then downloads it once)."""
    if folder:
        return read_gpt2_files(folder)
    try:
        tokenizer = tiktoken.get_encoding("gpt2")
    except Exception as problem:
        reason = type(problem).__name__
        raise BadInput(
            f"GPT-2's tokenizer could not be downloaded ({reason}); put encoder.json and vocab.bpe in a folder and "
            "pass --gpt2_files FOLDER, or train one with --vocab_size N"
        ) from None
    return tokenizer_spec_from([tokenizer.decode_single_token_bytes(i) for i in range(50256)], "gpt2")


def read_tokenizer_spec(path):
    """tokenizer.json -> tokenizer_spec. `{"encoding": "gpt2"}` is GPT-2's by name. Refuses what is no tokenizer."""
    try:
        tokenizer_spec = json.loads(Path(path).read_text(encoding="utf-8"))
        if tokenizer_spec.get("encoding") == "gpt2":
            return gpt2_tokenizer_spec()
        check_tokenizer_spec(tokenizer_spec)
        build_tokenizer(tokenizer_spec)
    except FileNotFoundError:
        raise BadInput(f"{path}: not found; make the data folder first, e.g. python data/village/make.py") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(f"{path}: not a tokenizer ({problem!r}); make the data folder again") from None
    return tokenizer_spec


def check_tokenizer_spec(tokenizer_spec):
    """Raise ValueError where tiktoken would crash, or would encode something else than what was written."""
    ranks, special = tokenizer_spec["ranks"], tokenizer_spec["special"]
    tokens = [base64.b64decode(token) for token in ranks if token is not None]
    if not {bytes([b]) for b in range(256)} <= set(tokens):
        raise ValueError("some of the 256 single bytes are missing")
    if len(set(tokens)) < len(tokens):
        raise ValueError("a token comes twice")
    gaps = [rank for rank, token in enumerate(ranks) if token is None] or [len(ranks)]
    if special != {END_OF_TEXT: gaps[0]} or len(gaps) > 1:
        raise ValueError(f"the one special token must be {END_OF_TEXT}, with the id that no other token has")


# ---------------------------------------------------------------------------------------------------- GPT-2's files

GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's names, and OpenAI's


def byte_letters():
    """GPT-2's files spell every byte as a printable letter: itself where it is one, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def read_gpt2_files(folder):
    """The vocabulary and the merges in a folder -> tokenizer_spec. Every token keeps the id that the file says.

    Refuses what tiktoken cannot hold: ids with gaps, further special tokens, merges in another order than the ids.
    """
    pairs = [(Path(folder) / vocabulary, Path(folder) / merges) for vocabulary, merges in GPT2_FILES]
    found = [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]
    names = " nor ".join(" and ".join(names) for names in GPT2_FILES)
    require(found, f"{folder}: holds neither {names}; pass a folder with GPT-2's two tokenizer files")
    vocabulary_path, merges_path = found[0]

    byte_of = {letter: b for b, letter in byte_letters().items()}
    try:
        vocabulary = json.loads(vocabulary_path.read_text(encoding="utf-8"))
        words = sorted(vocabulary, key=vocabulary.get)
        ids = [vocabulary[word] for word in words]
        tokens = [bytes(byte_of[letter] for letter in word) for word in words if word != END_OF_TEXT]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(f"{vocabulary_path}: not GPT-2's vocabulary ({problem!r}); copy it again") from None
    only = "only a vocabulary like GPT-2's can be read"
    require(END_OF_TEXT in vocabulary, f"{vocabulary_path}: has no {END_OF_TEXT}; {only}")
    no_gaps = ids == list(range(len(ids)))
    require(no_gaps, f"{vocabulary_path}: the ids are not 0 to {len(ids) - 1}, each once; {only}")

    try:
        _, *lines = merges_path.read_text(encoding="utf-8").split("\n")  # the first line is the version
        merged = [vocabulary[left + right] for left, right in (line.split() for line in lines if line.strip())]
    except (ValueError, KeyError) as problem:
        raise BadInput(f"{merges_path}: does not fit {vocabulary_path.name} ({problem!r}); copy both again") from None
    longer = [vocabulary[word] for word in words if len(word) > 1 and word != END_OF_TEXT]
    fits = merged == longer and len(tokens) - len(longer) == 256
    require(fits, f"{merges_path}: its merges are not {vocabulary_path.name} in the order of the ids; {only}")
    return tokenizer_spec_from(tokens, "gpt2", end_of_text=vocabulary[END_OF_TEXT])


def write_gpt2_files(folder, tokenizer):
    """vocab.json, merges.txt and tokenizer_config.json of a tiktoken.Encoding, as GPT-2's. Every token keeps its id."""
    letters = byte_letters()
    ids = [i for i in range(tokenizer.n_vocab) if i != tokenizer.eot_token]
    tokens = [tokenizer.decode_single_token_bytes(i) for i in ids]
    spelled = {token: "".join(letters[b] for b in token) for token in tokens}
    vocabulary = {spelled[token]: i for i, token in zip(ids, tokens)} | {END_OF_TEXT: tokenizer.eot_token}
    with whole_file(folder / "vocab.json") as file:
        json.dump(vocabulary, file, ensure_ascii=False)
    with whole_file(folder / "merges.txt") as file:
        file.write("#version: 0.2\n" + "".join(f"{spelled[a]} {spelled[b]}\n" for a, b in merges_of(tokens)))
    special = {key: END_OF_TEXT for key in ("bos_token", "eos_token", "unk_token")}
    with whole_file(folder / "tokenizer_config.json") as file:
        json.dump(special | {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}, file, indent=1)


def merges_of(tokens):
    """[bytes] in rank order -> the pair each was merged from: what BPE leaves of it with the earlier merges alone."""
    rank, merges = {token: i for i, token in enumerate(tokens)}, []
    for limit, token in enumerate(tokens):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], limit))
            require(rank.get(parts[best] + parts[best + 1], limit) < limit, f"token {token!r} cannot be merged")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges
