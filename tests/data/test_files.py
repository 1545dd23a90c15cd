"""data/files.py and data/oasst.py: what goes in comes out, wrong input leaves no trace, splits do not leak."""

import gzip
import json
import random
import re
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

import pytest
from runs import command

from core.config import BadInput, comments_of
from data import files, hh, oasst, summarize
from data.bpe import END_OF_TEXT
from data.construct import key_of
from data.folder import (
    Corpus,
    load_tokenizer,
    read_comparisons,
    read_demonstrations,
    read_prompts,
    write_jsonl,
)

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
TREES = REAL / "oasst_en_100_trees.jsonl.gz"

PAGES = [f"Page {i}\n\nThe {i}th cat sat on a mat, and so did the {i + 1}th dog." for i in range(60)]
ASKED = [f"{i} cats: how many legs have they?\n" for i in range(60)]
DEMONSTRATIONS = [{"prompt": p, "completion": f"{4 * i} legs."} for i, p in enumerate(ASKED)]
RANKINGS = [
    {"prompt": p, "completions": ["Four.", f"{4 * i} legs.", "None."], "ranks": [2, 1, 2]} for i, p in enumerate(ASKED)
]
PAIRS = [{"prompt": p, "chosen": f"{4 * i} legs.", "rejected": "Four."} for i, p in enumerate(ASKED)]


@pytest.fixture
def cfg(tmp_path):
    """A configuration that works; its data folder is there already."""
    (tmp_path / "corpus.txt").write_text(f"\n{END_OF_TEXT}\n".join(PAGES), encoding="utf-8")
    write_jsonl(tmp_path / "shown.jsonl", DEMONSTRATIONS)
    write_jsonl(tmp_path / "ranked.jsonl", RANKINGS)
    config = files.Config(
        out=str(tmp_path / "out"),
        corpus=str(tmp_path / "corpus.txt"),
        demonstrations=str(tmp_path / "shown.jsonl"),
        comparisons=str(tmp_path / "ranked.jsonl"),
        vocab_size=300,
    )
    files.main(config)
    return config


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def refused(main, config, match, folder):
    """main(config) raises BadInput, and nothing under the folder is touched."""
    before = snapshot(folder)
    with pytest.raises(BadInput, match=match) as problem:
        main(config)
    assert "\n" not in str(problem.value)
    assert snapshot(folder) == before


def records_of(folder, name):
    return [json.loads(line) for line in (Path(folder) / name).read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------- what goes in


def corpus_documents(folder, split):
    """The documents of a corpus file, cut at end-of-text by a plain loop."""
    _, tokenizer = load_tokenizer(folder)
    texts, ids = [], []
    for i in Corpus(folder, split).ids.tolist():
        if i == tokenizer.eot_token:
            texts.append(tokenizer.decode(ids))
            ids = []
        else:
            ids.append(i)
    assert ids == []  # the last one ends with it, too
    return texts


def test_what_goes_in_comes_out(cfg):
    train, valid = corpus_documents(cfg.out, "train"), corpus_documents(cfg.out, "valid")
    assert sorted(train + valid) == sorted(PAGES) and train and valid
    shown = {s: read_demonstrations(cfg.out, s) for s in ("train", "valid", "test")}
    assert {(r["prompt"], r["completion"]) for rs in shown.values() for r in rs} == {
        (r["prompt"], r["completion"]) for r in DEMONSTRATIONS
    }
    ranked = read_comparisons(Path(cfg.out) / "comparisons.jsonl")
    strip = [{k: r[k] for k in ("prompt", "completions", "ranks")} for r in ranked]
    assert strip == RANKINGS
    asked = {r["prompt"] for s in shown for r in read_prompts(cfg.out, s)}
    assert asked == set(ASKED)  # taken from the other two, each once
    assert "raw prompts" in (Path(cfg.out) / "construction.txt").read_text()


def test_every_spelling_gives_the_same_folder(cfg, tmp_path):
    """gzipped, one array, several files, a byte-order mark: the same records, so the same bytes."""
    before = snapshot(cfg.out)
    with gzip.open(tmp_path / "shown.json.gz", "wt", encoding="utf-8") as file:
        json.dump(DEMONSTRATIONS, file, indent=1)
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"text": page}) + "\n" for page in PAGES))
    (tmp_path / "ranked1.json").write_text("\ufeff" + json.dumps(RANKINGS[:20]), encoding="utf-8")
    write_jsonl(tmp_path / "ranked2.jsonl", RANKINGS[20:])
    other = replace(
        cfg,
        demonstrations=str(tmp_path / "shown.json.gz"),
        corpus=str(tmp_path / "corpus.jsonl.gz"),
        comparisons=f"{tmp_path / 'ranked1.json'}, {tmp_path / 'ranked2.jsonl'}",
    )
    files.main(other)
    assert snapshot(cfg.out) == before


