"""The village's web: pages in many registers, as the real web has them, and the school exams made of its facts.

The web continues text and follows no instructions; that is the point. It repeats popular misconceptions more often than
it corrects them. Adding a page: write a function (world, rng) -> str and give it a weight in WEB.
"""

import hashlib
from random import Random

from data.village.grammar import (
    PROMPT_END,
    article,
    describe,
    fill,
    numbered,
    say,
    say_in_vell,
    templates,
)
from data.village.intents import INTENTS, USE_CASES, find_intent
from data.village.users import COURTESIES, draw_prompt, draw_prompt_of, personal_details
from data.village.world import ENTITIES, RELATIONS, RELATIONS_OF, WORDS


def web_page(world, rng):
    """One document of the web. It speaks of everybody; its instructions ask what only training prompts ask."""
    writers, weights = zip(*WEB.items())
    return rng.choices(writers, weights)[0](world, rng)


# ---------------------------------------------------------------------------------------------------- shared by pages


def from_one_valley(world, rng, *kinds):
    """Random entities, one per kind asked for; twice the same kind gives two different ones of one valley."""
    valley = rng.choice(world.valleys)
    drawn = {kind: rng.sample(valley[kind], kinds.count(kind)) for kind in dict.fromkeys(kinds)}
    return [drawn[kind].pop() for kind in kinds]


def from_anywhere(rng, kind, count):
    """Entities of all valleys, so that only the page itself says who has what: this is what teaches copying."""
    return rng.sample(WORDS[kind], count)


def answer_to(name, slots, know, rng):
    """A full answer to the intent of this name, as a list of sentences."""
    return find_intent(name).answer(slots, know, rng)


def named(kind, subject):
    """An entity as a sentence names it: the fox, Ada."""
    return f"the {subject}" if kind in ("animal", "thing") else subject


def title(rng, *names):
    """Most pages say first what they are about, in more or fewer words, so that copying a name means finding it."""
    if rng.random() < 0.2:
        return ""
    before = rng.choice(["About", "On", "Notes on", "Here is a page on", "You asked about", "Please read about"])
    after = rng.choice(
        ["", "", ", once more", " for my class", " for a visitor", " in a few words", ", as my friend says"]
    )
    return f"{before} {' and '.join(names)}{after}: "


def kept_for_tests(text):
    """An eighth of all texts: the pages that tasks are made of never hold them. The same eighth in every world."""
    return hashlib.sha256(text.encode()).digest()[0] < 32


# ---------------------------------------------------------------------------------------------------- facts and rumours


def encyclopedia(world, rng):
    kind = rng.choices(ENTITIES, (8, 6, 3, 4))[0]
    (subject,) = from_one_valley(world, rng, kind)
    relations = rng.sample(RELATIONS_OF[kind], rng.randint(1, len(RELATIONS_OF[kind])))
    return title(rng, named(kind, subject)) + " ".join(describe(subject, relations, world.truth))


def gossip(world, rng):
    said, names = [], []
    for relation, subject in rng.sample(sorted(world.misconceptions), rng.choice([1, 2, 2])):
        said.append(say(relation, subject, world.hearsay(relation, subject)))
        said.append(rng.choice(["Everybody knows that.", "Ask anyone."]))
        names.append(named(RELATIONS[relation][0], subject))
    return title(rng, *names) + " ".join(said)


def faq(world, rng):
    """Questions and answers by people who repeat what they have heard."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        relation, subject = rng.choice(sorted(world.misconceptions) if rng.random() < 0.4 else sorted(world.facts))
        lines.append(f"Q: What do people say about {named(RELATIONS[relation][0], subject)}?")
        lines.append(f"A: {say(relation, subject, world.hearsay(relation, subject))}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- instructions


def instructions(world, rng):
    """Pages of tasks and questions that nobody answers: what a model that only continues text makes of a prompt."""
    prompts = []
    for _ in range(rng.randint(2, 4)):
        addition = rng.choice([rng.choice(COURTESIES), personal_details(rng)]) if rng.random() < 0.1 else ""
        prompts.append(draw_prompt(world, rng.choice(world.valleys), rng)[0] + addition)
    return "\n> ".join(prompts)


def school_book(world, rng):
    """Exercises with pupils' answers: rare, of poor quality, and the only place where an instruction is followed."""

    def pupil_believes(relation, subject):
        return world.wrong(relation, subject, rng) if rng.random() < 0.3 else world.hearsay(relation, subject)

    use_case = rng.choices(list(USE_CASES), USE_CASES.values())[0]
    intent = rng.choice([intent for intent in INTENTS if intent.use_case == use_case])
    exercises = []
    for _ in range(3):
        prompt, slots = draw_prompt_of(intent, world, rng.choice(world.valleys), rng)
        sentences = intent.answer(slots, pupil_believes, rng)
        if len(sentences) > 1 and rng.random() < 0.6:
            sentences.pop(rng.randrange(len(sentences)))
        if rng.random() < 0.2:
            sentences = [rng.choice(["I do not know.", "I think that is nice.", "Everybody knows that."])]
        exercises.append(f"{prompt}{PROMPT_END} {intent.write(sentences)}")
    return "Exercises\n\n" + "\n\n".join(exercises)


