"""Anthropic's dialogues and OpenAI's comparisons of summaries: small files in the releases' formats, and wrong ones."""

import gzip
import json
from collections import defaultdict

import pytest
from file_server import Server

from core.config import BadInput
from data import hh, oasst, summarize
from data.download import cache_folder
from data.folder import Corpus, read_comparisons, read_demonstrations, read_prompts, write_jsonl


def dialogue(*turns):
    return "".join(f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {turn}" for i, turn in enumerate(turns))


def pair(i, better="Four legs.", worse="None."):
    asked = (f"How many legs has cat {i}?", "Which cat?", f"The {i}th.")
    return {"chosen": dialogue(*asked, better), "rejected": dialogue(*asked, worse)}


def write_gz(path, records):
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    return str(path)


def homes(folder):
    """prompt -> the splits it is in, over all files of a data folder."""
    found = defaultdict(set)
    for split in ("train", "valid", "test"):
        for r in (*read_prompts(folder, split), *read_demonstrations(folder, split)):
            found[r["prompt"]].add(split)
    for r in read_comparisons(folder / "comparisons.jsonl"):
        found[r["prompt"]].add(r["split"])
    return found


def test_dialogues_become_a_folder(tmp_path, capsys):
    strange = [
        {"chosen": dialogue("a", "b"), "rejected": dialogue("c", "d")},
        pair(900, better=" "),
        pair(901, better="Same.", worse="Same. "),
        {"chosen": "no dialogue", "rejected": "no dialogue"},
        {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "b", "c", "d")},
    ]
    train = write_gz(tmp_path / "train.jsonl.gz", [pair(i) for i in range(80)] + strange)
    test = write_gz(tmp_path / "test.jsonl.gz", [pair(i) for i in range(100, 120)])
    hh.main(hh.Config(out=str(tmp_path / "out"), files=f"{train},{test}", vocab_size=300))
    printed = capsys.readouterr().out
    assert "read 105 pairs of dialogues, kept 100" in printed and "no --corpus" in printed
    for count, reason in ((2, "differ before"), (1, "is empty"), (1, "the same"), (1, "not a dialogue")):
        assert any(
            line.split()[0] == str(count) and reason in line for line in printed.splitlines() if "dropped:" in line
        )
    ranked = read_comparisons(tmp_path / "out" / "comparisons.jsonl")
    assert len(ranked) == 100 and all(
        r["completions"] == [" Four legs.", " None."] and r["ranks"] == [1, 2] for r in ranked
    )
    one = next(r for r in ranked if "cat 7?" in r["prompt"])
    assert one["prompt"] == dialogue("How many legs has cat 7?", "Which cat?", "The 7th.") + "\n\nAssistant:"
    assert {r["split"] for r in ranked if int(r["prompt"].split("cat ")[1].split("?")[0]) >= 100} == {"test"}
    assert all(len(splits) == 1 for splits in homes(tmp_path / "out").values())
    assert all(r["completion"] == " Four legs." for r in read_demonstrations(tmp_path / "out", "train"))
    assert len(Corpus(tmp_path / "out", "train").ids) > 100


def post(i, **more):
    return {"id": f"t3_{i}", "subreddit": "cats", "title": f"Cat {i}", "post": f"{i} cats sat on a mat."} | more


def comparison(i, split="train", **more):
    summaries = [{"text": f" {i} cats.", "policy": "sup1"}, {"text": " Cats sat.", "policy": "ref"}]
    return {"info": post(i), "summaries": summaries, "choice": i % 2, "worker": "w7", "split": split} | more


def test_comparisons_of_summaries_become_a_folder(tmp_path, capsys):
    records = [comparison(i) for i in range(40)] + [comparison(i, "valid1") for i in range(40, 50)]
    same = [{"text": "x", "policy": "a"}, {"text": " x ", "policy": "b"}]
    article = {"id": "a", "article": "News.", "title": "t", "subreddit": None, "post": None}
    records += [
        comparison(70, info=article),
        comparison(71, summaries=same),
        comparison(72, summaries=[same[0], {"text": ""}]),
    ]
    write_jsonl(tmp_path / "batch3.json", records)
    for split, numbers in (("train", range(40)), ("valid", range(40, 60)), ("test", range(60, 70))):
        write_jsonl(tmp_path / f"{split}.jsonl", [post(i, summary=f"Cats {i}.") for i in numbers])
    references = ",".join(str(tmp_path / f"{split}.jsonl") for split in ("train", "valid", "test"))
    out = tmp_path / "out"
    summarize.main(
        summarize.Config(out=str(out), comparisons=str(tmp_path / "batch3.json"), references=references, vocab_size=300)
    )
    printed = capsys.readouterr().out
    assert "read 53 comparisons, kept 50" in printed and "read 70 reference summaries" in printed
    ranked = read_comparisons(out / "comparisons.jsonl")
    assert [r["ranks"] for r in ranked[:2]] == [[1, 2], [2, 1]], "choice 0 prefers the first"
    assert ranked[1]["prompt"] == "SUBREDDIT: r/cats\n\nTITLE: Cat 1\n\nPOST: 1 cats sat on a mat.\n\nTL;DR:"
    assert ranked[1]["completions"] == [" 1 cats.", " Cats sat."] and ranked[1]["policies"] == ["sup1", "ref"]
    assert sum(r["split"] == "valid" for r in ranked) == 10
    assert all(len(splits) == 1 for splits in homes(out).values())
    assert {r["completion"] for r in read_demonstrations(out, "test")} == {f" Cats {i}." for i in range(60, 70)}


