"""Collecting rankings: what is ranked, who ranks, a person at the terminal, and every ranking on disk at once."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT, flags_of, records_of, without_comparisons

from core.config import BadInput
from data import collect
from data.folder import read_comparisons, read_demonstrations, read_prompts, write_jsonl


class ShorterIsBetter:
    """A labeler, as collect.py asks for them."""

    def __init__(self, name="a", group="training"):
        self.name, self.group = name, group

    def rank(self, prompt, completions):
        lengths = sorted({len(text) for text in completions})
        return [1 + lengths.index(len(text)) for text in completions]


class Grader(ShorterIsBetter):
    """One who rates, too."""

    def rate(self, prompt, completions):
        return [min(7, len(text)) for text in completions]


@pytest.fixture
def folder(data, tmp_path):
    return without_comparisons(data, tmp_path / "data")


def config(folder, out, **changes):
    small = dict(data=str(folder), out=str(out), prompts=7, valid_prompts=3, k_min=4, k_max=6, max_new_tokens=6)
    return collect.Config(**small | dict(device="cpu", threads=1) | changes)


def ranked_by(monkeypatch, groups):
    monkeypatch.setattr(collect, "load_labelers", lambda cfg: groups)


def people(count, group, kind=ShorterIsBetter):
    return [kind(f"{group}-{number}", group) for number in range(count)]


# ---------------------------------------------------------------------------------------------------- from end to end


def test_collecting_rankings(folder, run, monkeypatch, capsys):
    """K answers per prompt, equal texts once, ranked by training labelers, validation by two of each group."""
    ranked_by(monkeypatch, {"training": people(3, "training", Grader), "held_out": people(3, "held_out")})
    write_jsonl(folder / "prefixes.jsonl", [{"prefix": "Say.\nThe cat.\n\n"}])
    collect.main(config(folder, run))
    assert "next: python reward.py" in capsys.readouterr().out
    records = read_comparisons(run / "comparisons.jsonl")
    assert not (run / "comparisons.partial.jsonl").exists()
    train, valid = ([r for r in records if r["split"] == split] for split in ("train", "valid"))
    assert len(train) == 7 and len({r["prompt"] for r in train}) == 7
    assert len(valid) == 3 * 4 and len({r["prompt"] for r in valid}) == 3
    for split, some in (("train", train), ("valid", valid)):
        assert {r["prompt"] for r in some} <= {r["prompt"] for r in read_prompts(folder, split)}
    for r in records:
        K = len(r["completions"])
        assert 2 <= K <= 6 and K == len(set(r["completions"])) == len(r["ended"])
        assert r["ranks"] == ShorterIsBetter().rank(r["prompt"], r["completions"])
        assert r["labeler"].startswith(r["group"])
        assert r.get("ratings") == (Grader().rate(r["prompt"], r["completions"]) if r["group"] == "training" else None)
    assert {r["group"] for r in train} == {"training"}
    for prompt in {r["prompt"] for r in valid}:
        who = sorted(r["labeler"] for r in valid if r["prompt"] == prompt)
        assert len(set(who)) == 4 and [w[0] for w in who] == ["h", "h", "t", "t"]
        assert len({str(r["completions"]) for r in valid if r["prompt"] == prompt}) == 1, "the same page for all four"


def test_one_labeler_without_groups_ranks_everything_once(folder, run, monkeypatch):
    ranked_by(monkeypatch, {"training": [ShorterIsBetter("me")]})
    collect.main(config(folder, run))
    records = read_comparisons(run / "comparisons.jsonl")
    assert Counter(r["split"] for r in records) == {"valid": 3, "train": 7}
    assert {r["labeler"] for r in records} == {"me"}


def test_same_seed_same_rankings_and_another_seed_others(folder, run, tmp_path, monkeypatch):
    ranked_by(monkeypatch, {"training": people(3, "training")})
    models = dict(supervised=str(run / "ppo_init.pt"))
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        torch.rand(3)  # whatever else the process has drawn
        collect.main(config(folder, tmp_path / name, seed=seed, **models))
    one, two, other = ((tmp_path / name / "comparisons.jsonl").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


def test_a_second_round_keeps_the_rankings_of_the_first(folder, run, tmp_path, monkeypatch):
    ranked_by(monkeypatch, {"training": people(3, "training")})
    models = dict(supervised=str(run / "ppo_init.pt"))
    collect.main(config(folder, tmp_path / "first", **models))
    earlier = str(tmp_path / "first" / "comparisons.jsonl")
    collect.main(config(folder, tmp_path / "second", earlier=earlier, seed=1, **models))
    collect.main(config(folder, tmp_path / "alone", seed=1, **models))
    first, second, alone = (read_comparisons(tmp_path / n / "comparisons.jsonl") for n in ("first", "second", "alone"))
    assert second == first + alone and first != alone
    with pytest.raises(BadInput, match="nowhere.jsonl: no such file"):
        collect.main(config(folder, tmp_path / "third", earlier=str(tmp_path / "nowhere.jsonl"), **models))
    assert not (tmp_path / "third" / "answers.jsonl").exists(), "refused before anything is sampled"


def test_rankings_that_are_there_are_never_overwritten(folder, run, monkeypatch):
    (run / "comparisons.jsonl").write_text("of hours of work")
    with pytest.raises(BadInput, match="comparisons.jsonl: is there already"):
        collect.main(config(folder, run))
    assert (run / "comparisons.jsonl").read_text() == "of hours of work"


# ---------------------------------------------------------------------------------------------------- what is ranked


def test_half_of_the_training_prompts_are_the_labelers_own(folder, run, tokenizer):
    shown = read_demonstrations(folder, "train") + read_demonstrations(folder, "valid")
    own = [{"prompt": f"My own {i}?\n", "completion": "Yes.", "split": "train", "source": "labeler"} for i in range(3)]
    own += [own[0] | {"prompt": "held out?\n", "split": "valid"}, own[0] | {"prompt": "far too long " * 9}]
    (folder / "demonstrations.jsonl").unlink()
    write_jsonl(folder / "demonstrations.jsonl", shown + own)
    cfg = config(folder, run, prompts=90)
    prompts = collect.prompts_to_rank(cfg, "train", tokenizer, 30, random.Random(0))
    mine = {f"My own {i}?\n" for i in range(3)}
    assert len(prompts) == 90 and [prompt in mine for prompt in prompts] == [i % 2 == 0 for i in range(90)]
    assert Counter(p for p in prompts if p in mine) == dict.fromkeys(mine, 15), "again and again, evenly"
    customers = [p for p in prompts if p not in mine]
    n = len(read_prompts(folder, "train"))
    assert set(customers[:n]) == {r["prompt"] for r in read_prompts(folder, "train")}
    assert customers[n : 2 * n] == customers[:n]
    valid = collect.prompts_to_rank(cfg, "valid", tokenizer, 30, random.Random(0))
    assert len(set(valid)) == 3 and set(valid) <= {r["prompt"] for r in read_prompts(folder, "valid")}
    short = min(len(tokenizer.encode_ordinary(p)) for p in prompts)
    with pytest.raises(BadInput, match="no prompt is short enough"):
        collect.prompts_to_rank(cfg, "train", tokenizer, short - 3, random.Random(0))


def asked_for_answers(monkeypatch, text_of):
    """Stand in for the models: text_of(number of the call, place in it). -> [(model, prompts, temperature, stop)]"""
    asked = []

    def respond(model, tokenizer, prompts, max_new_tokens, temperature, generator, stop):
        asked.append((model, prompts, temperature, stop))
        return [(text_of(len(asked), i), i % 2 == 0) for i in range(len(prompts))]

    monkeypatch.setattr(collect, "respond", respond)
    return asked


@pytest.mark.parametrize("prefixes", [[], ["Say:\n\n", "Do:\n\n"]])
def test_k_answers_per_prompt_from_whom_and_how(monkeypatch, prefixes):
    asked = asked_for_answers(monkeypatch, lambda call, i: f"text {call} {i}")
    prompts = [f"prompt {i}" for i in range(200)]
    cfg = config("", "", k_min=4, k_max=9)
    base = SimpleNamespace(config=SimpleNamespace(block_size=200))
    words = SimpleNamespace(encode_ordinary=str.split)
    answers = collect.sample_answers(cfg, prompts, "supervised", base, prefixes, words, random.Random(0), None)
    assert Counter(map(len, answers)).keys() == set(range(4, 10)), "K from 4 to 9"
    written = {prompt: Counter() for prompt in prompts}
    for model, some, temperature, stop in asked:
        for prompt in some:
            without = prompt.removeprefix("Say:\n\n").removeprefix("Do:\n\n")
            assert (prompt != without) == (model is base)
            written[without]["base" if model is base else model, temperature, stop] += 1
    for i, prompt in enumerate(prompts):
        few_shot = 1 if prefixes and i % 3 == 0 else 0
        want = {("supervised", 1.3, ""): 1, ("supervised", 1.0, ""): len(answers[i]) - 1 - few_shot}
        assert written[prompt] == want | ({("base", 1.0, "\n\n"): 1} if few_shot else {})
    texts = [text for some in answers for text in some]
    assert len(texts) == len(set(texts)), "everybody gets the answers to the own prompt"
    if prefixes:
        assert len({p.split("\n\n")[0] for m, some, *_ in asked if m is base for p in some}) == 2


def test_equal_and_empty_texts_are_left_out(monkeypatch):
    asked_for_answers(monkeypatch, lambda call, i: ["same", "same", " \n"][i % 3])
    prompts = ["a", "b", "c"]
    answers = collect.sample_answers(config("", ""), prompts, "s", None, [], None, random.Random(0), None)
    assert all(set(some) <= {"same"} for some in answers)


def sampled(monkeypatch, folder, run, answers_of, prompts):
    """answers_to_rank with answers_of(prompt) in place of the models' -> its records"""

    def sample_answers(cfg, prompts, *rest):
        return [answers_of(prompt) for prompt in prompts]

    monkeypatch.setattr(collect, "sample_answers", sample_answers)
    monkeypatch.setattr(collect, "prompts_to_rank", lambda cfg, split, *rest: [f"{split} {i}" for i in range(prompts)])
    return collect.answers_to_rank(config(folder, run), torch.device("cpu"), run, random.Random(0))


