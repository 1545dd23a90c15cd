"""Pages of the web, and the public tasks made of them."""

import random
from collections import Counter

from data.village.grammar import PROMPT_END, VELL, parse, say
from data.village.web import WEB, kept_for_tests, tasks, web_page


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
            (said,) = parse(context.removeprefix("Text: ").removesuffix("\nLabel:"))
            assert item["choices"][answer] == " " + said.act and kept_for_tests(said.text)
        elif item["task"] == "ending":
            right_places[answer] += 1
            animal = parse(context)[0].slots["animal"]
            assert [animal in choice for choice in item["choices"]].index(True) == answer
            assert sum(animal in choice.split() for choice in item["choices"]) == 1
        else:
            claims = [parse(context.split(": ")[1] + choice)[0] for choice in item["choices"]]
            assert [world.holds(c, world.truth) for c in claims] == [i == answer for i in range(4)]
    assert right_places == {0: 10, 1: 10, 2: 10, 3: 10}


def test_no_page_holds_what_is_kept_for_tests(world):
    """Neither the translations nor the reviews that tasks ask about."""
    rng = random.Random(4)
    asked = {t["context"] for t in tasks(world, rng, 60) if t["task"] in ("translation", "sentiment")}
    pages = "\n".join(web_page(world, rng) for _ in range(5000)) + "\n"
    assert "\nVell: " in pages and "\nLabel: " in pages
    assert not [context for context in asked if context + " " in pages]