def test_pairs_are_rankings_of_two(cfg, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    files.main(replace(cfg, comparisons=str(tmp_path / "pairs.jsonl")))
    for record, pair in zip(read_comparisons(Path(cfg.out) / "comparisons.jsonl"), PAIRS):
        assert (record["completions"], record["ranks"]) == ([pair["chosen"], pair["rejected"]], [1, 2])


@pytest.mark.parametrize("given, produced", [("input", "output"), ("context", "response")])
def test_instructions_become_prompts(cfg, tmp_path, given, produced):
    rows = [{"instruction": f" Add {i}\n", given: f"{i} and 1" * (i % 2), produced: f"{i + 1}\n"} for i in range(60)]
    (tmp_path / "dolly.json").write_text(json.dumps(rows))
    files.main(replace(cfg, demonstrations=str(tmp_path / "dolly.json"), comparisons=""))
    records = records_of(cfg.out, "demonstrations.jsonl")
    assert records[2]["prompt"] + records[2]["completion"] == "Add 2\n\nAnswer: 3"
    assert records[3]["prompt"] + records[3]["completion"] == "Add 3\n\n3 and 1\n\nAnswer: 4"
    assert not {"instruction", given, produced} & set(records[0])


def test_blank_lines_part_documents_where_no_mark_does(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\n  \nthree\n\nfour", encoding="utf-8")
    (tmp_path / "b.txt").write_text(f"one\n\ntwo\n{END_OF_TEXT}\n{END_OF_TEXT}\nthree\n", encoding="utf-8")
    texts = list(files.documents(f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"))
    assert [text for _, text in texts] == ["one\ntwo", "three", "four", "one\n\ntwo", "three"]
    assert [where.rsplit(":")[-1] for where, _ in texts] == ["1", "6", "8", "1", "6"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntw\xef\xbb\xbfo\n")  # elsewhere it is a character
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(b'\xef\xbb\xbf{"text": "three"}\n')
    paths = f"{tmp_path / 'a.txt'},{tmp_path / 'b.jsonl.gz'}"
    assert [text for _, text in files.documents(paths)] == ["one", "tw\ufeffo", "three"]


@pytest.mark.parametrize("spaces", ["", " ", "\n", " \n\n "])
def test_an_array_says_the_line_of_each_record(tmp_path, spaces):
    records = [{"prompt": f"{i}", "note": ["a", {"b": "x\ny"}]} for i in range(4)]
    for indent in (None, 1):
        text = "\n" + spaces + "[" + spaces + f"{spaces},{spaces}".join(json.dumps(r, indent=indent) for r in records)
        (tmp_path / "x.json").write_text(text + spaces + "]" + spaces)
        found = list(files.read_records(tmp_path / "x.json"))
        assert [record for _, record in found] == records
        lines = text.split("\n")
        for i, (where, _) in enumerate(found):  # the record's first line: the one its opening bracket is on
            start = [m.start() for m in re.finditer(r'\{\s*"prompt"', text)][i]
            line = int(where.removeprefix(f"{tmp_path / 'x.json'}:"))
            assert sum(len(row) + 1 for row in lines[: line - 1]) <= start < sum(len(row) + 1 for row in lines[:line])
    (tmp_path / "x.json").write_text("[]\n")
    assert list(files.read_records(tmp_path / "x.json")) == []


@pytest.mark.parametrize("array", [True, False])
def test_a_limit_reads_no_further(tmp_path, array):
    good = [json.dumps({"prompt": str(i)}) for i in range(3)]
    (tmp_path / "x").write_text("[" + ",\n".join([*good, "{"]) if array else "\n".join([*good, "{"]))
    assert [record["prompt"] for _, record in files.read_records(tmp_path / "x", limit=3)] == ["0", "1", "2"]
    for limit in (0, 4):
        with pytest.raises(BadInput, match="x:4: not JSON"):
            list(files.read_records(tmp_path / "x", limit))


def test_null_is_as_good_as_left_out(cfg, tmp_path):
    shown = [r | {"labeler": None, "use_case": None, "user": None} for r in DEMONSTRATIONS]
    write_jsonl(tmp_path / "shown.jsonl", shown)
    files.main(replace(cfg, comparisons=""))
    assert {r["use_case"] for r in records_of(cfg.out, "prompts.jsonl")} == {"unknown"}
    assert {r["labeler"] for r in records_of(cfg.out, "demonstrations.jsonl")} == {"unknown"}


def test_repeated_and_extra(cfg, tmp_path, capsys):
    """An exact repetition is dropped and counted; other keys stay."""
    write_jsonl(tmp_path / "more.jsonl", [DEMONSTRATIONS[3], DEMONSTRATIONS[4] | {"completion": "Many.", "note": "é"}])
    files.main(replace(cfg, demonstrations=f"{cfg.demonstrations},{tmp_path / 'more.jsonl'}"))
    assert "read 62 demonstrations; dropped 1 that repeat" in capsys.readouterr().out
    assert records_of(cfg.out, "demonstrations.jsonl")[-1]["note"] == "é"


def test_old_comparisons_do_not_stay(cfg, capsys):
    files.main(replace(cfg, comparisons=""))
    assert not (Path(cfg.out) / "comparisons.jsonl").exists()
    assert "note: no comparisons" in capsys.readouterr().out


def test_construction_steps_are_applied(cfg, tmp_path, capsys):
    asked = [{"prompt": f"{i} owls ask {user}", "user": user} for user in "abcdefghijklmnop" for i in range(20)]
    asked += [{"prompt": f"{i} heavy question", "user": "heavy", "split": "train"} for i in range(250)]
    asked += [{"prompt": "0 OWLS ask a!", "user": "a"}, {"prompt": "Mail x@y.org", "user": "heavy2", "split": "train"}]
    write_jsonl(tmp_path / "asked.jsonl", asked)
    files.main(replace(cfg, prompts=str(tmp_path / "asked.jsonl")))
    kept = records_of(cfg.out, "prompts.jsonl")
    assert len(kept) == 16 * 20 + 200
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-2:] for row in rows if row[:1] == ["raw"]] == [["572", "0"]]
    assert [row[-2:] for row in rows if row[:1] == ["common"]] == [["571", "1"]]
    assert [row[-2:] for row in rows if row[:1] == ["200"]] == [["521", "50"]]
    assert [row[-2:] for row in rows if row[:1] == ["PII"]] == [["520", "1"]]


def test_the_tokenizer_reads_the_beginning_only():
    texts = ["a" * 400_000, "b" * 700_000, "c"]
    assert list(files.beginning(iter(texts), 1)) == texts[:2]
    assert list(files.beginning(iter(texts), 2)) == texts


@pytest.mark.parametrize("module", [files, oasst])
def test_every_option_is_read(cfg, tmp_path, module, monkeypatch):
    monkeypatch.setattr(files, "check", lambda cfg: None)  # which looks at every option, used or not
    read = set()

    class Spy(module.Config):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    spy = Spy(out=cfg.out, corpus=cfg.corpus, vocab_size=300)
    if module is oasst:
        write_jsonl(tmp_path / "trees.jsonl", [tree(i) for i in range(60)])
        spy.trees = str(tmp_path / "trees.jsonl")
    else:
        spy.demonstrations = cfg.demonstrations
    module.main(spy)
    assert {f.name for f in fields(module.Config)} <= read


@pytest.mark.parametrize("module", [files, hh, oasst, summarize])
def test_every_option_is_explained(module):
    comments = comments_of(module.Config)
    assert all(comments.get(field.name) for field in fields(module.Config))


# ---------------------------------------------------------------------------------------------------- splits


def homes(folder):
    """name of a prompt or user -> the splits it is in, over all files."""
    found = defaultdict(set)
    for name in ("prompts.jsonl", "demonstrations.jsonl", "comparisons.jsonl"):
        for record in records_of(folder, name):
            found["prompt", key_of(record["prompt"])].add(record["split"])
            if record.get("user"):
                found["user", record["user"]].add(record["split"])
    return found


def test_no_prompt_and_no_user_is_in_two_splits(cfg, tmp_path, capsys):
    rng = random.Random(0)
    asked, shown, ranked = [], [], []
    for i in range(900):
        prompt = f"{rng.randrange(500)} birds?"
        asked.append({"prompt": prompt} | ({"user": f"u{rng.randrange(60)}"} if rng.random() < 0.7 else {}))
        prompt = f"{rng.randrange(500)} BIRDS" + rng.choice(["", "?", " "])
        shown.append({"prompt": prompt, "completion": f"yes {i}"})
        if rng.random() < 0.1:
            shown[-1]["split"] = rng.choice(["train", "valid", "test"])
        ranked.append({"prompt": f"{rng.randrange(500)} birds?", "chosen": "yes", "rejected": "no"})
        if rng.random() < 0.3:
            ranked[-1]["user"] = f"u{rng.randrange(60)}"
    for name, records in (("asked", asked), ("shown", shown), ("ranked", ranked)):
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    config = replace(cfg, prompts=str(tmp_path / "asked.jsonl"))  # "shown" and "ranked" replace the fixture's
    files.main(config)
    mixed = {name: splits for name, splits in homes(cfg.out).items() if len(splits) > 1}
    assert not mixed
    assert "prompt or user is in another split already" in capsys.readouterr().out


def test_a_stated_split_is_kept_and_wins(cfg, tmp_path):
    """The comparisons, read last, say train or test, so the same prompts are there in every file."""
    stated = {r["prompt"]: "train" if i < 30 else "test" for i, r in enumerate(RANKINGS[:40])}
    write_jsonl(tmp_path / "ranked.jsonl", [r | {"split": stated[r["prompt"]]} for r in RANKINGS[:40]] + RANKINGS[40:])
    files.main(cfg)
    for name in ("prompts.jsonl", "demonstrations.jsonl", "comparisons.jsonl"):
        assert {r["prompt"]: r["split"] for r in records_of(cfg.out, name) if r["prompt"] in stated} == stated


def test_a_split_depends_on_the_prompt_alone():
    """Neither the other records nor their order move a prompt, and about the asked share of them is held out."""
    rng = random.Random(1)
    records = [{"prompt": f"question {i}"} for i in range(3000)]
    first = files.assign_splits({"a": [dict(r) for r in records]}, 0.1, 0.2)["a"]
    where = {r["prompt"]: r["split"] for r in first}
    rng.shuffle(records)
    again = files.assign_splits({"a": [dict(r) for r in records[:500]]}, 0.1, 0.2)["a"]
    assert all(where[r["prompt"]] == r["split"] for r in again)
    for split, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        n = sum(r["split"] == split for r in first)
        assert abs(n - 3000 * share) < 4 * (3000 * share * (1 - share)) ** 0.5


def test_equal_documents_stay_together(cfg, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(["twin"] * 5 + [f"single {i}" for i in range(5)]))
    for share in (0.0, 0.3, 0.6):
        files.main(replace(cfg, corpus_valid=share))
        parts = [corpus_documents(cfg.out, split) for split in ("train", "valid")]
        assert parts[0] and parts[1] and not set(parts[0]) & set(parts[1])
        assert sum(map(len, parts)) == 10


# ---------------------------------------------------------------------------------------------------- wrong input


def line(**record):
    return (json.dumps(record) + "\n").encode()


GOOD = line(prompt="a?\n", completion="b")
PAIR = line(prompt="a?\n", chosen="b", rejected="c")
RANKED = {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GZIPPED = gzip.compress(b"".join(line(prompt=f"{i}?\n", completion=str(i * i)) for i in range(500)))
BAD = {
    # name: (option, file name, bytes, what the message says)
    "not JSON": ("demonstrations", "x.jsonl", GOOD + b'{"prompt": \n', r"x\.jsonl:2: not JSON"),
    "array cut short": ("demonstrations", "x.json", b"[\n" + GOOD.strip() + b",\n{", r"x\.json:3: not JSON"),
    "array without end": ("demonstrations", "x.json", b"[\n" + GOOD, r"x\.json:3: not JSON"),
    "array over many lines": (
        "demonstrations",
        "x.json",
        json.dumps([json.loads(GOOD), {"prompt": "c"}], indent=1).encode(),
        r'x\.json:6: key "completion"',
    ),
    "array without commas": ("demonstrations", "x.json", b"[\n" + GOOD + GOOD + b"]", r"x\.json:3: not JSON .*comma"),
    "comma at the end": ("demonstrations", "x.json", b"[\n" + GOOD + b",\n]", r"x\.json:4: not JSON .a comma before"),
    "two commas": ("demonstrations", "x.json", b"[\n" + GOOD + b",\n," + GOOD + b"]", r"x\.json:4: not JSON"),
    "two arrays": ("demonstrations", "x.json", b"[" + GOOD + b"]\n[]", r"x\.json:3: not JSON .something follows"),
    "half an array": ("demonstrations", "x.json", b"[" + GOOD + b"}", r"x\.json:2: not JSON .a comma or"),
    "deep": ("demonstrations", "x.jsonl", GOOD + DEEP, r"x\.jsonl:2: not JSON .nested too deeply"),
    "deep array": ("demonstrations", "x.json", b"[\n" + DEEP + b"]", r"x\.json:2: not JSON .nested too deeply"),
    "deep corpus": ("corpus", "x.jsonl", line(text="a") + DEEP, r"x\.jsonl:2: not JSON .nested too deeply"),
    "long number": ("demonstrations", "x.jsonl", GOOD + b"9" * 5000, r"x\.jsonl:2: not JSON .*digits"),
    "long number in array": ("demonstrations", "x.json", b"[\n" + b"9" * 5000, r"x\.json:2: not JSON .*digits"),
    "array of numbers": ("demonstrations", "x.json", b"[\n1]", r"x\.json:2: expected an object"),
    "number": ("demonstrations", "x.jsonl", GOOD + b"3\n", r"x\.jsonl:2: expected an object"),
    "empty completion": ("demonstrations", "x.jsonl", GOOD + line(prompt="a", completion=" "), r'x\.jsonl:2: "compl'),
    "empty prompt": ("demonstrations", "x.jsonl", line(prompt="", completion="b"), r'x\.jsonl:1: "prompt" must'),
    "no completion": ("demonstrations", "x.jsonl", GOOD + line(prompt="a"), r'x\.jsonl:2: key "completion" is miss'),
    "no output": ("demonstrations", "x.jsonl", line(instruction="a", input=""), r'x\.jsonl:1: key "completion" is'),
    "empty output": ("demonstrations", "x.jsonl", line(instruction="a", output=""), r'x\.jsonl:1: "output" must be'),
    "input a list": ("demonstrations", "x.jsonl", line(instruction="a", input=["b"], output="c"), r':1: "input" must'),
    "messages": ("demonstrations", "x.jsonl", line(messages=[]), r'x\.jsonl:1: key "prompt" is missing'),
    "unknown split": ("demonstrations", "x.jsonl", GOOD + line(prompt="a", completion="b", split="dev"), ":2: .*split"),
    "half a character": ("demonstrations", "x.jsonl", GOOD + b'{"prompt": "\\ud83d", "completion": "b"}', ":2: half a"),
    "half a character in text": ("corpus", "x.jsonl", line(text="a") + b'{"text": "\\ud83d"}', ":2: half a"),
    "Latin-1": ("demonstrations", "x.jsonl", GOOD + b'{"prompt": "\xe9", "completion": "b"}', r"x\.jsonl:2: .*UTF-8"),
    "Latin-1 text": ("corpus", "x.txt", b"one\n\ntwo\n\nth\xe9\n", r"x\.txt:5: .*UTF-8"),
    "gz cut short": ("demonstrations", "x.jsonl.gz", GZIPPED[:-200], r"x\.jsonl\.gz:\d+: "),
    "gz that is none": ("corpus", "x.txt.gz", b"one\n\ntwo", r"x\.txt\.gz:1: "),
    "gz damaged": ("demonstrations", "x.jsonl.gz", GZIPPED[:300] + b"\0\0\0\0" + GZIPPED[304:], r"x\.jsonl\.gz:\d+: "),
    "text missing": ("corpus", "x.jsonl", line(text="a") + line(txt="b"), r'x\.jsonl:2: key "text"'),
    "one document": ("corpus", "x.txt", b"all\nin\none", "1 document.* cannot be split"),
    "no document": ("corpus", "x.txt", b"\n\n", "no document in it"),
    "too few ranks": (
        "comparisons",
        "x.jsonl",
        line(prompt="a", completions=["b", "c"], ranks=[1]),
        ':1: "ranks" must',
    ),
    "rank a text": ("comparisons", "x.jsonl", line(prompt="a", completions=["b", "c"], ranks=[1, "2"]), ":1: rank '2'"),
    "rank NaN": (
        "comparisons",
        "x.jsonl",
        PAIR + line(prompt="a", completions=["b", "c"], ranks=[1, float("nan")]),
        ":2: rank nan",
    ),
    "rank too large": ("comparisons", "x.jsonl", PAIR + line(**RANKED | {"ranks": [1, 10**400]}), ":2: rank 1000"),
    "rank infinite": ("comparisons", "x.jsonl", PAIR + line(**RANKED | {"ranks": [1, float("inf")]}), ":2: rank inf"),
    "rank true": ("comparisons", "x.jsonl", PAIR + line(**RANKED | {"ranks": [1, True]}), ":2: rank True"),
    "rating 100": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ratings=[100, -50]), ":2: .ratings. must list 2 wh"),
    "rating 0": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ratings=[0, 7]), ":2: .ratings. must"),
    "rating 8": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ratings=[1, 8]), ":2: .ratings. must"),
    "rating 3.5": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ratings=[1, 3.5]), ":2: .ratings. must"),
    "rating true": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ratings=[1, True]), ":2: .ratings. must"),
    "too few ratings": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ratings=[1]), ":2: .ratings. must list 2"),
    "ended a number": ("comparisons", "x.jsonl", PAIR + line(**RANKED, ended=[1, 0]), ":2: .ended. must list 2"),
    "split a list": ("comparisons", "x.jsonl", PAIR + line(**RANKED, split=["train"]), r":2: .split. is \['train'\]"),
    "group a list": ("comparisons", "x.jsonl", PAIR + line(**RANKED, group=["x"]), ':2: "group" must be text'),
    "labeler a number": ("comparisons", "x.jsonl", PAIR + line(**RANKED, labeler=3), ':2: "labeler" must be text'),
    "use case a list": ("prompts", "x.jsonl", line(prompt="a", use_case=["x"]), ':1: "use_case" must be text'),
    "category a list": (
        "demonstrations",
        "x.jsonl",
        GOOD + line(instruction="a", response="b", category=["x"]),
        ':2: "use_case" must be text',
    ),
    "source a list": (
        "demonstrations",
        "x.jsonl",
        GOOD + line(prompt="a", completion="b", source=["x"]),
        ':2: "source" must be text',
    ),
    "empty user": ("prompts", "x.jsonl", line(prompt="a", user=" "), ':1: "user" must be text that is not empty'),
    "demonstration split a list": (
        "demonstrations",
        "x.jsonl",
        GOOD + line(prompt="a", completion="b", split={"a": 1}),
        ":2: .split. is {'a': 1}",
    ),
    "one completion": ("comparisons", "x.jsonl", line(prompt="a", completions=["b"], ranks=[1]), ':1: "completions" m'),
    "empty answer": ("comparisons", "x.jsonl", line(prompt="a", completions=["b", ""], ranks=[1, 2]), ":1: .*empty"),
    "chosen is rejected": ("comparisons", "x.jsonl", PAIR + line(prompt="a", chosen="b", rejected="b"), ":2: .*same"),
    "no rejected": ("comparisons", "x.jsonl", PAIR + line(prompt="a", chosen="b"), r':2: key "rejected" is missing'),
    "no comparison": ("comparisons", "x.jsonl", b"\n", "no comparisons in it"),
    "no prompt": ("prompts", "x.jsonl", line(user="a"), r'x\.jsonl:1: key "prompt" is missing'),
    "user a number": ("prompts", "x.jsonl", line(prompt="a", user=1), r'x\.jsonl:1: "user" must be text'),
    "nothing asked": ("prompts", "x.jsonl", b"\n", "no prompt in it"),
    "one split": ("prompts", "x.jsonl", line(prompt="a", split="train"), r'no prompts for "valid" among 1'),
    "few shown": (
        "demonstrations",
        "x.jsonl",
        line(prompt="a", completion="b", split="train"),
        "no demonstrations for",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_files_are_refused_and_leave_no_trace(cfg, tmp_path, name):
    option, file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    refused(files.main, replace(cfg, **{option: str(tmp_path / file)}), message, tmp_path)


@pytest.mark.parametrize("option", ["corpus", "demonstrations", "comparisons", "prompts"])
def test_missing_files_are_refused(cfg, tmp_path, option):
    refused(files.main, replace(cfg, **{option: str(tmp_path / "none.jsonl")}), "none.jsonl: no such file", tmp_path)
    refused(files.main, replace(cfg, **{option: str(tmp_path)}), "is a folder", tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corpus": ""}, "--corpus"),
        ({"demonstrations": ""}, "--demonstrations"),
        ({"vocab_size": 257}, "--vocab_size 257"),
        ({"bpe_megabytes": 0}, "--bpe_megabytes 0"),
        ({"valid": 0.0}, "--valid 0.0"),
        ({"valid": 0.5, "test": 0.5}, "--valid 0.5 --test 0.5"),
        ({"corpus_valid": 1.0}, "cannot be split into training and validation; .*--corpus_valid"),
        ({"corpus_valid": 1.5}, "--corpus_valid 1.5"),
        ({"test": -0.1}, "--test -0.1"),
        ({"vocab_size": 0}, "--vocab_size 0"),
        ({"gpt2": True, "gpt2_files": "x"}, "choose one"),
        ({"gpt2_files": "nowhere"}, "nowhere: holds neither"),
    ],
)
def test_wrong_options_are_refused(cfg, tmp_path, options, message):
    refused(files.main, replace(cfg, **options), message, tmp_path)


