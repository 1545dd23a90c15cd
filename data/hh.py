"""Anthropic's helpful and harmless dialogues -> a data folder: pairs of answers of which people preferred one.

    python data/hh.py --gpt2 --out out/hh                    # downloads helpful-base, about 17 MB
    python data/hh.py --files a/train.jsonl.gz,a/test.jsonl.gz --corpus text.txt --out out/hh

The release (MIT) is the data set Anthropic/hh-rlhf on the Hugging Face hub: folders helpful-base, helpful-online,
helpful-rejection-sampled and harmless-base with train.jsonl.gz and test.jsonl.gz, in all about 161,000 and 8,600 pairs.
(Its red-team-attempts are transcripts without pairs and are not read.) A line holds two whole dialogues,

    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "\\n\\nHuman: …\\n\\nAssistant: …"}

which share everything up to the last answer.

    prompts         the shared dialogue, up to and with its last "\\n\\nAssistant:"
    comparisons     the two answers to it
    demonstrations  the chosen answer. Nobody wrote it as a demonstration: it is the better of two samples

Dropped and counted: dialogues that differ before the last answer, empty answers, answers that are the same. What comes
from a file whose name begins with "test" is in the test split. Tokenizer, corpus, splits and checks: data/files.py.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import command_line, require
from data.download import cache, download
from data.files import build, check_options, named, read_records
from data.folder import text_of

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"


@dataclass
class Config:
    out: str = "out/hh"  # the data folder to write
    files: str = ""  # the release's files, .jsonl or .jsonl.gz; several: a,b; default: download --subset
    subset: str = "helpful-base"  # folders of the release to download; several: a,b
    limit: int = 0  # at most so many pairs of each file; 0 = all
    corpus: str = ""  # text to pretrain on, as data/files.py reads it; default: the dialogues themselves
    vocab_size: int = 4096  # of a tokenizer trained on the corpus, unless one of the next two is given   GPT-2: 50257
    gpt2: bool = False  # GPT-2's tokenizer by name (downloaded once)
    gpt2_files: str = ""  # GPT-2's tokenizer from a folder with encoder.json and vocab.bpe
    bpe_megabytes: int = 20  # train the tokenizer on the first so many MB of the corpus
    valid: float = 0.1  # share of prompts
    test: float = 0.1  # share of prompts
    corpus_valid: float = 0.02  # share of documents, but at least one


def split_dialogue(chosen, rejected):
    """Two dialogues -> (prompt, chosen answer, rejected answer), or the reason why they are not a pair."""
    cut = chosen.rfind(ASSISTANT)
    if cut < 0 or not chosen.startswith(HUMAN):
        return "not a dialogue of Human and Assistant"
    prompt = chosen[: cut + len(ASSISTANT)]
    if not rejected.startswith(prompt) or HUMAN in rejected[len(prompt) :] or ASSISTANT in rejected[len(prompt) :]:
        return "differ before the last answer"
    if HUMAN in chosen[len(prompt) :]:
        return "the chosen dialogue does not end with an answer"
    answers = [" " + text[len(prompt) :].strip() for text in (chosen, rejected)]
    if not all(map(str.strip, answers)):
        return "an answer is empty"
    return "both answers are the same" if answers[0] == answers[1] else (prompt, *answers)


def read_pairs(paths, limit):
    """-> demonstrations, comparisons, prompts, as lists of records."""
    prompts, demonstrations, comparisons, dropped, read = [], [], [], Counter(), 0
    for path in paths:
        for number, (where, record) in enumerate(read_records(path)):
            if limit and number >= limit:
                break
            read += 1
            pair = split_dialogue(text_of(record, "chosen", where), text_of(record, "rejected", where))
            if isinstance(pair, str):
                dropped[pair] += 1
                continue
            prompt, better, worse = pair
            base = {"prompt": prompt, "use_case": "dialogue"}
            if Path(path).name.startswith("test"):
                base["split"] = "test"
            prompts.append(dict(base))
            demonstrations.append(base | {"completion": better, "labeler": "hh"})
            comparisons.append(base | {"completions": [better, worse], "ranks": [1, 2], "labeler": "hh"})
    print(f"read {read:,} pairs of dialogues, kept {len(comparisons):,}")
    for reason, count in sorted(dropped.items()):
        print(f"  {count:6,} dropped: {reason}")
    require(comparisons, f"{', '.join(map(str, paths))}: no pair to use; is this the release's file?")
    return demonstrations, comparisons, prompts


def fetch(subsets):
    """The release's files of these folders, downloaded once."""
    known = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")
    endpoint, paths = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"), []
    for subset in subsets:
        require(subset in known, f"--subset {subset}: choose from {', '.join(known)}")
        for file in ("train.jsonl.gz", "test.jsonl.gz"):
            url = f"{endpoint}/datasets/Anthropic/hh-rlhf/resolve/main/{subset}/{file}"
            paths.append(download(url, cache() / "hh-rlhf" / subset / file, "", f"{subset}/{file}"))
    return paths


def main(cfg):
    require(cfg.limit >= 0, f"--limit {cfg.limit}: 0 for all, or a positive number")
    check_options(cfg, needs_corpus=False)
    build(cfg, *read_pairs(named(cfg.files) or fetch(named(cfg.subset)), cfg.limit))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
