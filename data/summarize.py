"""OpenAI's comparisons of summaries -> a data folder: posts, two summaries of each, and which one people preferred.

    python data/summarize.py --gpt2 --out out/tldr            # downloads the comparisons, and the posts with references
    python data/summarize.py --comparisons batch3.json,batch4.json --references train.jsonl --out out/tldr

The release of Stiennon et al. 2020 ("Learning to summarize from human feedback"): comparisons/batch3.json … batch20.json,
about 92,900 for training and 83,800 for validation (also of summaries by later models), one JSON object per line,

    {"info": {"id", "subreddit", "title", "post"}, "summaries": [{"text", "policy"}, {"text", "policy"}], "choice": 0 or 1,
     "worker", "split": "train", "valid1" or "valid2"}

and the TL;DR data set they filtered (train / valid / test.jsonl, 116,722 / 6,447 / 6,553 posts; CC BY 4.0), whose
authors' own summaries serve as demonstrations: {"id", "subreddit", "title", "post", "summary"}.

    prompts         "SUBREDDIT: r/…\\n\\nTITLE: …\\n\\nPOST: …\\n\\nTL;DR:", as in the paper
    demonstrations  the reference summary of a post
    comparisons     the two summaries, ranked; worker and policies are kept

Dropped and counted: comparisons of news articles (they have no post), summaries that are empty or the same. Comparisons
of a validation split go to validation, posts of valid.jsonl and test.jsonl to validation and test; a post that turns up in
two splits is dropped (data/files.py). Tokenizer, corpus, splits and checks: data/files.py.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import command_line, require
from data.download import cache, download
from data.files import build, check_options, named, read_records
from data.folder import text_of

RELEASE = "https://openaipublic.blob.core.windows.net/summarize-from-feedback"
BATCHES = [f"batch{n}.json" for n in range(3, 21)]
SPLIT_OF = {"train": "train", "valid1": "valid", "valid2": "valid"}


@dataclass
class Config:
    out: str = "out/tldr"  # the data folder to write
    comparisons: str = ""  # the release's batch*.json; several: a,b; default: download them
    references: str = ""  # the filtered TL;DR data, *.jsonl; several: a,b; default: download it
    limit: int = 0  # at most so many records of each file; 0 = all
    corpus: str = ""  # text to pretrain on, as data/files.py reads it; default: posts with their summaries
    vocab_size: int = 4096  # of a tokenizer trained on the corpus, unless one of the next two is given   GPT-2: 50257
    gpt2: bool = False  # GPT-2's tokenizer by name (downloaded once)
    gpt2_files: str = ""  # GPT-2's tokenizer from a folder with encoder.json and vocab.bpe
    bpe_megabytes: int = 20  # train the tokenizer on the first so many MB of the corpus
    valid: float = 0.05  # share of posts, of files that do not say their split
    test: float = 0.05  # share of posts, of files that do not say their split
    corpus_valid: float = 0.02  # share of documents, but at least one


def ask(record, where):
    """A post -> the prompt that ends with "TL;DR:"; the summary then starts with a space."""
    subreddit, title, post = (text_of(record, key, where).strip() for key in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def read_comparisons(paths, limit):
    """-> rankings with K = 2."""
    comparisons, dropped, read = [], Counter(), 0
    for path in paths:
        for number, (where, record) in enumerate(read_records(path, splits=False)):
            if limit and number >= limit:
                break
            read += 1
            info, summaries, choice = (record.get(key) for key in ("info", "summaries", "choice"))
            require(isinstance(info, dict), f'{where}: key "info" is missing or not an object')
            two = isinstance(summaries, list) and len(summaries) == 2 and all(isinstance(s, dict) for s in summaries)
            require(two, f'{where}: "summaries" must list two objects')
            require(type(choice) is int and choice in (0, 1), f'{where}: "choice" is {choice!r}, not 0 or 1')
            split = record.get("split", "train")
            require(split in SPLIT_OF, f'{where}: "split" is {split!r}; use one of {", ".join(SPLIT_OF)}')
            texts = [s.get("text") for s in summaries]
            require(all(isinstance(t, str) for t in texts), f'{where}: a summary has no "text"')
            texts = [" " + t.strip() for t in texts]
            if not info.get("post"):
                dropped["not about a post (news articles)"] += 1
            elif not all(map(str.strip, texts)):
                dropped["an empty summary"] += 1
            elif texts[0] == texts[1]:
                dropped["both summaries are the same"] += 1
            else:
                ranks = [1, 2] if choice == 0 else [2, 1]
                ranking = {"prompt": ask(info, where), "completions": texts, "ranks": ranks, "split": SPLIT_OF[split]}
                ranking |= {"labeler": str(record.get("worker", "unknown")), "use_case": "summarization"}
                comparisons.append(ranking | {"policies": [s.get("policy", "unknown") for s in summaries]})
    print(f"read {read:,} comparisons, kept {len(comparisons):,}")
    for reason, count in sorted(dropped.items()):
        print(f"  {count:6,} dropped: {reason}")
    require(comparisons, "no comparison to use; are these the release's files?")
    return comparisons


def read_references(paths, limit):
    """-> demonstrations: posts with the summaries that their authors wrote."""
    demonstrations = []
    for path in paths:
        split = next((s for s in ("train", "valid", "test") if Path(path).name.startswith(s)), None)
        for number, (where, record) in enumerate(read_records(path)):
            if limit and number >= limit:
                break
            shown = {"prompt": ask(record, where), "completion": " " + text_of(record, "summary", where).strip()}
            shown |= {"labeler": "author", "use_case": "summarization"} | ({"split": split} if split else {})
            demonstrations.append(shown)
    print(f"read {len(demonstrations):,} reference summaries")
    return demonstrations


def fetch(folder, names):
    return [download(f"{RELEASE}/{folder}/{name}", cache() / "tldr" / name, "", name) for name in names]


def main(cfg):
    require(cfg.limit >= 0, f"--limit {cfg.limit}: 0 for all, or a positive number")
    check_options(cfg, needs_corpus=False)
    splits = [f"{split}.jsonl" for split in ("train", "valid", "test")]
    comparisons = named(cfg.comparisons) or fetch("dataset/comparisons", BATCHES)
    references = named(cfg.references) or fetch("datasets/tldr_3_filtered", splits)
    build(cfg, read_references(references, cfg.limit), read_comparisons(comparisons, cfg.limit), [])


if __name__ == "__main__":
    command_line(Config, main, __doc__)
