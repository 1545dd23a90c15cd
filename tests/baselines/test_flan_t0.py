"""Public tasks as instructions: the right answers, and nothing that is tested. (tests/test_run.py runs the command.)"""

import random
import re

import pytest

from baselines.flan_t0 import (
    MIXTURES,
    draw,
    examples,
    fields_of_item,
    instruction,
    learning_rates,
    page,
    text_of_example,
)
from core.config import BadInput
from data.construct import hashed_split
from data.village.grammar import VELL, parse
from data.village.intents import understand
from data.village.tasks import tasks
from data.village.users import draw_prompt
from data.village.world import RELATIONS, World

WORLD = World(3)
ALL_TASKS = sorted({task for mixture in MIXTURES.values() for task in mixture})


def words(text):
    return re.findall(r"[A-Za-z]+", text)


def solve_reading(given):
    asked = words(given["question"])
    for sentence in given["passage"].split(". "):
        said = words(sentence)
        if asked[0] == "Who" and said[1] == asked[-1] and "belongs" in said:
            return said[-1]
        if asked[0] == "What" and said[1] == asked[3] and "ate" in said:
            return said[-1]
    return "not said"


def solve_arithmetic(given):
    number = {word: i for i, word in enumerate("one two three four five six seven eight nine".split(), 1)}
    first, second = (number[word] for word in words(given["story"]) if word in number)
    return {i: word for word, i in number.items()}[first + second if "more" in given["story"] else first - second]


def solve_entailment(given):
    asked, said = words(given["claim"]), words(given["text"])
    before = said[said.index(asked[-1]) - 1]
    return {"eats": "yes", "eat": "no"}[before]


def solve_pronouns(given):
    said = words(given["text"])
    giver, receiver = said[0], said[said.index("because") - 1]
    if "from" in said:
        giver, receiver = receiver, giver
    return receiver if said[-2:] in (["needed", "it"], ["had", "none"]) else giver


def solve_translation(given):
    nouns = [VELL[word] for word in words(given["english"]) if word in VELL]
    verb = {"eats": "ma.", "lives": "lu.", "is": "so."}[words(given["english"])[2]]
    return " ".join([*nouns, verb])


def solve_sentiment(given):
    said = words(given["text"])
    good = said.count("love") + said.count("well")
    return "good" if good > said.count("hate") + said.count("broke") else "bad"


def solve_ending(given):
    pairs = [set(sentence.slots.values()) for sentence in parse(given["start"])]
    (line,) = [line[2:] for line in given["options"].split("\n") if any(pair <= set(words(line)) for pair in pairs)]
    return line


def solve_facts(given):
    for (relation, subject), value in WORLD.facts.items():
        if RELATIONS[relation][2].replace("{" + RELATIONS[relation][0] + "}", subject) == given["question"]:
            assert value in given["values"].split(", ")
            return value


def solve_program(given):
    _, animal, number, _ = words(given["program"])
    return " ".join([animal] * {"two": 2, "three": 3}[number])


def solve_summary(given):
    said = words(given["text"])
    return f"{said[0]} found the {said[-1]} in {said[3]}."


def solve_topic(given):
    text = given["page"]
    if "Dear " in text:
        return "letter"
    if "\n1. " in text:
        return "list"
    return "talk" if " said: " in text else "story"


SOLVE = {  # task -> (the field that is its answer, the answer found a second way, from the other fields)
    "reading": ("answer", solve_reading),
    "arithmetic": ("sum", solve_arithmetic),
    "entailment": ("verdict", solve_entailment),
    "pronouns": ("who", solve_pronouns),
    "translation": ("vell", solve_translation),
    "sentiment": ("label", solve_sentiment),
    "ending": ("ending", solve_ending),
    "facts": ("value", solve_facts),
    "past": ("yesterday", lambda given: given["today"].replace("eats", "ate")),
    "summary": ("summary", solve_summary),
    "extract": ("animals", lambda given: ", ".join(re.findall(r"\ban? (\w+)", given["text"]))),
    "program": ("output", solve_program),
    "owner": ("owner", lambda given: words(given["text"])[-1]),
    "topic": ("kind", solve_topic),
}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_every_tasks_answer_is_right(task):
    rng, (answer, solve) = random.Random(task), SOLVE[task]
    for _ in range(40):
        fields = draw(task, WORLD, rng)
        given = {key: value for key, value in fields.items() if key != answer}
        assert solve(given) == fields[answer], fields


@pytest.mark.parametrize("name", MIXTURES)
def test_a_template_asks_for_a_field_that_it_does_not_give_away(name):
    for task, templates in MIXTURES[name].items():
        fields = draw(task, WORLD, random.Random(task))
        assert len({asked for asked, _ in templates}) == len(templates)
        for asked, answer in templates:
            assert answer.strip("{}") in fields and answer not in asked
            prompt, completion = instruction((asked, answer), fields)
            assert prompt.endswith("\n>") and completion == " " + fields[answer.strip("{}")]
            assert "{" not in prompt