def test_the_village_is_not_mixed_with_other_files(cfg, tmp_path):
    (tmp_path / "out" / "village.json").write_text("{}")
    refused(files.main, cfg, "holds the village", tmp_path)


def test_a_folder_that_was_not_finished_says_so(cfg, monkeypatch):
    """A full disk half way: no file is half-written, and the old tokenizer does not speak for the new corpus."""

    def full(path, records):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_jsonl", full)
    with pytest.raises(OSError):
        files.main(replace(cfg, vocab_size=280))
    with pytest.raises(BadInput, match="tokenizer.json: not found"):
        load_tokenizer(cfg.out)
    assert not list(Path(cfg.out).glob(".*"))


@pytest.mark.parametrize("script, option", [("oasst.py", "--trees")])
def test_the_command_line_reports_in_one_line(cfg, tmp_path, script, option, monkeypatch, capsys):
    (tmp_path / "bad.jsonl").write_bytes(b"{\n")
    before = snapshot(tmp_path)
    flags = ["--out", cfg.out, "--corpus", cfg.corpus, option, tmp_path / "bad.jsonl"]
    code, _, errors = command(f"data/{script}", flags, monkeypatch, capsys)
    assert code == 2 and snapshot(tmp_path) == before
    assert len(errors.splitlines()) == 1 and f"{tmp_path / 'bad.jsonl'}:1: not JSON" in errors


