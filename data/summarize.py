"""OpenAI's comparisons of summaries -> a data folder: posts, two summaries of each, and which one people preferred.

    python data/summarize.py --gpt2 --out out/tldr            # downloads the comparisons, and the posts with references
    python data/summarize.py --comparisons batch3.json,batch4.json --references train.jsonl --out out/tldr

The release of Stiennon et al. 2020 ("Learning to summarize from human feedback"): comparisons/batch3.json to
batch20.json, about 92,900 for training and 83,800 for validation (also of summaries by later models), each a line

    {"info": {"id", "subreddit", "title", "post"}, "summaries": [{"text", "policy"}, {"text", "policy"}],
     "choice": 0 or 1, "worker", "split": "train", "valid1" or "valid2"}

and the TL;DR data set they filtered (train / valid / test.jsonl, 116,722 / 6,447 / 6,553 posts; CC BY 4.0), whose
authors' own summaries serve as demonstrations: {"id", "subreddit", "title", "post", "summary"}.

    prompts         "SUBREDDIT: r/…\\n\\nTITLE: …\\n\\nPOST: …\\n\\nTL;DR:", as in the paper
    demonstrations  the reference summary of a post
    comparisons     the two summaries, ranked; worker and policies are kept

Dropped and counted: comparisons of news articles (they have no post), posts and summaries that are empty, two summaries
that are the same. A title may be empty. Comparisons of a validation split go to validation, posts of valid.jsonl and
test.jsonl to validation and test; a post that turns up in two splits is dropped (data/files.py). Tokenizer, corpus,
splits and checks: data/files.py.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import Fraction, command_line, require
from data.download import cache_folder, download
from data.files import FolderOptions, build, check_options, paths_in, read_records
from data.folder import SPLITS

RELEASE = "https://openaipublic.blob.core.windows.net/summarize-from-feedback"
BATCHES = [f"batch{n}.json" for n in range(3, 21)]
SPLIT_OF = {"train": "train", "valid1": "valid", "valid2": "valid"}


@dataclass
class Config(FolderOptions):
    out: str = "out/tldr"  # the data folder to write
    comparisons: str = ""  # the release's batch*.json; several: a,b; default: download them
    references: str = ""  # the filtered TL;DR data, *.jsonl; several: a,b; default: download it
    limit: int = 0  # at most so many records of each file; 0 = all
    corpus: str = ""  # text to pretrain on, as data/files.py reads it; default: posts with their summaries
    valid: Fraction = 0.05  # share of posts for validation, of files that do not say their split
    test: Fraction = 0.05  # the same for the test split


def text_or_empty(record, key, where):
    """record[key] without blanks around it; "" where it is empty or null."""
    require(key in record, f'{where}: key "{key}" is missing; found {sorted(record)}')
    value = "" if record[key] is None else record[key]
    require(isinstance(value, str), f'{where}: "{key}" must be text')
    return value.strip()


def prompt_of(record, where):
    """A post -> the prompt that ends with "TL;DR:"; the summary then starts with a space."""
    subreddit, title, post = (text_or_empty(record, key, where) for key in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def read_pairs(paths, limit):
    """-> rankings with K = 2, as a list of records. limit: comparisons to read of each file, 0 = all."""
    rankings, dropped, read = [], Counter(), 0
    for path in paths:
        for where, record in read_records(path, limit):
            read += 1
            info, summaries, choice = (record.get(key) for key in ("info", "summaries", "choice"))
            require(isinstance(info, dict), f'{where}: key "info" is missing or not an object')
            two = isinstance(summaries, list) and len(summaries) == 2 and all(isinstance(s, dict) for s in summaries)
            require(two, f'{where}: "summaries" must list two objects')
            require(type(choice) is int and choice in (0, 1), f'{where}: "choice" is {choice!r}, not 0 or 1')
            split = record.get("split", "train")
            known = isinstance(split, str) and split in SPLIT_OF
            require(known, f'{where}: "split" is {split!r}; use one of {", ".join(SPLIT_OF)}')
            texts = [summary.get("text") for summary in summaries]
            require(all(isinstance(text, str) for text in texts), f'{where}: a summary has no "text"')
            first, second = (text.strip() for text in texts)
            if "post" not in info or text_or_empty(info, "post", where) == "":
                dropped["not about a post (news articles)"] += 1
            elif first == "" or second == "":
                dropped["an empty summary"] += 1
            elif first == second:
                dropped["both summaries are the same"] += 1
            else:
                ranking = {"prompt": prompt_of(info, where), "completions": [" " + first, " " + second]}
                ranking |= {"ranks": [1, 2] if choice == 0 else [2, 1], "split": SPLIT_OF[split]}
                ranking |= {"labeler": str(record.get("worker", "unknown")), "use_case": "summarization"}
                rankings.append(ranking | {"policies": [summary.get("policy", "unknown") for summary in summaries]})
    print(f"read {read:,} comparisons, kept {len(rankings):,}")
    for reason, count in sorted(dropped.items()):
        print(f"  {count:6,} dropped: {reason}")
    require(rankings, "no comparison to use; are these the release's files?")
    return rankings


def read_references(paths, limit):
    """-> demonstrations: posts with the summaries that their authors wrote. limit: as in `read_pairs`."""
    demonstrations, empty = [], 0
    for path in paths:
        split = split_of_file(path)
        for where, record in read_records(path, limit):
            prompt, summary = prompt_of(record, where), text_or_empty(record, "summary", where)
            if summary == "" or text_or_empty(record, "post", where) == "":
                empty += 1
                continue
            demonstration = {"prompt": prompt, "completion": " " + summary}
            demonstration |= {"labeler": "author", "use_case": "summarization"}
            if split:
                demonstration["split"] = split
            demonstrations.append(demonstration)
    print(f"read {len(demonstrations):,} reference summaries")
    if empty:
        print(f"  {empty:6,} dropped: an empty post or summary")
    return demonstrations


def split_of_file(path):
    """The split that a file's name begins with, or None."""
    for split in SPLITS:
        if Path(path).name.startswith(split):
            return split
    return None


def fetch(folder, names):
    """Files of the release, each downloaded once -> their paths."""
    return [download(f"{RELEASE}/{folder}/{name}", cache_folder() / "tldr" / name, name) for name in names]


def main(cfg):
    check_options(cfg, needs_corpus=False)
    comparisons = paths_in(cfg.comparisons) or fetch("dataset/comparisons", BATCHES)
    references = paths_in(cfg.references) or fetch("datasets/tldr_3_filtered", [f"{split}.jsonl" for split in SPLITS])
    build(cfg, read_references(references, cfg.limit), read_pairs(comparisons, cfg.limit), [])


if __name__ == "__main__":
    command_line(Config, main, __doc__)
