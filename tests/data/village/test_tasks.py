"""Public tasks: every answer is found a second time, by reading the item as text."""

import random
import re
from collections import Counter

import pytest

from data.village.grammar import VELL, parse
from data.village.tasks import TASKS, tasks
from data.village.web import kept_for_tests, web_page

NUMBERS = {word: i for i, word in enumerate("one two three four five six seven eight nine".split(), 1)}
ENGLISH = {vell: word for word, vell in VELL.items()}


def solve_reading(world, context):
    passage, question = context.removeprefix("Passage: ").split("\nQuestion: ")
    asked = re.search(r"the (\w+)", question)[1]
    found = re.search(rf"The {asked} (?:belongs to|ate) (\w+)", passage)
    return found[1] if found else "not said"


def solve_arithmetic(world, context):
    has, changes = (NUMBERS[word] for word in re.findall(r"\w+", context) if word in NUMBERS)
    left = has + changes if "gives" in context else has - changes
    return {number: word for word, number in NUMBERS.items()}[left]


def solve_entailment(world, context):
    text, claim = context.removeprefix("Text: ").removesuffix("\nTrue:").split("\nClaim: ")
    said = {(s.act, s.subject, s.value) for s in parse(text)}
    (claimed,) = parse(claim)
    assert {act for act, _, _ in said} == {"fact", "not"} and claimed.value in {value for _, _, value in said}
    return "yes" if ("fact", claimed.subject, claimed.value) in said else "no"


def solve_pronouns(world, context):
    first, did, second = re.match(r"Text: (\w+) (\w+) the \w+ \w+ (\w+) because", context).groups()
    giver, receiver = (first, second) if did in ("gave", "lent") else (second, first)
    return receiver if "they needed" in context or "they had none" in context else giver


def solve_sentiment(world, context):
    said = parse(context.removeprefix("Text: ").removesuffix("\nLabel:"))
    assert len(said) == 3 and len({sentence.slots["thing"] for sentence in said}) == 1
    ((mood, votes),) = Counter(sentence.act for sentence in said).most_common(1)
    assert votes == 2
    return mood


def solve_translation(world, context):
    (said,) = parse(context.removeprefix("English: ").removesuffix("\nVell:"))
    back = {word: vell for vell, word in ENGLISH.items()}
    verb = {"eats": "ma", "habitat": "lu", "colour": "so"}[said.relation]
    return f"{back[said.subject]} {back[said.value]} {verb}."


def solve_summary(world, context):
    person, town = re.match(r"(\w+) went to (\w+)\.", context).groups()
    thing = re.search(r"found the (\w+)", context)[1]
    return f"{person} found the {thing} in {town}."


WRITTEN = {
    "reading": solve_reading,
    "arithmetic": solve_arithmetic,
    "pronouns": solve_pronouns,
    "translation": solve_translation,
    "summary": solve_summary,
}


@pytest.fixture(scope="module")
def items(world):
    return list(tasks(world, random.Random(2), 120))


def test_every_task_has_as_many_items_a_quarter_of_them_examples(items):
    assert Counter((item["task"], item["split"]) for item in items) == {
        (name, split): n for name in TASKS for split, n in (("shots", 30), ("test", 90))
    }
    assert {item["task"] for item in items if item.get("metric") == "f1"} == {"reading", "summary"}


@pytest.mark.parametrize("task", WRITTEN)
def test_answers_that_are_written(world, items, task):
    answers = Counter()
    for item in items:
        if item["task"] == task:
            assert item["answer"] == " " + WRITTEN[task](world, item["context"]), item
            answers[item["answer"]] += 1
    assert len(answers) > 6  # no answer that is right for all


def test_some_questions_have_no_answer_in_the_passage(items):
    unsaid = [item["answer"] == " not said" for item in items if item["task"] == "reading"]
    assert 0.2 < sum(unsaid) / len(unsaid) < 0.47


def test_a_pronoun_means_the_first_and_the_second_person_about_equally_often(items):
    first = [i["answer"].strip() == i["context"].split()[1] for i in items if i["task"] == "pronouns"]
    assert 0.3 < sum(first) / len(first) < 0.7


@pytest.mark.parametrize(("task", "solve"), [("entailment", solve_entailment), ("sentiment", solve_sentiment)])
def test_answers_that_are_chosen(world, items, task, solve):
    right = Counter()
    for item in items:
        if item["task"] == task:
            assert item["choices"][item["answer"]] == " " + solve(world, item["context"])
            right[item["answer"]] += 1
    assert min(right.values()) > 35 and len(right) == 2


def test_the_right_ending_has_a_person_and_an_animal_of_one_beginning(world, items):
    places, first = Counter(), Counter()
    for item in items:
        if item["task"] == "ending":
            places[item["answer"]] += 1
            pairs = [set(sentence.slots.values()) for sentence in parse(item["context"])]
            assert len(pairs) == 2 and not pairs[0] & pairs[1]
            words = [set(choice.rstrip(".").split()) for choice in item["choices"]]
            fits = [any(pair <= said for pair in pairs) for said in words]
            assert fits == [i == item["answer"] for i in range(4)]
            first[pairs[0] <= words[item["answer"]]] += 1
    assert places == {0: 30, 1: 30, 2: 30, 3: 30} and min(first.values()) > 35


def test_facts_have_the_misconception_among_the_choices(world, items):
    for item in items:
        if item["task"] == "facts":
            claims = [parse(choice)[0] for choice in item["choices"]]
            assert [world.holds(c, world.truth) for c in claims] == [i == item["answer"] for i in range(len(claims))]
            misconception = world.misconceptions.get((claims[0].relation, claims[0].subject))
            assert len(claims) >= 3 and (misconception or claims[item["answer"]].value) in [c.value for c in claims]
            assert claims[0].subject in item["context"]


def test_no_page_holds_what_is_kept_for_tests(world, items):
    """Neither the translations nor the reviews nor the reports that tasks ask about."""
    asked = {item["context"] for item in items if item["task"] in ("translation", "sentiment", "summary")}
    heads = {"translation": "English: ", "sentiment": "Text: ", "summary": ""}
    for item in items:
        if item["task"] in heads:
            assert kept_for_tests(item["context"].split("\n")[0].removeprefix(heads[item["task"]]))
    rng = random.Random(4)
    pages = "\n".join(web_page(world, rng) for _ in range(5000)) + "\n"
    assert "\nVell: " in pages and "\nLabel: " in pages and "\nIn short: " in pages
    assert not [context for context in asked if context + " " in pages]