def test_the_command_line_works(cfg, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "new")
    flags = ["--out", out, "--corpus", cfg.corpus, "--demonstrations", cfg.demonstrations, "--vocab_size", "300"]
    code, printed, errors = command("data/files.py", flags, monkeypatch, capsys)
    assert code == 0, errors
    assert printed.splitlines()[-1].endswith(f"next: python pretrain.py --data {out}")


# ---------------------------------------------------------------------------------------------------- OpenAssistant


def message(role, text, *replies, **more):
    return {"message_id": text, "role": role, "text": text, "lang": "en", "review_result": True} | (
        {"deleted": False, "synthetic": False, "replies": list(replies)} | more
    )


def tree(i, prompt=None, **more):
    replies = [message("assistant", f"reply {j} to {i}", rank=j) for j in range(3)]
    root = prompt or message("prompter", f"{i} questions", *replies)
    return {"message_tree_id": f"tree {i}", "tree_state": "ready_for_export", "prompt": root} | more


TREE = tree(
    "T",
    message(
        "prompter",
        " Hi ",
        message("assistant", "third", rank=2),
        message("assistant", "gone", message("prompter", "below"), rank=0, deleted=True),
        message(
            "assistant",
            "first",
            message(
                "prompter",
                "Why?",
                message("assistant", "machine", rank=0, synthetic=True),
                message("assistant", "person", rank=1),
                message("assistant", "person", rank=2),
            ),
            message("prompter", "Alone?", message("assistant", "only")),
            message("prompter", "Silent?"),
            rank=1,
        ),
        message("assistant", "late"),
        message("assistant", "bad", rank=3, review_result=False),
        message("assistant", "new", rank=4, review_result=None),
        message("assistant", " ", rank=5),
    ),
)


