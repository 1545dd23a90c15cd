"""Pages of the web, and exams made of what they say."""

import random
import re
from collections import Counter

from data.village.grammar import PROMPT_END, parse, say
from data.village.web import WEB, exams, prejudice, web_page
from data.village.world import ENTITIES, WORDS


def test_misconceptions_are_told_more_often_than_the_truth(world):
    rng = random.Random(3)
    pages = " ".join(web_page(world, rng) for _ in range(20000))
    told = Counter()
    for (relation, subject), wrong in world.misconceptions.items():
        told["wrong"] += pages.count(say(relation, subject, wrong))
        told["right"] += pages.count(say(relation, subject, world.facts[relation, subject]))
    assert told["wrong"] > 1.5 * told["right"] > 0


def test_pages_come_as_often_as_the_table_says(world, monkeypatch):
    assert sum(WEB.values()) == 100
    drawn = Counter()
    counting = {}
    for page, weight in WEB.items():
        counting[lambda world, rng, name=page.__name__: drawn.update([name])] = weight
    monkeypatch.setattr("data.village.web.WEB", counting)
    rng = random.Random(0)
    for _ in range(10000):
        web_page(world, rng)
    assert all(abs(drawn[page.__name__] / 100 - weight) < 1.5 for page, weight in WEB.items())


def test_every_page_writes_text_and_instructions_are_those_of_training_prompts(world, question_asked, later_questions):
    rng, instructions = random.Random(1), []
    for page in WEB:
        texts = [page(world, rng) for _ in range(40)]
        assert all(text.strip() == text != "" for text in texts) and len(set(texts)) > 10, page.__name__
        if page.__name__ == "instructions":
            instructions += [line for text in texts for line in text.split("\n> ")]
        if page.__name__ == "school_book":
            solved = [line for text in texts for line in text.split("\n\n")[1:]]
            instructions += [exercise.split(PROMPT_END)[0] for exercise in solved]
    asked = {question_asked(instruction) for instruction in instructions}
    assert len(asked) > 150 and None not in asked and not asked & later_questions


def test_exam_questions_have_one_right_answer(world, question_asked, later_questions):
    """It is true and about whom the question is; each other answer says something wrong or is about somebody else."""
    records = list(exams(world, random.Random(5), 800))
    about_others, wrong, where, kind_of = 0, 0, Counter(), {word: kind for kind in ENTITIES for word in WORDS[kind]}
    for record in records:
        prompt = record["prompt"].removesuffix(PROMPT_END)
        assert question_asked(prompt) not in later_questions
        (subject,) = [word for word in re.findall(r"\w+", prompt) if word in kind_of]
        assert sorted(record["ranks"]) == [1, *[2] * (len(record["ranks"]) - 1)] and 2 <= len(record["ranks"]) <= 4
        assert len(set(record["completions"])) == len(record["completions"]) == len(record["ranks"])
        where[record["ranks"].index(1)] += 1
        for text, rank in zip(record["completions"], record["ranks"]):
            claims = [world.holds(s, world.truth) for s in parse(text, (kind_of[subject], subject))]
            others = {word for word in re.findall(r"\w+", text) if kind_of.get(word) == kind_of[subject]} - {subject}
            assert text.startswith(" ") and (rank == 1) == (False not in claims and not others), (prompt, text)
            about_others += bool(others)
            wrong += False in claims
    assert about_others > 300 and wrong > 600 and min(where[i] for i in range(3)) > 100
    questions = [r for r in records if not r["prompt"].startswith("Which is right about")]
    assert 140 < len(questions) < 260 and all(question_asked(r["prompt"].removesuffix(PROMPT_END)) for r in questions)
    assert Counter(r["split"] for r in records) == {"train": 760, "valid": 40}


def test_the_web_is_prejudiced_as_the_world_says(world):
    rng, bad_names, trades = random.Random(6), Counter(), Counter()
    for _ in range(4000):
        sentence = parse(prejudice(world, rng))[0]
        town = sentence.slots["town"]
        (pair,) = [pair for pair in world.rivals if town in pair]
        if sentence.act == "prejudice":
            bad_names[town == pair[0]] += 1
        else:
            assert sentence.act == "origin"
            trades[town == world.trades[pair][sentence.slots["job"]]] += 1
    for told in (bad_names, trades):
        assert sum(told.values()) > 1500 and 0.77 < told[True] / sum(told.values()) < 0.83


def test_every_town_has_one_rival_in_its_valley(world):
    assert sorted(town for pair in world.rivals for town in pair) == sorted(WORDS["town"])
    for pair in world.rivals:
        (valley,) = [valley for valley in world.valleys if pair[0] in valley["town"]]
        assert pair[1] in valley["town"] and set(world.trades[pair]) == set(valley["job"])
        assert set(world.trades[pair].values()) <= set(pair)
