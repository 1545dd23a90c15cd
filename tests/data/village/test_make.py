"""The data folder: the same for the same seed, its test questions new, nothing written when a flag is wrong."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from runs import command

from core.config import BadInput
from data.folder import load_tokenizer, read_demonstrations, read_prompts
from data.village import make
from data.village.grammar import PROMPT_END, pattern_of
from data.village.intents import INTENTS, USE_CASES, understand
from data.village.labelers import Labeler
from data.village.tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]


def pages_of(folder, split):
    """The documents of a corpus, as text."""
    _, tokenizer = load_tokenizer(folder)
    ids = np.fromfile(folder / f"corpus.{split}.bin", dtype=np.uint16).tolist()
    end = tokenizer.decode([tokenizer.eot_token])
    return tokenizer.decode(ids).split(end)[:-1]


def instructions_in(text):
    """Whatever in a text may be an instruction: between blank lines, on pages of tasks between quotation marks."""
    return [part.split(PROMPT_END)[0] for page in text.split("\n> ") for part in page.split("\n\n")]


def test_nothing_that_is_trained_on_asks_what_test_and_validation_prompts_ask(
    village_folder, question_asked, later_questions
):
    """Read off everything that was made: prompts, demonstrations with their examples, pages, few-shot prefixes."""

    def texts(records):
        return [record["prompt"] for record in records]

    prefixes = [json.loads(line)["prefix"] for line in (village_folder / "prefixes.jsonl").read_text().splitlines()]
    made = {
        "prompts": texts(read_prompts(village_folder, "train")),
        "demonstrations": texts(read_demonstrations(village_folder, "train")),
        "web": pages_of(village_folder, "train") + pages_of(village_folder, "valid"),
        "prefixes": prefixes,
    }
    least = {"prompts": 500, "demonstrations": 100, "web": 150, "prefixes": 6}
    for name, some in made.items():
        asked = {question_asked(instruction) for text in some for instruction in instructions_in(text)} - {None}
        assert len(asked) > least[name] and not asked & later_questions, (name, asked & later_questions)
    held_out = {question_asked(r["prompt"]) for r in read_demonstrations(village_folder, "valid")}
    test = {question_asked(r["prompt"]) for r in read_prompts(village_folder, "test")}
    valid = {question_asked(r["prompt"]) for r in read_prompts(village_folder, "valid")}
    assert not (held_out | valid) & test, "validation asks nothing of the test either"
    assert held_out & valid


def test_phrasings_that_only_test_users_have_stand_nowhere_else(village_folder):
    prompts = {split: read_prompts(village_folder, split) for split in ("train", "valid", "test")}
    assert not any(r["unseen_phrasing"] for split in ("train", "valid") for r in prompts[split])
    assert 0.15 < sum(r["unseen_phrasing"] for r in prompts["test"]) / len(prompts["test"]) < 0.5
    demonstrations = [r for split in ("train", "valid") for r in read_demonstrations(village_folder, split)]
    texts = [r["prompt"] for r in prompts["train"] + prompts["valid"] + demonstrations]
    instructions = [i for t in [*texts, *pages_of(village_folder, "train")] for i in instructions_in(t)]
    unseen = [pattern_of(p) for intent in INTENTS if intent.name != "question" for p in intent.unseen]
    for instruction in instructions:
        assert not any(pattern.fullmatch(instruction) for pattern in unseen), instruction
        assert not instruction.startswith("I have a question.")
    assert len(instructions) > 3000


def test_the_folder_is_what_was_asked_for(village_folder):
    shown = {split: read_demonstrations(village_folder, split) for split in ("train", "valid")}
    # a group of three few-shot prompts may go beyond the number, and the next split makes up for it
    assert 150 <= len(shown["train"]) <= 152 and 168 <= len(shown["train"] + shown["valid"]) <= 170
    customers = [r for r in shown["train"] if r["source"] == "customer"]
    assert len(customers) == 15
    for record in shown["train"] + read_prompts(village_folder, "train"):
        assert record["prompt"].endswith(PROMPT_END) and not record["prompt"].removesuffix(PROMPT_END).endswith("\n")
    assert all(record["completion"].startswith(" ") for record in shown["train"])
    few_shot = [r for r in shown["train"] if "\n\n" in r["prompt"]]
    assert few_shot and all(r["prompt"].count(PROMPT_END) == 3 for r in few_shot)
    assert len((village_folder / "tasks.jsonl").read_text().splitlines()) == len(TASKS) * 16
    assert json.loads((village_folder / "village.json").read_text()) == {"seed": 0}
    assert "Use cases" in (village_folder / "construction.txt").read_text()


def test_rare_intents_hardly_come_up_when_labelers_think_up_prompts(world):
    prompts = make.prompts_of_labelers(world, "train", 3000, Labeler(world, "training", 0), random.Random(0))
    assert 3000 <= len(prompts) <= 3002
    drawn = Counter(understand(prompt)[0].rare for prompt in prompts)
    # a tenth of their share in what users ask for
    usual = sum(USE_CASES[u] * rare_share(u) for u in USE_CASES) / 100
    assert 0 < drawn[True] < 0.25 * usual * 3000


def rare_share(use_case):
    """Of what is asked for in a use case, how much is rare."""
    weights = [(i.weight, i.rare) for i in INTENTS if i.use_case == use_case]
    return sum(weight for weight, rare in weights if rare) / sum(weight for weight, _ in weights)


def test_same_seed_same_village_other_seed_another(tmp_path):
    def made(seed):
        make.main(make.Config(out=str(tmp_path), seed=seed, web_pages=300, users=4, demonstrations=20, task_items=8))
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first = made(1)
    assert made(1) == first and made(2) != first


def test_rankings_of_another_world_do_not_stay(tmp_path):
    (tmp_path / "comparisons.jsonl").write_text("{}\n")
    make.main(make.Config(out=str(tmp_path), web_pages=300, users=4, demonstrations=20, task_items=8))
    assert not (tmp_path / "comparisons.jsonl").exists() and (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("flag", ["vocab_size", "web_pages", "users", "demonstrations", "task_items"])
def test_too_little_is_refused_before_anything_is_written(flag, tmp_path):
    with pytest.raises(BadInput, match=f"--{flag} 1: at least"):
        make.main(make.Config(out=str(tmp_path / "x"), **{flag: 1}))
    assert not (tmp_path / "x").exists()


def test_bad_flags_leave_nothing_behind(tmp_path, monkeypatch, capsys):
    out = tmp_path / "x"
    code, _, errors = command("data/village/make.py", ["--out", out, "--users", "0"], monkeypatch, capsys)
    assert code == 2 and len(errors.strip().splitlines()) == 1 and not out.exists()