def test_flan_has_few_templates_and_all_tasks_t0_many_and_others():
    flan, t0 = MIXTURES["flan"], MIXTURES["t0"]
    assert max(map(len, flan.values())) < min(map(len, t0.values()))
    assert {"translation", "program", "entailment", "pronouns"} <= set(flan) - set(t0) and "topic" in set(t0) - set(
        flan
    )
    assert all(
        any(answer != templates[0][1] for _, answer in templates) for t, templates in t0.items() if t == "reading"
    )


def test_no_instruction_is_a_prompt_of_the_village():
    for mixture in MIXTURES.values():
        for example in examples(mixture, WORLD, 400, set(), random.Random(1)):
            assert understand(example["prompt"])[0].name == "", example["prompt"]


def test_nothing_that_is_tested_is_among_the_examples():
    """By hand: the hash of what is asked. And the texts of test items, which would be drawn if they were allowed."""
    items = list(tasks(WORLD, random.Random(5), 60))
    texts = {text_of_example(item["task"], fields_of_item(item)) for item in items}
    assert len(texts) > 200

    rng = random.Random(7)
    drawn = [(task, draw(task, WORLD, rng)) for task in ("ending", "facts") for _ in range(600)]
    assert {text_of_example(*example) for example in drawn} & texts, "they would be drawn"
    found = examples(MIXTURES["flan"], WORLD, 2000, texts, random.Random(2))
    prompts = [example["prompt"] for example in found if example["task"] != "entailment"]  # says anything of anybody
    for text in texts:
        assert not any(text in prompt for prompt in prompts), text
    splits = {"past": [], "program": [], "summary": []}
    for example in found:
        said = words(example["prompt"])
        if example["task"] == "past":
            asked = f"past  {said[said.index('eats') - 1]}"
        elif example["task"] == "program":
            asked = f"program  {said[said.index('say') + 1]}"
        elif example["task"] == "summary":
            there = said.index("There")
            asked = f"summary  {said[0]} {said[there + 4]} {said[3]}"
        else:
            continue
        splits[example["task"]].append(hashed_split(asked, valid=0.1, test=0.2))
    assert {task: set(asked) for task, asked in splits.items()} == {task: {"train"} for task in splits}


def test_no_question_of_a_test_prompt_is_trained_on():
    """Drawn as users of the test split draw: whom and what they ask about never stands in examples of the same task."""
    rng, asked = random.Random(4), set()
    for _ in range(500):
        prompt, intent, slots = draw_prompt(WORLD, rng.choice(WORLD.valleys), rng, "test")
        if intent.name == "question":
            asked.add(slots["question"])
    found = examples({"facts": MIXTURES["flan"]["facts"]}, WORLD, 300, set(), random.Random(2))
    assert len(asked) > 20 and not [q for q in asked for example in found if q in example["prompt"]]


def test_examples_differ_and_too_many_are_refused():
    found = examples(MIXTURES["flan"], WORLD, 500, set(), random.Random(0))
    assert len({example["prompt"] for example in found}) == 500
    with pytest.raises(BadInput, match="--examples 500"):
        examples({"program": MIXTURES["flan"]["program"]}, WORLD, 500, set(), random.Random(0))


def test_learning_rates_are_read_or_refused():
    assert learning_rates("4e-4, 0.001") == [4e-4, 1e-3]
    for wrong in ("", "a", "0", "1e-3,,2", "-1", "nan", "2"):
        with pytest.raises(BadInput, match="--learning_rates"):
            learning_rates(wrong)


def test_the_page_sets_the_papers_numbers_beside_ours():
    rate = {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 4}
    ways = {how: {"training": rate, "held_out": rate} for how in ("sampled", "greedy")}
    model = {"win_rate": ways, "score": 0.5, "helpful": 1.0, "truthful_and_informative": 0.5, "corpus_loss": 0.7}
    model |= {"tasks": {"a": 1.0, "b": 0.5}, "instructed": {"flan": {"a": 1.0}, "t0": {"a": 0.0}}}
    found = {"n_prompts": 4, "models": {"flan": model, "ppo_ptx": model}, "head_to_head": {"t0": ways}, "samples": []}
    lines = page(found).splitlines()
    (flan,) = [line for line in lines if line.startswith("| FLAN ") and "29.8" in line]
    assert flan.count("25.0 [20.0, 30.0]") == 4
    assert any("PPO-ptx against T0" in line and "79 ± 4" in line for line in lines)
    assert any(re.search(r"FLAN +\| +75 % \| +100 % \| +0 % \| +0.70", line) for line in lines)
