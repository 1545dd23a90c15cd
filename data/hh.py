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

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import command_line, require
from data.download import cache_folder, download, hub_url
from data.files import FolderOptions, build, check_options, paths_in, read_records
from data.folder import text_of

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"
SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")


@dataclass
class Config(FolderOptions):
    out: str = "out/hh"  # the data folder to write
    files: str = ""  # the release's files, .jsonl or .jsonl.gz; several: a,b; default: download --subset
    subset: str = "helpful-base"  # folders of the release to download; several: a,b
    limit: int = 0  # at most so many pairs of each file; 0 = all
    corpus: str = ""  # text to pretrain on, as data/files.py reads it; default: the dialogues themselves


def split_dialogue(chosen, rejected):
    """Two dialogues -> ((prompt, chosen answer, rejected answer), ""), or (None, why they are not a pair)."""
    cut = chosen.rfind(ASSISTANT)
    if cut < 0 or not chosen.startswith(HUMAN):
        return None, "not a dialogue of Human and Assistant"
    prompt = chosen[: cut + len(ASSISTANT)]
    better, worse = chosen[len(prompt) :], rejected[len(prompt) :]
    if not rejected.startswith(prompt) or HUMAN in worse or ASSISTANT in worse:
        return None, "differ before the last answer"
    if HUMAN in better:
        return None, "the chosen dialogue does not end with an answer"
    better, worse = better.strip(), worse.strip()
    if better == "" or worse == "":
        return None, "an answer is empty"
    if better == worse:
        return None, "both answers are the same"
    return (prompt, " " + better, " " + worse), ""


def read_pairs(paths, limit):
    """-> demonstrations, comparisons, prompts, as lists of records. limit: pairs to read of each file, 0 = all."""
    prompts, demonstrations, comparisons, dropped, read = [], [], [], Counter(), 0
    for path in paths:
        for where, record in read_records(path, limit):
            read += 1
            pair, reason = split_dialogue(text_of(record, "chosen", where), text_of(record, "rejected", where))
            if pair is None:
                dropped[reason] += 1
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
    paths = []
    for subset in subsets:
        require(subset in SUBSETS, f"--subset {subset}: choose from {', '.join(SUBSETS)}")
        for file in ("train.jsonl.gz", "test.jsonl.gz"):
            url = hub_url(f"datasets/Anthropic/hh-rlhf/resolve/main/{subset}/{file}")
            paths.append(download(url, cache_folder() / "hh-rlhf" / subset / file, f"{subset}/{file}"))
    return paths


def main(cfg):
    check_options(cfg, needs_corpus=False)
    paths = paths_in(cfg.files) or fetch(paths_in(cfg.subset))
    demonstrations, comparisons, prompts = read_pairs(paths, cfg.limit)
    build(cfg, demonstrations, comparisons, prompts)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