def trees_config(cfg, tmp_path, trees):
    write_jsonl(tmp_path / "trees.jsonl", trees)
    return oasst.Config(out=cfg.out, trees=str(tmp_path / "trees.jsonl"), corpus=cfg.corpus, vocab_size=300)


def test_a_tree_is_read_as_a_person_would(tmp_path, capsys):
    others = [tree(1, tree_state="growing"), tree(2, message("prompter", "Hallo", lang="de")), tree(3)]
    others[2]["prompt"]["deleted"] = True
    write_jsonl(tmp_path / "t.jsonl", [TREE, *others])
    prompts, shown, ranked = oasst.read_trees(str(tmp_path / "t.jsonl"), "en")
    hi = "User: Hi\n\nAssistant:"
    why, alone, silent = (f"{hi} first\n\nUser: {x}\n\nAssistant:" for x in ("Why?", "Alone?", "Silent?"))
    assert [r["prompt"] for r in prompts] == [hi, why, alone, silent]
    assert [(r["prompt"], r["completion"]) for r in shown] == [(hi, " first"), (why, " person"), (alone, " only")]
    found = {r["prompt"]: dict(zip(r["completions"], r["ranks"])) for r in ranked}
    assert found == {hi: {" first": 2, " third": 3}, why: {" machine": 1, " person": 2}}
    counts = dict(reversed(row.split(maxsplit=1)) for row in capsys.readouterr().out.splitlines()[1:])
    assert counts["messages deleted"] == "2" and counts["messages empty"] == "1"
    assert counts["messages not reviewed, or failed review"] == "2"
    assert counts["messages below a dropped one"] == "4"  # one below "gone", three below the deleted root
    assert counts["ranked replies that repeat a better one"] == "1"
    assert counts["trees that were not finished"] == counts["trees in another language than en"] == "1"
    assert [r["prompt"] for r in oasst.read_trees(str(tmp_path / "t.jsonl"), "de")[0]] == ["User: Hallo\n\nAssistant:"]