def test_nothing_to_compare_is_not_asked_about(monkeypatch, folder, run):
    answers = {"train 0": {"one": True}, "train 1": {}, "train 2": {"one": True, "two": False}}
    records = sampled(monkeypatch, folder, run, lambda prompt: answers.get(prompt, {}), 3)
    assert [r["prompt"] for r in records] == ["train 2"]
    assert dict(zip(records[0]["completions"], records[0]["ended"])) == {"one": True, "two": False}


def test_the_place_on_the_page_says_nothing_about_who_wrote_it(monkeypatch, folder, run, tmp_path):
    answers = {"hot": True, "few-shot": True, "plain": True}
    to_rank = sampled(monkeypatch, folder, run, lambda prompt: answers, 300)
    assert len(to_rank) == 600
    first = Counter(r["completions"][0] for r in to_rank)
    assert all(150 < count < 250 for count in first.values()) and len(first) == 3
    half = Counter(r["split"] for r in to_rank[:300])
    assert min(half.values()) > 100, "whoever stops early has ranked some of both splits"
    to_rank = [r for r in to_rank if r["split"] == "train"]
    file = collect.RankingsFile(tmp_path / "partial.jsonl")
    records, all_ranked = collect.rank_all(to_rank, {"training": people(20, "training")}, file, random.Random(0))
    assert len(records) == 300 and all_ranked
    who = Counter(r["labeler"] for r in records)
    assert len(who) == 20 and max(who.values()) < 30, "everybody has a turn"


