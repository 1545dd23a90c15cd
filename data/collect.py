"""Comparisons: K answers per prompt, ranked best to worst by whoever ranks, ties allowed (§3.1, §3.3).

    python data/collect.py                                                    # the village's labelers rank
    python data/collect.py --labeler terminal --prompts 40 --valid_prompts 10   # you rank
    python data/collect.py --supervised out/run/round1/ppo.pt --earlier out/run/round1/comparisons.jsonl  # second round

Writes OUT/comparisons.jsonl, which reward.py trains on (unless the data folder has its own). Whoever implements

    rank(prompt, completions) -> ranks        1 = best, equal numbers = tie

can be the labeler; `rate(prompt, completions) -> [1…7]` is used where it exists. The answers are sampled first, all of
them (OUT/answers.jsonl); then each ranking is written the moment it is made (OUT/comparisons.partial.jsonl). Who stops,
or is stopped, goes on there when the command is run again, and whoever has had enough types q: what there is becomes
OUT/comparisons.jsonl.

Who writes the K answers to a prompt (the paper does not say; ours): the supervised model at temperature 1, one of them
at 1.3, and, where the data folder has few-shot prefixes, for every third prompt one by the prompted pretrained model.
"Supervised" is PPO's initial policy, so that the rankings are about the kind of text that PPO starts from; in a second
round (§3.1) it is the policy that PPO made of the first, so that they are also about what the reward model was wrong to
like. Equal texts are shown once.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.batches import generator
from core.checkpoint import load_policy
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import output_folder
from core.text import respond
from data.folder import (
    load_tokenizer,
    read_comparisons,
    read_demonstrations,
    read_jsonl,
    read_prompts,
    with_room,
    write_jsonl,
)


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder
    labeler: Literal["village", "terminal"] = "village"  # who ranks: the village's simulated people, or you
    supervised: str = ""  # model that writes the answers; default: OUT/ppo_init.pt
    base: str = ""  # pretrained model, few-shot prompted for one answer of every third prompt; default: OUT/base.pt
    earlier: str = ""  # rankings of an earlier round, which are kept beside the new ones
    prompts: PositiveInt = 8000  # rankings to collect on training prompts, which may repeat     paper: on 33207 prompts
    valid_prompts: PositiveInt = 200  # validation prompts, each ranked by two labelers of every group
    k_min: PositiveInt = 4  # fewest answers per prompt                                        paper: 4
    k_max: PositiveInt = 9  # most answers per prompt                                          paper: 9
    max_new_tokens: PositiveInt = 40  # longest answer
    seed: Seed = 0  # of answers and labelers' turns


# ---------------------------------------------------------------------------------------------------- who ranks


class Quit(Exception):
    """The labeler has had enough."""


class Person:
    """A person who ranks at the terminal."""

    name, group = "person", "training"

    def rank(self, prompt, completions):
        """Show the prompt and its answers, and ask until a ranking comes back. None: skipped."""
        print(f"\n{printable(prompt)}")
        for number, text in enumerate(completions, 1):
            print(f"  {number}. {printable(text)}")
        while True:
            try:
                typed = input("best to worst, = for ties, e.g. 2 > 1 = 3 (s: skip, q: enough): ").strip()
            except EOFError:
                raise Quit from None
            if typed in ("s", "q"):
                if typed == "q":
                    raise Quit
                return None
            try:
                return parse_ranking(typed, len(completions))
            except ValueError as problem:
                print(f"  {problem}")


def printable(text):
    """Text without what would move the cursor or colour the terminal; lines after the first are indented."""
    lines = ["".join(c for c in line if c.isprintable()) for line in text.strip().split("\n")]
    return "\n     ".join(lines)


def parse_ranking(typed, K):
    """'2 > 1 = 3' -> ranks of answers 1…K: [2, 1, 2]. Raises ValueError for anything else, and if one is missing."""
    groups = [[number.strip() for number in group.split("=")] for group in typed.split(">")]
    named = [number for group in groups for number in group]
    if sorted(named) != sorted(str(number) for number in range(1, K + 1)):
        raise ValueError(f"name each of 1 to {K} once, with > or = between them")
    rank_of = {number: rank for rank, group in enumerate(groups, 1) for number in group}
    return [rank_of[str(number)] for number in range(1, K + 1)]


def load_labelers(cfg):
    """{group: [labeler]}; validation prompts are ranked by people of every group."""
    if cfg.labeler == "terminal":
        return {"training": [Person()]}
    from data.village.labelers import load_labelers as load_villagers

    return {group: load_villagers(cfg.data, group) for group in ("training", "held_out")}


def whose_turn(groups, split, rng):
    """Which labelers rank a prompt: one for training; two of every group, so they can be compared, for validation."""
    if split == "train":
        return [rng.choice(groups["training"])]
    return [labeler for people in groups.values() for labeler in rng.sample(people, min(2, len(people)))]


# ---------------------------------------------------------------------------------------------------- what is ranked


def prompts_to_rank(cfg, split, tokenizer, limit, rng):
    """Prompts (str) of at most `limit` tokens. Half of the training ones are the labelers' own; where more are
    asked for than there are, they come again, with other answers."""
    customers = [record["prompt"] for record in with_room(read_prompts(cfg.data, split), tokenizer, limit)]
    rng.shuffle(customers)
    if split == "valid":
        return customers[: cfg.valid_prompts]
    own = [r["prompt"] for r in read_demonstrations(cfg.data, split) if r.get("source") == "labeler"]
    own = [prompt for prompt in own if len(tokenizer.encode_ordinary(prompt)) <= limit]
    rng.shuffle(own)
    customers = cycle(customers)
    own = cycle(own) if own else customers
    return [next(own) if i % 2 == 0 else next(customers) for i in range(cfg.prompts)]


def sample_answers(cfg, prompts, supervised, base, prefixes, tokenizer, rng, torch_rng):
    """K different answers to each prompt, fewer where texts repeat or are empty. -> per prompt {text: ended}"""
    answers = [{} for _ in prompts]

    def sample(model, indices, temperature, prefixes=("",), stop=""):
        asked = [rng.choice(prefixes) + prompts[i] for i in indices]
        texts = respond(model, tokenizer, asked, cfg.max_new_tokens, temperature, torch_rng, stop=stop)
        for i, (text, ended) in zip(indices, texts):
            if text.strip():
                answers[i].setdefault(text, ended)

    K = [rng.randint(cfg.k_min, cfg.k_max) for _ in prompts]
    few_shot = []
    if prefixes:
        room = base.config.block_size - cfg.max_new_tokens - max(len(tokenizer.encode_ordinary(p)) for p in prefixes)
        few_shot = [i for i in range(0, len(prompts), 3) if len(tokenizer.encode_ordinary(prompts[i])) <= room]
        sample(base, few_shot, 1.0, prefixes, stop="\n\n")
    sample(supervised, range(len(prompts)), 1.3)
    others = Counter(few_shot)  # answers beside the one at 1.3 and those at 1
    sample(supervised, [i for i in range(len(prompts)) for _ in range(K[i] - 1 - others[i])], 1.0)
    return answers


def answers_to_rank(cfg, device, out, rng):
    """Sample the answers to all prompts, validation prompts spread among the others. -> records of OUT/answers.jsonl"""
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    path = Path(cfg.data) / "prefixes.jsonl"
    prefixes = [record["prefix"] for _, record in read_jsonl(path)] if path.exists() else []

    def load(given, default):
        return sampling_copy(load_policy(given or out / default, cfg, device, tokenizer_spec, sharded=False), cfg)

    supervised = load(cfg.supervised, "ppo_init.pt")
    base = load(cfg.base, "base.pt") if prefixes else None
    limit, torch_rng, records = supervised.config.block_size - cfg.max_new_tokens, generator(cfg.seed, "collect"), []
    for split in ("train", "valid"):
        prompts = prompts_to_rank(cfg, split, tokenizer, limit, rng)
        answers = sample_answers(cfg, prompts, supervised, base, prefixes, tokenizer, rng, torch_rng)
        for prompt, ended in zip(prompts, answers):
            completions = list(ended)
            rng.shuffle(completions)  # so that the place on the page says nothing about who wrote it
            if len(completions) >= 2:
                ended = [ended[text] for text in completions]
                records.append({"prompt": prompt, "completions": completions, "ended": ended, "split": split})
    rng.shuffle(records)  # whoever stops early has ranked some of both splits
    return records


# --------------------------------------------------------------------------------------------------- writing as it goes


class RankingsFile:
    """OUT/comparisons.partial.jsonl: one ranking per line, written before the next is asked for."""

    def __init__(self, path):
        self.path, self.before = path, []  # before: rankings of a collection that was stopped
        if path.exists():
            content = path.read_bytes()
            complete = content[: content.rfind(b"\n") + 1]
            if len(complete) < len(content):
                print(f"{path}: the last ranking was cut short and is asked for again")
                os.truncate(path, len(complete))
            self.before = [record for _, record in read_jsonl(path)]
            print(f"{path}: going on after {len(self.before)} rankings")
        self.file, self.on_disk = open(path, "a", encoding="utf-8"), 0.0

    def write(self, record):
        """Append a record: not lost when the process dies, nor, if it took a second to make, when the machine stops."""
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()
        if time.monotonic() - self.on_disk > 1:  # simulated labelers make hundreds a second
            os.fsync(self.file.fileno())
            self.on_disk = time.monotonic()


def rank_all(to_rank, groups, rankings_file, rng):
    """Let labelers rank all answers, and write each ranking at once. -> records of comparisons.jsonl, all ranked?"""
    records, before = [], iter(rankings_file.before)
    for answers in to_rank:
        for labeler in whose_turn(groups, answers["split"], rng):
            record = next(before, None)
            if record is None:
                try:
                    record = ranking_record(labeler, answers)
                except Quit:
                    return records, False
                rankings_file.write(record)
            same = all(record[key] == answers[key] for key in ("prompt", "completions"))
            require(same, f"{rankings_file.path}: ranks other answers than those to rank; move it away")
            if record["ranks"]:
                records.append(record)
    return records, True


def ranking_record(labeler, answers):
    """Ask one labeler -> a record of comparisons.jsonl; with "ranks": [] if the labeler skips the prompt."""
    prompt, completions = answers["prompt"], answers["completions"]
    record = answers | {"ranks": labeler.rank(prompt, completions) or []}
    if hasattr(labeler, "rate"):
        record["ratings"] = labeler.rate(prompt, completions)
    return record | {"labeler": labeler.name, "group": labeler.group}


def main(cfg):
    require(2 <= cfg.k_min <= cfg.k_max, f"--k_min {cfg.k_min} --k_max {cfg.k_max}: must be 2 <= k_min <= k_max")
    device, out = set_up(cfg), output_folder(cfg.out)
    whole, partial, sampled = (
        out / name for name in ("comparisons.jsonl", "comparisons.partial.jsonl", "answers.jsonl")
    )
    stopped = partial.exists() and sampled.exists()  # an earlier collection that has not ranked everything
    require(stopped or not whole.exists(), f"{whole}: is there already; move it away to collect new rankings")
    groups, earlier = load_labelers(cfg), read_comparisons(cfg.earlier) if cfg.earlier else []
    if not stopped:
        partial.unlink(missing_ok=True)
        write_jsonl(sampled, answers_to_rank(cfg, device, out, random.Random(cfg.seed)))
    to_rank = [record for _, record in read_jsonl(sampled)]
    records, all_ranked = rank_all(to_rank, groups, RankingsFile(partial), random.Random(f"turns {cfg.seed}"))
    require(records, "nothing was ranked; run the command again")
    write_jsonl(whole, earlier + records)
    if all_ranked:
        partial.unlink()
        sampled.unlink()
    mean_k = sum(len(record["completions"]) for record in records) / len(records)
    print(
        f"collected {len(records):,} rankings of up to {cfg.k_max} answers, {mean_k:.1f} on average without those that"
    )
    print(f"are empty or came twice -> {whole}; one of them:")
    for rank, text in sorted(zip(records[-1]["ranks"], records[-1]["completions"])):
        print(f"  {rank}. {text!r}")
    print(f"next: python reward.py --data {cfg.data} --out {cfg.out}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