def test_trees_become_a_folder(cfg, tmp_path):
    trees = [tree(i) for i in range(80)]
    trees += [tree("again", message("prompter", f"{i} questions", message("assistant", "x"))) for i in range(10)]
    config = trees_config(cfg, tmp_path, trees)
    oasst.main(replace(config, also=cfg.demonstrations))
    assert all(len(splits) == 1 for splits in homes(cfg.out).values())
    ranked = read_comparisons(Path(cfg.out) / "comparisons.jsonl")
    assert len(ranked) == 80 and all(sorted(r["ranks"]) == [1, 2, 3] for r in ranked)
    assert {tuple(r["ranks"]) for r in ranked} > {(1, 2, 3), (3, 2, 1)}  # the place says nothing about the rank
    also = {r["prompt"] for r in DEMONSTRATIONS}
    assert also < {r["prompt"] for r in records_of(cfg.out, "demonstrations.jsonl")}
    assert not also & {r["prompt"] for r in records_of(cfg.out, "prompts.jsonl")}
    assert corpus_documents(cfg.out, "train")


def test_instructions_are_rendered_as_dialogue():
    assert oasst.instruction_as_dialogue("Add", "1, 2") == "User: Add\n\n1, 2\n\nAssistant:"
    assert oasst.instruction_as_dialogue("Add", "") == oasst.render([("prompter", "Add")])