# ---------------------------------------------------------------------------------------------------- on disk at once


def test_a_ranking_is_on_disk_before_the_next_is_asked_for(tmp_path):
    lines = []

    class Looks(ShorterIsBetter):
        def rank(self, prompt, completions):
            lines.append(len(records_of(tmp_path / "comparisons.partial.jsonl")))
            return super().rank(prompt, completions)

    answers = {"completions": ["one", "three"], "ended": [True, True], "split": "train"}
    to_rank = [{"prompt": f"prompt {i}"} | answers for i in range(5)]
    file = collect.RankingsFile(tmp_path / "comparisons.partial.jsonl")
    records, _ = collect.rank_all(to_rank, {"training": [Looks()]}, file, random.Random(0))
    assert lines == [0, 1, 2, 3, 4]
    assert records_of(tmp_path / "comparisons.partial.jsonl") == records


class Breakdown(Exception):
    pass


def interrupted_after(monkeypatch, count):
    """The labelers, as they are in an uninterrupted run; only that everything breaks down after `count` rankings."""
    done = []

    class Stops(Grader):
        def rank(self, prompt, completions):
            if len(done) == count:
                raise Breakdown
            done.append(prompt)
            return super().rank(prompt, completions)

    ranked_by(monkeypatch, {"training": people(3, "training", Stops), "held_out": people(3, "held_out", Stops)})
    return done


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_collection_goes_on_where_it_stopped(folder, run, monkeypatch, capsys, torn):
    """Interrupted twice, in the validation and in the training prompts: nothing lost, nothing doubled."""
    cfg, whole = config(folder, run), run / "comparisons.jsonl"
    interrupted_after(monkeypatch, 1000)
    collect.main(cfg)
    want = whole.read_bytes()
    whole.unlink()
    total, finished = len(want.splitlines()), 0
    for count in (5, 10):
        done = interrupted_after(monkeypatch, count)
        with pytest.raises(Breakdown):
            collect.main(cfg)
        finished += len(done)
        partial = run / "comparisons.partial.jsonl"
        assert len(partial.read_bytes().splitlines()) == finished and not whole.exists()
        if torn:
            content = partial.read_bytes()
            partial.write_bytes(content[: -random.Random(count).randint(1, 40)])
            finished -= 1
    capsys.readouterr()
    done = interrupted_after(monkeypatch, 1000)
    collect.main(cfg)
    assert len(done) == total - finished, "nobody is asked twice"
    assert whole.read_bytes() == want and not (run / "comparisons.partial.jsonl").exists()
    printed = capsys.readouterr().out
    assert f"going on after {finished} rankings" in printed and ("cut short" in printed) == torn


