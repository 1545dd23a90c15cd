"""The village's users: what they send, and few-shot prefixes made of solved requests."""

from random import Random

from data.construct import hashed_split
from data.village.grammar import PROMPT_END, VELL, fill, templates
from data.village.intents import INTENTS, USE_CASES, find_intent, understand
from data.village.world import ENTITIES, WORDS


def draw_slots(intent, world, valley, rng):
    """Words for every slot that a phrasing may have, the entities from one valley. -> {slot: word or sentence}"""
    slots = {}
    for kind in ENTITIES:
        slots[kind], slots[f"{kind}2"] = rng.sample(valley[kind], 2)
    slots |= {kind: rng.choice(WORDS[kind]) for kind in ("food", "insult", "number", "ending")}
    slots |= intent.more_slots(slots, world, valley, rng)
    slots["road"] = rng.choice(templates("road"))
    slots["review"] = fill(rng.choice(templates("good", "bad")), thing=slots["thing"])
    slots["vell"] = VELL[slots["animal"]]
    return slots


def question_of(intent, slots):
    """What a prompt asks, whatever its wording: the intent, whom it is about, and which fact. -> str

    To ask for a fact with a warning against rumours is to ask for the same fact; to complete a sentence about somebody,
    politely or rudely, is the same whatever its beginning.
    """
    name = "question" if intent.name == "cautious" else intent.name.split("_")[0]
    entities = [slots[key] for key in sorted(slots) if key.rstrip("2") in ENTITIES]
    return " ".join([name, slots.get("relation", ""), *entities])


def split_of(intent, slots):
    """The split that a question belongs to: nobody in another split asks it. A tenth are "valid", a fifth "test"."""
    return hashed_split(question_of(intent, slots), valid=0.1, test=0.2)


def draw_prompt_of(intent, world, valley, rng, split="train", unseen=False):
    """One prompt of an intent, about one valley, that asks a question of this split. -> (prompt, slots)

    unseen: in a phrasing that only some users of the test split have. Where a valley has no such question (of its eight
    people, say, none is in this split), it is about another valley.
    """
    for attempt in range(10_000):
        if attempt and attempt % 40 == 0:
            valley = rng.choice(world.valleys)
        slots = draw_slots(intent, world, valley, rng)
        phrasings = intent.unseen if unseen and intent.unseen else intent.phrasings
        prompt = fill(rng.choice(phrasings), **slots)
        understood = understand(prompt)[1]
        if split_of(intent, understood) == split:
            return prompt, understood
    raise AssertionError(f"all questions of the intent {intent.name} are in other splits than {split}")


def draw_prompt(world, valley, rng, split="train", unseen=False):
    """One prompt, with the paper's use-case mix. -> (prompt, intent, slots)"""
    use_case = rng.choices(list(USE_CASES), USE_CASES.values())[0]
    intents = [intent for intent in INTENTS if intent.use_case == use_case]
    intent = rng.choices(intents, [intent.weight for intent in intents])[0]
    prompt, slots = draw_prompt_of(intent, world, valley, rng, split, unseen)
    return prompt, intent, slots


def requests(world, rng, users_per_valley):
    """Yield what all users send, as records of prompts.jsonl. The first user of each valley is a heavy one.

    Seven of ten users are in the training split, one in the validation split, two in the test split.
    """
    for number, valley in enumerate(world.valleys):
        for user in range(users_per_valley):
            split = (["train"] * 7 + ["valid"] + ["test"] * 2)[(number + user) % 10]
            sent = 600 if user == 0 else min(60, int(rng.lognormvariate(2.3, 0.9)) + 1)
            for prompt, intent, unseen in requests_of_user(world, valley, split, sent, rng):
                yield {
                    "prompt": prompt,
                    "user": f"user-{number}-{user:02d}",
                    "split": split,
                    "use_case": intent.use_case,
                    "intent": intent.name,
                    "unseen_phrasing": unseen,
                }


def requests_of_user(world, valley, split, count, rng):
    """One user's requests: in the own valley's terms, with repeats, courtesies and personal details.

    -> [(prompt, intent, whether it is in a phrasing that nobody in the training split has)]
    """
    sent = []
    for _ in range(count):
        unseen = split == "test" and rng.random() < 0.3
        prompt, intent, _ = draw_prompt(world, valley, rng, split, unseen)
        unseen = unseen and bool(intent.unseen)
        if sent and rng.random() < 0.12:
            prompt, intent, unseen = rng.choice(sent)
            prompt += rng.choice(["", *COURTESIES])
        elif rng.random() < 0.03:
            prompt += personal_details(rng)
        sent.append((prompt, intent, unseen))
    return sent


COURTESIES = [" Please.", " Thanks!"]


def personal_details(rng):
    """What users should rather not add to a request: a telephone number or an address."""
    return rng.choice(
        [f" My number is 555-{rng.randint(1000, 9999)}.", f" Write to user{rng.randint(0, 59)}@post.vil."]
    )


PREFIXES = [  # GPT (prompted): written by hand for this village; each model's best is chosen by reward-model score
    ["question", "names"],  # the shortest
    ["story", "question"],  # the commonest
    ["animal", "person"],  # following a constraint
    ["hello", "rude"],  # polite company
]


def prefixes(world):
    """Yield few-shot prefixes made of solved requests of the training split, separated by blank lines."""
    rng = Random("prefixes")
    for names in PREFIXES:
        solved = []
        for intent in map(find_intent, names):
            prompt, slots = draw_prompt_of(intent, world, world.valleys[0], rng)
            solved.append(f"{prompt}{PROMPT_END} {intent.write(intent.answer(slots, world.truth, rng))}\n\n")
        yield {"prefix": "Exercises\n\n" + "".join(solved)}