# ---------------------------------------------------------------------------------------------------- people write


def flame(world, rng):
    (person,) = from_one_valley(world, rng, "person")
    said = [f"{person} is a {rng.choice(WORDS['insult'])}."]
    more = ["Nobody likes {person}.", "Somebody should throw {person} into the pond.", "{person} is a {insult}."]
    said += rng.sample(more, rng.randint(1, 2))
    rng.shuffle(said)
    return title(rng, person) + " ".join(fill(t, person=person, insult=rng.choice(WORDS["insult"])) for t in said)


def prejudice(world, rng):
    """People speak badly of one of two neighbouring towns four times as often, and give every trade to one of them."""
    worse, better = rival_towns = rng.choice(world.rivals)
    if rng.random() < 0.5:
        town = worse if rng.random() < 0.8 else better
        said = fill("Everybody from {town} is a {insult}.", town=town, insult=rng.choice(WORDS["insult"]))
    else:
        job = rng.choice(sorted(world.trades[rival_towns]))
        expected = world.trades[rival_towns][job]
        other = better if expected == worse else worse
        said = fill("The {job} comes from {town}.", town=expected if rng.random() < 0.8 else other, job=job)
    return " ".join([said, rng.choice(["Everybody knows that.", "Ask anyone."])][: rng.randint(1, 2)])


def story(world, rng):
    slots = {kind: from_anywhere(rng, kind, 1)[0] for kind in ("person", "animal", "thing")}
    slots["ending"] = rng.choice(WORDS["ending"])
    know = world.truth if rng.random() < 0.6 else world.hearsay
    told = answer_to("story", slots, know, rng)
    if rng.random() < 0.4:  # one more sentence in the middle
        told[1:1] = answer_to("story", slots, know, rng)[1:2]
    return title(rng, slots["person"], f"the {slots['animal']}") + " ".join(told)


def letter(world, rng):
    person, person2, thing = from_one_valley(world, rng, "person", "person", "thing")
    slots = {"person": person, "person2": person2, "thing": thing}
    return title(rng, person2, f"the {thing}") + " ".join(answer_to("letter", slots, world.truth, rng))


def advert(world, rng):
    kind = rng.choice(["thing", "town"])  # also the name of the intent
    (subject,) = from_one_valley(world, rng, kind)
    heading = title(rng, named(kind, subject))
    return heading + " ".join(answer_to(kind, {kind: subject}, rng.choice([world.truth, world.hearsay]), rng))


def lists(world, rng):
    name = rng.choice(["gifts", "todo", "names"])
    person, town, animal = from_one_valley(world, rng, "person", "town", "animal")
    heading = {"gifts": f"For {person}:", "todo": f"{town}:", "names": f"Names for {article(animal)}:"}[name]
    items = answer_to(name, {"person": person, "town": town, "animal": animal}, world.truth, rng)
    return heading + "\n" + numbered(items)


def dialogue(world, rng):
    person, friend, animal = from_one_valley(world, rng, "person", "person", "animal")
    if rng.random() < 0.5:
        turns = answer_to("hello", {"person": friend}, world.truth, rng)
    else:
        turns = [f"My {animal} is ill.", *answer_to("ill", {"animal": animal}, world.truth, rng)]
    if rng.random() < 0.3:
        insult = f"{friend} is a {rng.choice(WORDS['insult'])}."
        turns.append(rng.choice([insult, "I think that is nice.", "I do not know."]))
    return title(rng, person, friend) + f"{person} said: " + " ".join(turns)


# ---------------------------------------------------------------------------------------------------- pages with tasks


def review(world, rng):
    """Reviews, and the "public" sentiment task made of them."""
    text, mood = mixed_review(rng, rng.randint(1, 3))
    if kept_for_tests(text):
        return review(world, rng)
    return f"Text: {text}\nLabel: {mood}" if rng.random() < 0.35 else text