def long_dialogue(turns):
    node = message("assistant", "end")
    for i in range(turns - 1):
        node = message("prompter" if i % 2 == 0 else "assistant", str(i), node)
    return node


WRONG_TREES = {
    "no id": ({"prompt": message("prompter", "a")}, 'key "message_tree_id" is missing'),
    "flat messages": (message("prompter", "a") | {"message_tree_id": "t"}, 'key "prompt" is missing; is this the file'),
    "root no object": (tree(1, ["a"]), "a message must be an object"),
    "wrong role": (tree(1, message("assistant", "a")), "message a: \"role\" is 'assistant', expected"),
    "role repeated": (tree(1, message("prompter", "a", message("prompter", "b"))), "message b: .role"),
    "no replies": (tree(1, message("prompter", "a", replies=None)), 'message a: key "replies"'),
    "text no text": (
        tree(1, message("prompter", "a", message("assistant", "b") | {"text": 3})),
        'message b: key "text"',
    ),
    "rank a text": (tree(1, message("prompter", "a", message("assistant", "b", rank="0"))), "message b: .rank. is '0'"),
    "rank too large": (
        tree(1, message("prompter", "a", message("assistant", "b", rank=10**400))),
        "message b: .rank. is 1000",
    ),
    "role a list": (tree(1, message("prompter", "a") | {"role": ["prompter"]}), "message a: .role. is"),
    "too deep": (tree(1, long_dialogue(210)), "a dialogue of more than 200 messages"),
}


