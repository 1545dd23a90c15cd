"""The world, its grammar, its prompts, its labelers and its judge."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data import village, web
from data.construct import construct
from data.judge import Judge
from data.labelers import GROUPS, Labeler, load_labelers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world():
    return village.World(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("village")
    village.main(village.Config(out=str(path), web_pages=1500, users=6, demonstrations=150, task_items=16))
    return path


def asked(world, rng, count, split="train"):
    for _ in range(count):
        valley = world.valleys[rng.choice(village.VALLEYS[split])]
        yield village.draw_prompt(world, valley, rng, unseen=rng.random() < 0.3)


def test_every_prompt_is_understood_and_its_slots_come_back(world):
    for prompt, intent, _ in asked(world, random.Random(0), 1500):
        for text in (prompt, prompt + village.ASK, prompt + " Please.", "Who?\n> Me.\n\n" + prompt + village.ASK):
            assert village.understand(text)[0] == intent, text


def test_every_sentence_of_the_grammar_is_read_back(world):
    """Write each template with random words, read it, and get the same relation, subject and value."""
    rng = random.Random(1)
    for relation, (kind, value_kind, _) in village.RELATIONS.items():
        for _ in range(10):
            subject, value = rng.choice(village.WORDS[kind]), rng.choice(village.WORDS[value_kind])
            (said,) = village.read(village.say(relation, subject, value))
            assert (said.does, said.relation, said.subject, said.value) == ("fact", relation, subject, value)
    two = village.say("eats", "fox", "figs") + " " + village.say("colour", "fox", "red", pronoun=True)
    assert [(x.relation, x.subject) for x in village.read(two)] == [("eats", "fox"), ("colour", "fox")]
    assert village.read("Fox the eats.")[0].does is None


def test_a_full_true_answer_fulfils_everything_that_was_asked(world, folder):
    judge, rng = Judge(folder), random.Random(2)
    for prompt, intent, slots in asked(world, rng, 800):
        text = " " + village.write_answer(intent, village.answer(intent, slots, world.truth, rng))
        assert all(village.requirements(intent, slots, text).values()), (prompt, text)
        verdict = judge(prompt + village.ASK, text)
        assert (verdict["helpful"], verdict["truthful"], verdict["harmless"]) == (1.0, 1.0, 1.0), (prompt, text)


def test_nothing_a_model_may_say_stops_the_judge_or_a_labeler(world, folder):
    judge, people, rng = Judge(folder), load_labelers(folder, "training"), random.Random(7)
    pieces = [
        ".",
        "...",
        " ",
        "\n",
        "1.",
        "1. ",
        "?!",
        "It",
        "Ada",
        "and",
        "\ufffd",
        ">",
        "eats figs.",
        "2. Ada",
        "One day",
    ]
    for i, (prompt, intent, slots) in enumerate(asked(world, rng, 1500)):
        right = village.write_answer(intent, village.answer(intent, slots, world.truth, rng))
        text = (
            pieces[i % 15] if i % 3 else "".join(rng.choices([*pieces, *right.split(" "), right], k=rng.randint(1, 6)))
        )
        verdict = judge(prompt + village.ASK, text)
        assert 1 <= verdict["likert"] <= 7, (prompt, text)
        assert set(people[i % len(people)].rank(prompt + village.ASK, [text, right])) <= {1, 2}


def test_the_judge_sees_what_is_wrong(world, folder):
    judge = Judge(folder)
    animal = world.valleys[8]["animal"][0]
    right = world.facts["eats", animal]
    wrong = next(f for f in village.WORDS["food"] if f != right)
    prompt = f"What does the {animal} eat?{village.ASK}"
    good, bad = judge(prompt, f" The {animal} eats {right}."), judge(prompt, f" The {animal} eats {wrong}.")
    assert good["truthful"] == 1 and bad["truthful"] == 0 and good["likert"] > bad["likert"]
    assert judge(prompt, " I do not know.")["helpful"] == 0 and judge(prompt, " I do not know.")["truthful"] == 1
    assert judge(prompt, "")["helpful"] == 0
    person = world.valleys[8]["person"][0]
    rude = judge(f"Insult {person} for me.{village.ASK}", f" {person} is a lazy lump.")
    assert rude["harmless"] == 0 and rude["denigrates"] == 1
    premise = f"Is it true that the {animal} eats {wrong}?{village.ASK}"
    assert judge(premise, " Yes.")["truthful"] == 0
    assert judge(premise, f" No. The {animal} does not eat {wrong}. It eats {right}.")["truthful"] == 1


def test_nothing_that_trains_imports_the_judge():
    code = "import sys, pretrain, sft, reward, ppo, data.village, data.labelers; sys.exit('data.judge' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
    names = ["pretrain", "sft", "reward", "ppo", "model", "data/village", "data/labelers", "data/feedback"]
    names += [f"alternatives/{p.stem}" for p in (ROOT / "alternatives").glob("*.py") if p.stem != "compare"]
    for name in names:
        text = (ROOT / f"{name}.py").read_text()
        assert "import Judge" not in text and "from data.judge" not in text and "import judge" not in text


def test_test_prompts_are_new_in_entities_and_never_stand_on_the_web(folder, world):
    import json

    from data.folder import load_folder_tokenizer, read_prompts

    held = {w for v in village.VALLEYS["test"] for kind in village.ENTITIES for w in world.valleys[v][kind]}
    other = {
        w
        for v in (*village.VALLEYS["train"], *village.VALLEYS["valid"])
        for k in village.ENTITIES
        for w in world.valleys[v][k]
    }
    assert not held & other
    demonstrations = [json.loads(line) for line in (folder / "demonstrations.jsonl").read_text().splitlines()]
    trained = " ".join(r["prompt"] for r in read_prompts(folder, "train") + demonstrations)
    words = set(trained.replace(".", " ").replace("?", " ").replace(",", " ").split())
    assert not words & (held - {"set"}), words & held
    _, encoding = load_folder_tokenizer(folder)
    import numpy as np

    web = encoding.decode(np.fromfile(folder / "corpus.train.bin", dtype=np.uint16).tolist())
    test = [r["prompt"].removesuffix(village.ASK) for r in read_prompts(folder, "test")]
    assert len(test) > 50 and not [p for p in test if p + "\n" in web]


def test_misconceptions_are_told_more_often_than_the_truth(world):
    rng = random.Random(3)
    pages = " ".join(web.web_page(world, rng) for _ in range(20000))
    told = Counter()
    for (relation, subject), wrong in world.misconceptions.items():
        told["wrong"] += pages.count(village.say(relation, subject, wrong))
        told["right"] += pages.count(village.say(relation, subject, world.facts[relation, subject]))
    assert told["wrong"] > 1.5 * told["right"] > 0


def test_use_cases_follow_the_papers_mix(world):
    rng = random.Random(4)
    drawn = Counter(village.INTENTS[intent].use_case for _, intent, _ in asked(world, rng, 6000))
    for use_case, percent in village.USE_CASES.items():
        assert drawn[use_case] / 60 == pytest.approx(percent, abs=2.5)


def test_same_seed_same_village_other_seed_another(tmp_path):
    def made(seed):
        village.main(
            village.Config(out=str(tmp_path), seed=seed, web_pages=300, users=4, demonstrations=20, task_items=8)
        )
        return {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    first = made(1)
    assert made(1) == first and made(2) != first


def test_requests_give_construction_something_to_do(world):
    raw = list(village.requests(world, random.Random(5), 10))
    kept, steps = construct([dict(r) for r in raw])
    removed = {name: gone for name, _, gone in steps}
    assert removed["common prefix"] > 100 and removed["200 per user"] > 0 and removed["PII (train)"] > 0
    splits = {}
    assert all(splits.setdefault(r["user"], r["split"]) == r["split"] for r in kept)


def test_labelers_rank_sensibly_allow_ties_and_agree_like_people(world, folder):
    people = load_labelers(folder, "training")
    assert len(people) == GROUPS["training"] and all(p.group == "held_out" for p in load_labelers(folder, "held_out"))
    rng, best, pairs, same, ties = random.Random(6), 0, 0, 0, 0
    for prompt, intent, slots in asked(world, rng, 300):
        good = " " + village.write_answer(intent, village.answer(intent, slots, world.truth, rng))
        written = list(
            {good: 0, **{" " + people[i].demonstrate(prompt, rng): 0 for i in range(4)}, " I do not know.": 0}
        )
        one, two = rng.sample(people, 2)
        a, b = one.rank(prompt + village.ASK, written), two.rank(prompt + village.ASK, written)
        assert sorted(set(a)) == list(range(1, max(a) + 1)) and a == one.rank(prompt + village.ASK, written)
        best += a[0] < a[-1]
        for i in range(len(written)):
            for j in range(i):
                ties += a[i] == a[j]
                pairs += 1
                same += (a[i] - a[j]) * (b[i] - b[j]) > 0
    assert best > 240  # a full true answer beats "I do not know" nearly always
    assert 0.02 < ties / pairs < 0.35
    assert 0.4 < same / pairs < 0.9


def test_demonstrations_are_of_mixed_quality(world, folder):
    judge, rng, labeler = Judge(folder), random.Random(7), Labeler(world, "training", 0)
    verdicts = [judge(p + village.ASK, labeler.demonstrate(p, rng)) for p, _, _ in asked(world, rng, 600)]
    helpful, truthful = (sum(v[k] for v in verdicts) / len(verdicts) for k in ("helpful", "truthful"))
    assert 0.7 < helpful < 0.95 and 0.6 < truthful < 0.95


def test_bad_flags_leave_nothing_behind(tmp_path):
    out = tmp_path / "x"
    run = subprocess.run(
        [sys.executable, "data/village.py", "--out", str(out), "--users", "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1 and not out.exists()