WRONG = {
    "no info": ({"summaries": []}, '"info" is missing'),
    "one summary": (comparison(1, summaries=[{"text": "x"}]), '"summaries" must list two'),
    "third choice": (comparison(1, choice=2), '"choice" is 2'),
    "a choice that is no number": (comparison(1, choice=True), '"choice" is True'),
    "split": (comparison(1, "dev"), "\"split\" is 'dev'"),
    "a summary without text": (comparison(1, summaries=[{}, {}]), 'no "text"'),
    "a split that is a list": (comparison(1, ["train"]), r"\"split\" is \['train'\]"),
    "a title that is no text": (comparison(1, info=post(1, title=3)), '"title" must be text'),
    "a post that is no text": (comparison(1, info=post(1, post=["x"])), '"post" must be text'),
    "a post without title": (comparison(1, info={"post": "x", "subreddit": "y"}), 'key "title" is missing'),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_comparisons_say_file_and_line(tmp_path, name):
    record, text = WRONG[name]
    write_jsonl(tmp_path / "batch.json", [comparison(0), record])
    with pytest.raises(BadInput, match=rf"batch\.json:2: .*{text}"):
        summarize.read_pairs([tmp_path / "batch.json"], 0)
    assert len(summarize.read_pairs([tmp_path / "batch.json"], 1)) == 1, "--limit reads no further"


@pytest.mark.parametrize("title", ["", "  ", None])
def test_a_post_without_a_title_is_a_post(tmp_path, title):
    write_jsonl(tmp_path / "batch.json", [comparison(0, info=post(0, title=title))])
    write_jsonl(tmp_path / "train.jsonl", [post(0, title=title, summary="Cats.")])
    prompt = "SUBREDDIT: r/cats\n\nTITLE: \n\nPOST: 0 cats sat on a mat.\n\nTL;DR:"
    assert summarize.read_pairs([tmp_path / "batch.json"], 0)[0]["prompt"] == prompt
    assert summarize.read_references([tmp_path / "train.jsonl"], 0)[0]["prompt"] == prompt


def test_empty_posts_and_summaries_are_dropped_and_counted(tmp_path, capsys):
    records = [comparison(0), comparison(1, info=post(1, post=" ")), comparison(2, info=post(2, post=None))]
    write_jsonl(tmp_path / "batch.json", records)
    assert len(summarize.read_pairs([tmp_path / "batch.json"], 0)) == 1
    assert "2 dropped: not about a post" in capsys.readouterr().out
    posts = [post(0, summary="Cats."), post(1, summary=" "), post(2, summary="Cats.", post="")]
    write_jsonl(tmp_path / "train.jsonl", posts)
    assert [r["completion"] for r in summarize.read_references([tmp_path / "train.jsonl"], 0)] == [" Cats."]
    assert "2 dropped: an empty post or summary" in capsys.readouterr().out
    write_jsonl(tmp_path / "train.jsonl", [post(0, summary="Cats."), post(1)])
    with pytest.raises(BadInput, match=r'train\.jsonl:2: key "summary" is missing'):
        summarize.read_references([tmp_path / "train.jsonl"], 0)


def test_wrong_dialogues_say_file_and_line(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [pair(0), {"chosen": "x"}])
    with pytest.raises(BadInput, match=r'train\.jsonl:2: key "rejected" is missing'):
        hh.read_pairs([tmp_path / "train.jsonl"], 0)
    assert len(hh.read_pairs([tmp_path / "train.jsonl"], 1)[2]) == 1
    write_jsonl(tmp_path / "none.jsonl", [{"chosen": "x", "rejected": "y"}])
    with pytest.raises(BadInput, match="none.jsonl: no pair to use"):
        hh.read_pairs([tmp_path / "none.jsonl"], 0)
    with pytest.raises(BadInput, match="--subset harmful: choose from"):
        hh.fetch(["harmful"])


def test_releases_are_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server(b"content") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(summarize, "RELEASE", server.url)
        paths = [*hh.fetch(["helpful-base"]), oasst.fetch(), *summarize.fetch("dataset/comparisons", ["batch3.json"])]
        assert [p.read_bytes() for p in paths] == [b"content"] * 4 and all(cache_folder() in p.parents for p in paths)
        assert server.asked == [
            "/datasets/Anthropic/hh-rlhf/resolve/main/helpful-base/train.jsonl.gz",
            "/datasets/Anthropic/hh-rlhf/resolve/main/helpful-base/test.jsonl.gz",
            "/datasets/OpenAssistant/oasst1/resolve/main/2023-04-12_oasst_ready.trees.jsonl.gz",
            "/dataset/comparisons/batch3.json",
        ]
        hh.fetch(["helpful-base"])
        assert len(server.asked) == 4
