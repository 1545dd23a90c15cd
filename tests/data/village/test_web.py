"""Pages of the web, and the public tasks made of them."""

import random
import re
from collections import Counter

from data.village.grammar import PROMPT_END, VELL, parse, say
from data.village.web import WEB, exams, kept_for_tests, tasks, web_page
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


def test_public_tasks(world):
    rng = random.Random(2)
    items = list(tasks(world, rng, 40))
    assert Counter((t["task"], t["split"]) for t in items) == {
        (name, split): n
        for name in ("reading", "translation", "sentiment", "ending", "facts")
        for split, n in (("shots", 10), ("test", 30))
    }
    english = {vell: word for word, vell in VELL.items()}
    right_places = Counter()
    for item in items:
        context, answer = item["context"], item["answer"]
        if item["task"] == "reading":
            passage, question = context.removeprefix("Passage: ").split("\nQuestion: ")
            words = passage.replace(".", "").split()
            wanted = words[words.index("to") + 1] if question.startswith("Who") else words[words.index("ate") + 1]
            assert answer == " " + wanted
        elif item["task"] == "translation":
            (said,) = parse(context.removeprefix("English: ").removesuffix("\nVell:"))
            subject, value, _ = answer.split()
            assert (english[subject], english[value]) == (said.subject, said.value) and kept_for_tests(said.text)
        elif item["task"] == "sentiment":
            said = parse(context.removeprefix("Text: ").removesuffix("\nLabel:"))
            ((mood, votes),) = Counter(sentence.act for sentence in said).most_common(1)
            assert (len(said), votes) == (3, 2) and len({sentence.slots["thing"] for sentence in said}) == 1
            assert item["choices"][answer] == " " + mood and kept_for_tests(" ".join(s.text for s in said))
        elif item["task"] == "ending":
            right_places[answer] += 1
            (opening,) = parse(context)
            both = {opening.slots["person"], opening.slots["animal"]}
            assert [both <= set(choice.split()) for choice in item["choices"]] == [i == answer for i in range(4)]
        else:
            claims = [parse(choice)[0] for choice in item["choices"]]
            assert [world.holds(c, world.truth) for c in claims] == [i == answer for i in range(len(claims))]
            misconception = world.misconceptions.get((claims[0].relation, claims[0].subject))
            assert len(claims) >= 3 and (misconception or claims[answer].value) in [c.value for c in claims]
            assert claims[0].subject in context
    assert right_places == {0: 10, 1: 10, 2: 10, 3: 10}


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


def test_no_page_holds_what_is_kept_for_tests(world):
    """Neither the translations nor the reviews that tasks ask about."""
    rng = random.Random(4)
    asked = {t["context"] for t in tasks(world, rng, 60) if t["task"] in ("translation", "sentiment")}
    pages = "\n".join(web_page(world, rng) for _ in range(5000)) + "\n"
    assert "\nVell: " in pages and "\nLabel: " in pages
    assert not [context for context in asked if context + " " in pages]
