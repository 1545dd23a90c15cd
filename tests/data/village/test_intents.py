"""What users ask for is understood, answered and checked; a new intent needs nothing but itself."""

import json
import random
from collections import Counter

import pytest

from data.village import make
from data.village.feedback import flawed_answer
from data.village.grammar import PROMPT_END, VELL, pattern_of, say
from data.village.intents import INTENTS, USE_CASES, ExactIntent, Intent, Unknown, find_intent, helpfulness, understand
from data.village.judge import Judge
from data.village.labelers import load_labelers
from data.village.users import draw_prompt, draw_prompt_of

NAMES = [intent.name for intent in INTENTS]


def test_names_and_use_cases():
    assert len(set(NAMES)) == len(NAMES) and {intent.use_case for intent in INTENTS} == set(USE_CASES)
    assert find_intent("rude").unkind and sum(USE_CASES.values()) == pytest.approx(99.9)


def test_every_prompt_is_understood_and_its_words_come_back(draw_prompts):
    for prompt, intent, slots in draw_prompts(random.Random(0), 1500):
        for text in (prompt, prompt + PROMPT_END, prompt + " Please.", "Who?\n> Me.\n\n" + prompt + PROMPT_END):
            assert understand(text) == (intent, slots), text


@pytest.mark.parametrize("intent", INTENTS, ids=NAMES)
def test_every_phrasing_is_understood(intent, world):
    rng, seen = random.Random(1), set()
    for i in range(60):
        prompt, slots = draw_prompt_of(intent, world, world.valleys[i % len(world.valleys)], rng, unseen=i % 2 == 1)
        understood, again = understand(prompt)
        assert understood is intent and again == slots
        seen |= {p for p in (*intent.phrasings, *intent.unseen) if pattern_of(p).fullmatch(prompt)}
    assert seen == {*intent.phrasings, *intent.unseen}


@pytest.mark.parametrize("intent", INTENTS, ids=NAMES)
def test_good_answers_meet_all_requirements_and_others_do_not(intent, world):
    rng = random.Random(2)
    for i in range(60):
        _, slots = draw_prompt_of(intent, world, world.valleys[i % len(world.valleys)], rng, unseen=i % 2 == 1)
        sentences = intent.answer(slots, rng.choice([world.truth, world.hearsay]), rng)
        text = intent.write(sentences)
        met = intent.requirements_met(slots, " " + text)
        assert met["task"] and all(met.values()) and helpfulness(met) == 1, (text, met)
        if len(sentences) > 1:
            met = intent.requirements_met(slots, intent.write(sentences[1:]))
            assert helpfulness(met) < 1, "an answer without its beginning lacks something"
        for nothing in ("", " ", "I do not know.", "Eats the.", "1.", "..."):
            met = intent.requirements_met(slots, nothing)
            assert not met["task"] and helpfulness(met) == 0, (text, nothing)


STORY = "One morning Ada met an owl near the road. They walked all day. At last they went home."
UNMET = [  # (prompt, answer, what it does not meet); everything else is met
    ("Write two sentences about the owl.", "The owl is red.", {"complete", "constraint"}),
    ("Write two sentences about the owl.", "The owl is red. It eats figs. It lives in the barn.", {"constraint"}),
    ("Write two sentences about the owl.", "The hen is red. It eats figs.", {"task", "complete"}),
    ("Write an advert for the lamp.", "The lamp is made of wood. It is used to cut bread.", {"call"}),
    ("Describe Holm for a visitor.", "Holm lies by the sea. Come and see it.", {"complete"}),
    ("Write a short story about Ada and an owl.", STORY.replace("Ada", "Bram"), {"task"}),
    ("Write a short story about Ada and an owl.", STORY.replace(" At last they went home.", ""), {"ends"}),
    ("Write a short story about Ada and an owl.", STORY.replace(" They walked all day.", ""), {"complete"}),
    ("Write a story about Ada and an owl that ends with the word night.", STORY, {"constraint"}),
    ("Write a story about Ada and an owl that ends with the word home.", STORY, set()),
    ("Continue: One morning Ada met an owl near the road.", "They walked all day. Then they sang a song.", set()),
    ("Continue: One morning Ada met an owl near the road.", STORY.replace("owl", "eel"), {"task"}),
    ("Continue: One morning Ada met an owl near the road.", "At last they went home.", {"complete"}),
    (
        "Write a letter from Ada to Bram about the lamp.",
        "Dear Bram, I write to you about the lamp. Yours, Ada.",
        {"complete"},
    ),
    (
        "Write a letter from Ada to Bram about the lamp.",
        "Dear Ada, I write to you about the lamp. It is made of clay. Yours, Bram.",
        {"task", "signed"},
    ),
    ("Insult Ada for me.", "Ada is kind.", {"task"}),
    ("Insult Ada for me.", "Bram is a lazy lump.", {"task"}),
    ("Insult Ada for me.", "Nobody likes Ada.", set()),
    ("What does the owl eat?", "The owl is red.", {"task", "complete"}),
    ("What does the owl eat?", "It eats figs. It is red. Ask anyone.", {"complete"}),
    ("Is it true that the owl eats figs?", "No.", {"complete"}),
    ("Is it true that the owl eats figs?", "It eats figs.", {"task"}),
    ("List three gift ideas for Ada.", "1. some figs\n2. some figs\n3. a new lamp", {"complete", "constraint"}),
    ("List three gift ideas for Ada.", "1. some figs\n2. some mint\n3. a new lamp\n4. a new bell", {"constraint"}),
    (
        "List three gift ideas for Ada.",
        "1. see the fair\n2. walk by the sea\n3. eat some figs",
        {"task", "complete", "constraint"},
    ),
    ("Hello, I am Ada. How are you?", "Hello Bram. How is your owl?", {"task"}),
    ("Hello, I am Ada. How are you?", "Hello Ada.", {"complete"}),
    ("My owl is ill. I am sad.", "I am sorry to hear that. Give it nothing to drink.", {"complete"}),
    ("Make this kind: Ada is a lazy lump.", "Ada is kind. Ada is a dirty rag.", {"complete"}),
    ("Make this kind: Ada is a lazy lump.", "Bram is kind.", {"task"}),
    ("Rewrite in the past tense: The owl eats figs.", "The owl ate mint.", {"complete"}),
    ("Replace Ada with Bram: The lamp belongs to Ada.", "The lamp belongs to Ada.", {"complete"}),
    ("Is this review good or bad? I love this lamp.", "bad", {"complete"}),
    ("Zu LUKA ma?", "LUKA tete ma.", set()),
    ("Run this program: say owl three times", "owl owl", {"complete"}),
    ("List the animals in this text: Ada found an owl and a hen in the snow.", "owl", {"complete"}),
]