def test_rankings_of_other_answers_are_not_mixed_in(folder, run, monkeypatch):
    interrupted_after(monkeypatch, 4)
    with pytest.raises(Breakdown):
        collect.main(config(folder, run))
    before = (run / "comparisons.partial.jsonl").read_bytes()
    answers = run / "answers.jsonl"
    answers.write_text("".join(reversed(answers.read_text().splitlines(keepends=True))))
    with pytest.raises(BadInput, match="partial.jsonl: ranks other answers"):
        collect.main(config(folder, run))
    assert (run / "comparisons.partial.jsonl").read_bytes() == before


def test_a_resumed_collection_ranks_the_answers_that_were_sampled(folder, run, monkeypatch):
    """However models, seed and machine have changed meanwhile: a person's rankings are of the answers on disk."""
    interrupted_after(monkeypatch, 4)
    with pytest.raises(Breakdown):
        collect.main(config(folder, run))
    answers = records_of(run / "answers.jsonl")
    interrupted_after(monkeypatch, 1000)
    monkeypatch.setattr(collect, "sample_answers", lambda *args: pytest.fail("sampled again"))
    collect.main(replace(config(folder, run), seed=1))
    ranked = records_of(run / "comparisons.jsonl")
    assert {r["prompt"] for r in ranked} == {r["prompt"] for r in answers}
    by_prompt = {(r["prompt"], str(r["completions"])) for r in answers}
    assert all((r["prompt"], str(r["completions"])) in by_prompt for r in ranked)
    assert not (run / "answers.jsonl").exists()


# ---------------------------------------------------------------------------------------------------- at the terminal


@pytest.mark.parametrize(
    "typed, ranks",
    [
        ("2 > 1 = 3", [2, 1, 2]),
        ("2>1=3", [2, 1, 2]),
        (" 3 >1> 2 ", [2, 3, 1]),
        ("1=2=3", [1, 1, 1]),
        ("3 > 2 > 1", [3, 2, 1]),
    ],
)
def test_what_people_type(typed, ranks):
    assert collect.parse_ranking(typed, 3) == ranks


def test_two_digits_are_one_number():
    assert collect.parse_ranking("10 > 9 > 8 > 7 > 6 > 5 > 4 > 3 > 2 > 1", 10) == list(range(10, 0, -1))


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "1",
        "1 > 2",
        "1 > 2 > 2",
        "1 > 2 > 3 > 4",
        "0 > 1 > 2",
        "best",
        "1 > 2 > 3 > 3",
        "2 > 1 3",
        "2 1,3",
        "2>1.3",
        "> 2 > 1 > 3",
        "3 1 2",
    ],
)
def test_what_is_no_ranking_is_asked_again(typed, monkeypatch, capsys):
    with pytest.raises(ValueError, match="name each of 1 to 3 once"):
        collect.parse_ranking(typed, 3)
    lines = iter([typed, "3 > 2 > 1"])
    monkeypatch.setattr("builtins.input", lambda text: next(lines))
    assert collect.Person().rank("Why?\n", ["a", "b", "c"]) == [3, 2, 1]
    printed = capsys.readouterr().out
    assert "Why?" in printed and "1. a" in printed and "name each of 1 to 3 once" in printed


def typing(monkeypatch, lines, then=EOFError):
    """A person who types these lines and then closes the terminal, or presses Ctrl-C. -> what was left untyped"""
    left = list(lines)

    def read(text):
        if not left:
            raise then
        return left.pop(0)

    monkeypatch.setattr("builtins.input", read)
    return left