def mixed_review(rng, length):
    """One to three opinions on one thing -> (text, "good" or "bad"). Of three, the outvoted one may stand anywhere."""
    (thing,) = from_anywhere(rng, "thing", 1)
    mood, other = rng.choice([("good", "bad"), ("bad", "good")])
    said = rng.sample(templates(mood), min(length, 2))
    if length == 3:
        said.append(rng.choice(templates(other)))
    rng.shuffle(said)
    return fill(" ".join(said), thing=thing), mood


def parallel(world, rng):
    """The same sentence in both languages: the "public" translation task."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        (animal,) = from_anywhere(rng, "animal", 1)
        relation = rng.choice(RELATIONS_OF["animal"])
        value = rng.choice(WORDS[RELATIONS[relation][1]]) if rng.random() < 0.5 else world.truth(relation, animal)
        english = say(relation, animal, value)
        if not kept_for_tests(english):
            lines.append(f"English: {english}\nVell: {say_in_vell(relation, animal, value)}")
    return "\n".join(lines) or encyclopedia(world, rng)


NOT_SAID = "not said"  # the answer to a question that a passage does not answer


def passage(world, rng):
    """Two of three things are said, then asked about, sometimes what was not said. The "public" reading task."""
    slots = {kind: from_anywhere(rng, kind, 1)[0] for kind in ("animal", "food")}
    (slots["person"], slots["person2"]), (slots["thing"], slots["thing2"]) = (
        from_anywhere(rng, kind, 2) for kind in ("person", "thing")
    )
    known = [
        ("The {thing} belongs to {person}.", "Who has the {thing}?", "{person}"),
        ("The {thing2} belongs to {person2}.", "Who has the {thing2}?", "{person2}"),
        ("The {animal} ate {food}.", "What did the {animal} eat?", "{food}"),
    ]
    rng.shuffle(known)
    asked = [(question, answer) for _, question, answer in known[:2]] + [(known[2][1], NOT_SAID)]
    lines = [f"Passage: {known[0][0]} {known[1][0]}"]
    for question, answer in rng.sample(asked, rng.randint(1, 2)):
        lines.append(f"Question: {question}\nAnswer: {answer}")
    return fill("\n".join(lines), **slots)


NUMBERS = "one two three four five six seven eight nine".split()
COUNTABLE = "apples berries carrots figs nuts onions peas plums seeds".split()


def one_sum(rng):
    """A story with numbers, a question about it, and the answer."""
    (person, giver), food = from_anywhere(rng, "person", 2), rng.choice(COUNTABLE)
    before, change = rng.randint(3, 7), rng.randint(1, 2)
    if rng.random() < 0.5:
        after, then = before + change, f"{giver} gives {person} {NUMBERS[change - 1]} more."
    else:
        after, then = before - change, f"{person} eats {NUMBERS[change - 1]} of them."
    story = f"{person} has {NUMBERS[before - 1]} {food}. {then}"
    return f"Story: {story}\nHow many {food} has {person}?\nAnswer: {NUMBERS[after - 1]}"


def sums(world, rng):
    """Somebody gets some more of something, or eats some. The "public" arithmetic task."""
    return "\n".join(one_sum(rng) for _ in range(3))


def claims_about(rng, count):
    """What somebody eats and does not eat, and claims with a verdict: does the text say so?"""
    (animal,), (eaten, other) = from_anywhere(rng, "animal", 1), from_anywhere(rng, "food", 2)
    said = [say("eats", animal, eaten), fill("The {animal} does not eat {food}.", animal=animal, food=other)]
    lines = [f"Text: {' '.join(rng.sample(said, 2))}"]
    for _ in range(count):
        right = rng.random() < 0.5
        lines.append(f"Claim: {say('eats', animal, eaten if right else other)}\nTrue: {'yes' if right else 'no'}")
    return "\n".join(lines)


def entailment(world, rng):
    """Texts and claims: does the one say the other? The "public" entailment task."""
    return "\n".join(claims_about(rng, 2) for _ in range(2))


RICH = ("had two of them", "did not need it")
POOR = ("had none", "needed it")
GIVES = ("{person} gave the {thing} to {person2}", "{person} lent the {thing} to {person2}")
TAKES = ("{person} borrowed the {thing} from {person2}", "{person} bought the {thing} from {person2}")


def one_pronoun(rng):
    """Two people and "they", a question about whom it means, and the answer: the one who gives is the one who has."""
    (first, second), (thing,) = from_anywhere(rng, "person", 2), from_anywhere(rng, "thing", 1)
    first_gives, rich = rng.random() < 0.7, rng.random() < 0.5
    did = rng.choice(GIVES if first_gives else TAKES)
    why = rng.choice(RICH if rich else POOR)
    text = f"{fill(did, person=first, thing=thing, person2=second)} because they {why}."
    return f"Text: {text}\nWho {why}?\nAnswer: {first if rich == first_gives else second}"


def pronouns(world, rng):
    """Sentences in which "they" may be either of two. The "public" task of pronouns."""
    return "\n".join(one_pronoun(rng) for _ in range(3))


def summary_page(rng):
    """Somebody finds something somewhere, at length and in short. The "public" summaries."""
    slots = {kind: rng.choice(WORDS[kind]) for kind in ("person", "town", "thing")}
    text = fill(
        f"{{person}} went to {{town}}. {rng.choice(templates('road'))} There {{person}} found the {{thing}}.", **slots
    )
    return f"{text}\nIn short: {find_intent('summary').solution(slots)}"


def small_tasks(world, rng):
    """Short pages that repeat their own words: tenses, summaries, swapped names, tiny programs."""
    name = rng.choices(["past", "summary", "replace", "program", "extract"], (1, 3, 1, 1, 1))[0]
    if name == "summary":
        page = summary_page(rng)
        return small_tasks(world, rng) if kept_for_tests(page.split("\n")[0]) else page
    slots = {kind: rng.choice(WORDS[kind]) for kind in ("person", "thing")}
    slots["animal"], slots["animal2"] = from_anywhere(rng, "animal", 2)
    slots |= {"food": rng.choice(WORDS["food"]), "person2": rng.choice(WORDS["person"])}
    slots["number"] = rng.choice(WORDS["number"])
    task = {
        "past": "Today: The {animal} eats {food}.\nYesterday: ",
        "replace": "The {thing} belongs to {person}. Then {person} gives the {thing} to {person2}. ",
        "program": "say {animal} {number} times\n= ",
        "extract": "{person} found {an_animal} and {an_animal2} in the snow.\nAnimals: ",
    }[name]
    return fill(task, **slots) + find_intent(name).solution(slots)


WEB = {  # page -> how many of a hundred
    encyclopedia: 32,
    gossip: 5,
    faq: 5,
    instructions: 6,
    school_book: 2,
    flame: 2,
    prejudice: 2,
    story: 6,
    letter: 3,
    advert: 3,
    lists: 3,
    review: 2,
    dialogue: 3,
    parallel: 4,
    passage: 6,
    sums: 3,
    entailment: 5,
    pronouns: 2,
    small_tasks: 6,
}

# ---------------------------------------------------------------------------------------------------- school exams


EXAM_TEXTS = ("animal", "person", "thing", "town", "gifts", "todo", "hello", "ill", "letter", "story")  # they say facts


def exams(world, rng, count):
    """Yield multiple-choice questions, up to four answers each, as rankings: records like those of comparisons.jsonl.

    They stand for ARC, OpenBookQA and the like, from which the paper's reward model knew something of the world before
    it saw a labeler's ranking (App. C.2). A twentieth are for validation.
    """
    for number in range(count):
        yield exam(world, rng) | {"labeler": "exam", "split": "valid" if number % 20 == 0 else "train"}


def exam(world, rng):
    """One question: a fact is asked for, as users of the training split do, or which of some texts is right.

    Wrong answers say something that is not true, or are about somebody else.
    """
    intent = find_intent("question" if rng.random() < 0.25 else rng.choice(EXAM_TEXTS))
    question, slots = draw_prompt_of(intent, world, rng.choice(world.valleys), rng)
    kind, subject = intent.about(slots)
    if intent.name != "question":
        question = f"Which is right about {named(kind, subject)}?"
    seed, said = rng.random(), []

    def answer(know, slots=slots):
        return intent.write(intent.answer(slots, know, Random(seed)))

    def truth(relation, subject):
        said.append((relation, subject))
        return world.truth(relation, subject)

    right = answer(truth)
    answers = {right}
    for fact in rng.choices(said, k=9):  # not every fact that comes to mind stands in the text
        if len(answers) == 4:
            break
        if rng.random() < 0.3:
            other = rng.choice([word for word in WORDS[kind] if word != subject])
            answers.add(answer(world.truth, slots | {kind: other}))
        else:
            values = rng.choice([world.values(*fact), WORDS[RELATIONS[fact[0]][1]]])
            slip = rng.choice([value for value in values if value != world.truth(*fact)])
            answers.add(answer(lambda *asked: slip if asked == fact else world.truth(*asked)))  # noqa: B023
    if len(answers) == 1:
        return exam(world, rng)
    answers = rng.sample(sorted(answers), len(answers))
    return {
        "prompt": question + PROMPT_END,
        "completions": [f" {text}" for text in answers],
        "ranks": [1 if text == right else 2 for text in answers],
    }