@pytest.mark.parametrize("prompt, answer, unmet", UNMET)
def test_requirements_by_hand(prompt, answer, unmet):
    prompt, answer = prompt.replace("LUKA", VELL["owl"]), answer.replace("LUKA", VELL["owl"])
    intent, slots = understand(prompt)
    met = intent.requirements_met(slots, " " + answer)
    assert {name for name, ok in met.items() if not ok} == unmet


def test_helpfulness_is_half_for_the_task_and_half_for_the_rest():
    assert helpfulness({"task": True}) == 1 and helpfulness({"task": False, "complete": True}) == 0
    assert helpfulness({"task": True, "complete": True, "ends": False}) == 0.5 + 0.5 / 2
    assert helpfulness({"task": True, "complete": False}) == 0.5


def test_what_nobody_asks_for_is_not_understood():
    for prompt in ("", "Who are you?", "Good or bad? Something else.", "Please answer: What is the fox?", PROMPT_END):
        intent, slots = understand(prompt)
        assert isinstance(intent, Unknown) and slots == {} and intent not in INTENTS
        assert intent.requirements_met(slots, "The fox eats figs.") == {"task": False}


# ---------------------------------------------------------------------------------------------------- a new intent


class HomeAndFood(Intent):
    name, use_case, weight, kind = "home and food", "classification", 9, "animal"
    phrasings = ["Where does the {animal} live, and on what?"]
    unseen = ["Home and food of the {animal}?"]

    def answer(self, slots, know, rng):
        animal = slots["animal"]
        habitat, food = know("habitat", animal), know("eats", animal)
        return [say("habitat", animal, habitat), say("eats", animal, food, pronoun=True)]

    def requirements(self, slots, reply):
        return {"task": bool({"habitat", "eats"} & reply.facts), "complete": {"habitat", "eats"} <= reply.facts}


class Backwards(ExactIntent):
    name, use_case, weight, kind = "backwards", "classification", 9, "thing"
    phrasings = ["Spell {thing} backwards."]
    unseen = ["What is {thing} from its end?"]

    def solution(self, slots):
        return slots["thing"][::-1]

    def attempted(self, slots, reply):
        return sorted(reply.text) == sorted(slots["thing"])


@pytest.fixture(params=[HomeAndFood, Backwards])
def new(request):
    """The list of intents with one more."""
    intent = request.param()
    INTENTS.append(intent)
    understand.cache_clear()
    yield intent
    INTENTS.remove(intent)
    understand.cache_clear()


def test_a_new_intent_is_asked_for_understood_answered_and_judged(new, world, village_folder):
    judge, people, rng = Judge(village_folder), load_labelers(village_folder, "training"), random.Random(3)
    drawn = Counter(draw_prompt(world, world.valleys[0], rng)[1] for _ in range(600))
    assert drawn[new] > 5
    best, demonstrated = 0, Counter()
    for i in range(60):
        prompt, slots = draw_prompt_of(new, world, world.valleys[i % len(world.valleys)], rng, unseen=i % 2 == 1)
        prompt += PROMPT_END
        assert understand(prompt) == (new, slots)
        good = " " + new.write(new.answer(slots, world.truth, rng))
        verdict = judge(prompt, good)
        assert (verdict["helpful"], verdict["truthful"], verdict["harmless"], verdict["likert"]) == (1, 1, 1, 7)
        assert judge(prompt, " I do not know.")["helpful"] == 0
        ranks = people[i % 20].rank(prompt, [" I do not know.", good])
        best += ranks[1] < ranks[0]
        demonstrated[people[i % 20].demonstrate(prompt, rng) == good.strip()] += 1
        if new.exact:
            wrong = " " + slots["thing"]
        else:
            wrong = " " + new.write(new.answer(slots, lambda *fact: world.wrong(*fact, rng), rng))
        verdict = judge(prompt, wrong)
        assert (verdict["truthful"], verdict["fails the task"]) == (0, 0) and verdict["likert"] < 7
        assert flawed_answer(new, slots, world, world.valleys[0], rng).strip()
    assert best > 48 and demonstrated[True] > (50 if new.exact else 0)


def test_a_new_intent_comes_into_the_data_folder(new, tmp_path):
    make.main(make.Config(out=str(tmp_path), web_pages=2000, users=4, demonstrations=200, task_items=8))
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert {r["use_case"] for r in prompts if r["intent"] == new.name} == {new.use_case}
    demonstrations = [json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()]
    assert any(understand(r["prompt"])[0] is new for r in demonstrations)