def lines_for(records):
    """What a person types whose rankings these records are."""
    lines = []
    for r in records:
        by_rank = sorted(set(r["ranks"]))
        groups = [[str(i) for i, rank in enumerate(r["ranks"], 1) if rank == this] for this in by_rank]
        lines.append(" > ".join(" = ".join(group) for group in groups))
    return lines


@pytest.fixture
def by_a_person(folder, run, monkeypatch):
    """A collection at the terminal, uninterrupted: (its settings, what it wrote, the lines that were typed)."""
    cfg = config(folder, run, labeler="terminal", prompts=20)
    with monkeypatch.context() as patch:
        patch.setattr(collect.Person, "rank", ShorterIsBetter.rank)
        collect.main(cfg)
    want = (run / "comparisons.jsonl").read_bytes()
    (run / "comparisons.jsonl").unlink()
    return cfg, want, lines_for(map(json.loads, want.splitlines()))


def test_killed_in_the_middle_and_resumed_is_uninterrupted(by_a_person, run, monkeypatch):
    """kill -9 of a process in which a person ranks; the rest is typed later."""
    cfg, want, lines = by_a_person
    command = [sys.executable, str(ROOT / "data" / "collect.py"), *flags_of(cfg)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, **pipes)
    process.stdin.write("\n".join(lines[:-1]) + "\n")  # all but the last, so that it cannot end by itself
    process.stdin.flush()
    partial, enough = run / "comparisons.partial.jsonl", random.randint(1, 15)
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= enough):
        time.sleep(0.001)
    process.kill()
    errors = process.communicate()[1]
    done = partial.read_bytes().count(b"\n")
    assert process.returncode == -9 and enough <= done < len(lines), errors
    assert not (run / "comparisons.jsonl").exists()
    left = typing(monkeypatch, lines[done:])
    collect.main(cfg)
    assert left == [] and (run / "comparisons.jsonl").read_bytes() == want


def test_skipping_and_stopping(by_a_person, run, monkeypatch):
    cfg, want, lines = by_a_person
    want = [json.loads(line) for line in want.splitlines()]
    typing(monkeypatch, [lines[0], "s", "what?", lines[2], lines[3], "s", lines[5], "q", "not read any more"])
    collect.main(cfg)
    assert records_of(run / "comparisons.jsonl") == [want[0], want[2], want[3], want[5]]
    typing(monkeypatch, lines[6:])
    collect.main(cfg)  # who has stopped can go on
    assert records_of(run / "comparisons.jsonl") == [want[0], want[2], want[3], *want[5:]]
    assert not (run / "comparisons.partial.jsonl").exists()


def test_what_was_skipped_before_a_break_is_not_asked_again(by_a_person, run, monkeypatch):
    cfg, want, lines = by_a_person
    want = [json.loads(line) for line in want.splitlines()]
    typing(monkeypatch, [lines[0], "s", lines[2]], then=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        collect.main(cfg)
    assert len(records_of(run / "comparisons.partial.jsonl")) == 3
    typing(monkeypatch, lines[3:])
    collect.main(cfg)
    assert records_of(run / "comparisons.jsonl") == [want[0], *want[2:]]


def test_who_ranks_nothing_gets_nothing(by_a_person, run, monkeypatch):
    cfg, want, lines = by_a_person
    typing(monkeypatch, ["s", "q"])
    with pytest.raises(BadInput, match="nothing was ranked"):
        collect.main(cfg)
    assert not (run / "comparisons.jsonl").exists()
    left = typing(monkeypatch, lines[1:])
    collect.main(cfg)
    assert left == [] and (run / "comparisons.jsonl").read_bytes() == b"".join(want.splitlines(keepends=True)[1:])


# ---------------------------------------------------------------------------------------------------- refused

BAD = [
    ({"k_min": 1}, "--k_min"),
    ({"k_max": 3}, "--k_max"),
    ({"prompts": 0}, "--prompts"),
    ({"valid_prompts": 0}, "--valid_prompts"),
    ({"max_new_tokens": 0}, "--max_new_tokens"),
    ({"labeler": "nobody"}, "--labeler"),
    ({"supervised": "nothing.pt"}, "nothing.pt: no such checkpoint"),
    ({"max_new_tokens": 64}, "no prompt is short enough"),
    ({"labeler": "village"}, "village.json: not found"),
]


@pytest.mark.parametrize("changes, text", BAD)
def test_what_is_refused(folder, run, changes, text):
    with pytest.raises(BadInput, match=text):
        collect.main(config(folder, run, **{"labeler": "terminal"} | changes))
    assert not list(run.glob("comparisons*"))