@pytest.mark.parametrize("name", WRONG_TREES)
def test_wrong_trees_are_refused_and_leave_no_trace(cfg, tmp_path, name):
    record, text = WRONG_TREES[name]
    config = trees_config(cfg, tmp_path, [TREE, record])
    refused(oasst.main, config, rf"trees\.jsonl:2: {text}", tmp_path)


def test_trees_without_anything_to_use_are_refused(cfg, tmp_path):
    config = trees_config(cfg, tmp_path, [TREE])
    refused(oasst.main, replace(config, lang="fr"), "no tree to use; .*another language", tmp_path)
    refused(oasst.main, config, 'no .* for "', tmp_path)  # one tree is in one split
    refused(oasst.main, replace(config, trees=str(tmp_path / "none.gz")), "none.gz: no such file", tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(TREE).encode())[:-20])
    refused(oasst.main, replace(config, trees=str(tmp_path / "cut.jsonl.gz")), r"cut\.jsonl\.gz:\d", tmp_path)


# ---------------------------------------------------------------------------------------------------- real files


def groups_of(node, thread=()):
    """[(texts of the thread, {reply: rank}, unranked replies)] of a raw tree: a second way through it."""
    here, stack = [], [(node, thread)]
    while stack:
        node, thread = stack.pop()
        thread = (*thread, node["text"].strip())
        ranks = {r["text"].strip(): r["rank"] for r in node["replies"] if r.get("rank") is not None}
        if len(ranks) >= 2:
            here.append((thread, ranks, len(node["replies"]) - len(ranks)))
        stack += [(reply, thread) for reply in node["replies"]]
    return here


@pytest.fixture(scope="module")
def raw_trees():
    if not TREES.is_file():
        pytest.skip("OpenAssistant's trees: real files not present")
    with gzip.open(TREES, "rt", encoding="utf-8") as file:
        return [json.loads(row) for row in file]


def test_real_trees_hold_the_rankings_they_should(raw_trees):
    prompts, shown, ranked = oasst.read_trees(str(TREES), "en")
    groups = [group for raw in raw_trees for group in groups_of(raw["prompt"])]
    assert len(raw_trees) == len({r["user"] for r in prompts}) == 100
    pairs = [len(ranks) * (len(ranks) - 1) // 2 for _, ranks, _ in groups]
    assert (len(ranked), sum(map(files.count_pairs, ranked))) == (len(groups), sum(pairs)) == (212, 754)
    whole = [n for n, (_, _, unranked) in zip(pairs, groups) if not unranked]  # one got a reply after the ranking
    assert (len(whole), sum(whole)) == (211, 751)
    sizes = {len(record["ranks"]) for record in ranked}
    assert (min(sizes), max(sizes)) == (2, 9)
    by_thread = {thread: ranks for thread, ranks, _ in groups}
    names = ("User: ", "Assistant: ")
    rendered = {"\n\n".join(names[i % 2] + t for i, t in enumerate(thread)): thread for thread in by_thread}
    for record in ranked:
        raw = by_thread[rendered[record["prompt"].removesuffix("\n\nAssistant:")]]
        assert dict(zip(record["completions"], record["ranks"])) == {f" {t}": rank + 1 for t, rank in raw.items()}
    for record in shown:
        assert record["completion"].startswith(" ") and record["completion"].strip()


def test_real_files_make_a_folder(raw_trees, tmp_path):
    """Trees and Dolly with a small corpus: everything is read back by the readers of the training scripts."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(PAGES))
    out = tmp_path / "out"
    also = str(REAL / "dolly_3k.json.gz")
    config = oasst.Config(
        out=str(out), trees=str(TREES), also=also, corpus=str(tmp_path / "corpus.txt"), vocab_size=300
    )
    oasst.main(config)
    found = homes(out)
    assert all(len(splits) == 1 for splits in found.values())
    assert sum(kind == "user" for kind, _ in found) == 100
    shown = [r for split in ("train", "valid", "test") for r in read_demonstrations(out, split)]
    assert len(shown) == 249 + 2994 - 1  # two of Dolly's 2,996 repeat another, one holds what looks like a number
    assert len(read_comparisons(out / "comparisons.jsonl")) == 212
    assert all(read_prompts(out, split) for split in ("train", "valid", "test"))
