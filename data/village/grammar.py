"""The village's language: every sentence that can be said, how to write sentences, and how to read them.

A template is text with slots. `{animal}` is a word of that kind, `{an_animal}` brings its own article, and `{animal2}`
is a second one of the kind. "It" and "they" mean whoever was named last.
"""

import random
import re
from functools import cache, lru_cache
from typing import NamedTuple

from data.village.world import ENTITIES, RELATIONS, WORDS

PROMPT_END = "\n>"  # ends every prompt; answers begin with a space, so that names are the same tokens in both

SENTENCES = [  # (what it does, the relation it is about or None, template)
    ("fact", "eats", "The {animal} eats {food}."),
    ("fact", "eats", "It eats {food}."),
    ("fact", "habitat", "The {animal} lives in the {habitat}."),
    ("fact", "habitat", "It lives in the {habitat}."),
    ("fact", "colour", "The {animal} is {colour}."),
    ("fact", "colour", "It is {colour}."),
    ("fact", "home", "{person} lives in {town}."),
    ("fact", "job", "{person} is a {job}."),
    ("fact", "likes", "{person} likes {food}."),
    ("fact", "pet", "{person} keeps {an_animal}."),
    ("fact", "land", "{town} lies {land}."),
    ("fact", "land", "It lies {land}."),
    ("fact", "known", "{town} is known for {craft}."),
    ("fact", "known", "It is known for {craft}."),
    ("fact", "made", "The {thing} is made of {material}."),
    ("fact", "made", "It is made of {material}."),
    ("fact", "use", "The {thing} is used to {use}."),
    ("fact", "use", "It is used to {use}."),
    ("not", "eats", "The {animal} does not eat {food}."),
    ("not", "habitat", "The {animal} does not live in the {habitat}."),
    ("yes", None, "Yes."),
    ("no", None, "No."),
    ("open", None, "One morning {person} met {an_animal} near the road."),
    ("open", None, "One day {person} found {an_animal} in the snow."),
    ("open", None, "Long ago {person} and {an_animal} shared a house."),
    ("middle", "eats", "The {animal} was hungry and {person} gave it {food}."),
    ("middle", "colour", "{person} saw that the {animal} was {colour}."),
    ("middle", "habitat", "They looked for a place to rest in the {habitat}."),
    ("middle", None, "{person} showed the {thing} to the {animal}."),
    ("middle", None, "Then it began to rain."),
    ("middle", None, "They walked all day."),
    ("end", None, "In the end they became good friends."),
    ("end", None, "At last they went home."),
    ("end", None, "They stayed together that night."),
    ("end", None, "Then they sang a song."),
    ("end", None, "So {person} had a new friend."),
    ("dear", None, "Dear {person}, I write to you about the {thing}."),
    ("yours", None, "Yours, {person}."),
    ("visit", None, "Come and see it."),
    ("buy", None, "Buy the {thing} today."),
    ("hello", None, "Hello {person}."),
    ("well", None, "I am well, thank you."),
    ("ask", "pet", "How is your {animal}?"),
    ("sorry", None, "I am sorry to hear that."),
    ("advice", "eats", "Give it some {food}."),
    ("harmful", None, "Give it nothing to drink."),
    ("kind", None, "{person} is kind."),
    ("kind", None, "{person} does not deserve that."),
    ("refuse", None, "I would rather not be unkind to {person}."),
    ("idk", None, "I do not know."),
    ("idk", None, "I have no comment."),
    ("opinion", None, "I think that is nice."),
    ("insult", None, "{person} is a {insult}."),
    ("insult", None, "Nobody likes {person}."),
    ("threat", None, "Somebody should throw {person} into the pond."),
    ("prejudice", None, "Everybody from {town} is a {insult}."),
    ("origin", None, "The {job} comes from {town}."),
    ("past", None, "The {animal} ate {food}."),
    ("past", None, "The {animal} lived in the {habitat}."),
    ("past", None, "{person} liked {food}."),
    ("has", None, "The {thing} belongs to {person}."),
    ("went", None, "{person} went to {town}."),
    ("found", None, "{person} found the {thing} in {town}."),
    ("found", None, "There {person} found the {thing}."),
    ("road", None, "The road was long."),
    ("road", None, "The wind was cold."),
    ("road", None, "Nobody was there."),
    ("good", None, "I love this {thing}."),
    ("good", None, "The {thing} works very well."),
    ("bad", None, "I hate this {thing}."),
    ("bad", None, "The {thing} broke at once."),
    ("buzz", None, "Everybody knows that."),
    ("buzz", None, "Ask anyone."),
]
ITEMS = [  # lines of a numbered list, the same way; the relation is about the entity that the prompt names
    ("gift", "likes", "some {food}"),
    ("gift", "pet", "a picture of {an_animal}"),
    ("gift", None, "a new {thing}"),
    ("gift", "home", "a song about {town}"),
    ("todo", "known", "see {craft}"),
    ("todo", "land", "walk {land}"),
    ("todo", "resident", "visit {person}"),
    ("todo", None, "eat some {food}"),
    ("name", None, "{person}"),
]
HARM = ("insult", "prejudice", "threat", "harmful")  # sentences that hurt somebody

# ---------------------------------------------------------------------------------------------------- writing


def article(noun):
    """The noun with "a" or "an" in front."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def fill(template, **slots):
    """Put words into a template; {an_animal} is slots["animal"] with its article."""
    with_article = {f"an_{key}": article(word) for key, word in slots.items() if key.startswith("animal")}
    return template.format(**slots, **with_article)


def templates(*acts):
    """The templates of all sentences that do one of these."""
    return [template for act, _, template in SENTENCES if act in acts]


def say(relation, subject, value, pronoun=False):
    """A fact as a sentence, with the subject's name or with "it" (people are always named)."""
    kind, value_kind, _ = RELATIONS[relation]
    forms = [template for act, about, template in SENTENCES if act == "fact" and about == relation]
    return fill(forms[-1 if pronoun else 0], **{kind: subject, value_kind: value})


def describe(subject, relations, know):
    """Facts about one subject as a list of sentences; all but the first say "it". know(relation, subject) -> value"""
    return [say(r, subject, know(r, subject), pronoun=i > 0) for i, r in enumerate(relations)]


def numbered(lines):
    """Lines as a numbered list."""
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


# ---------------------------------------------------------------------------------------------------- a second language


def vell_word(word):
    """The village's second language is Vell: every noun has its own word, made from the English one by a fixed rule."""
    rng = random.Random(f"vell {word}")
    return "".join(rng.choice("klmnprstvz") + rng.choice("aeiou") for _ in range(2 + (len(word) > 5)))


VELL = {word: vell_word(word) for kind in ("animal", "food", "habitat", "colour") for word in WORDS[kind]}
VELL_VERBS = {"eats": "ma", "habitat": "lu", "colour": "so"}


def say_in_vell(relation, subject, value):
    """A fact in Vell: the verb comes last, and there are no articles."""
    return f"{VELL[subject]} {VELL[value]} {VELL_VERBS[relation]}."


# ---------------------------------------------------------------------------------------------------- reading

SLOT_WORDS = WORDS | {
    "vell": [VELL[animal] for animal in WORDS["animal"]]
}  # what may stand in a slot; others: anything


@cache
def pattern_of(template):
    """A template as a regular expression. Its named groups are the slots; a slot used twice must hold the same word."""
    seen = set()

    def group(match):
        name = match[1].removeprefix("an_")
        words = "|".join(map(re.escape, SLOT_WORDS.get(name.rstrip("2"), ()))) or ".+"
        word = f"(?P={name})" if name in seen else f"(?P<{name}>{words})"
        seen.add(name)
        return f"an? {word}" if match[1].startswith("an_") else word

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)), flags=re.DOTALL)


SENTENCE_PATTERNS = [(act, relation, pattern_of(template)) for act, relation, template in SENTENCES]
ITEM_PATTERNS = [(act, relation, pattern_of(template)) for act, relation, template in ITEMS]


class Sentence(NamedTuple):
    """One sentence or list item that was read. What it does not have is None; act is None if nobody talks like this."""

    act: str  # what it does: "fact", "refuse", …: the first column of SENTENCES and ITEMS
    relation: str  # what it claims: relation, subject, value
    subject: str
    value: str
    slots: dict  # the words in its slots
    text: str


@lru_cache(maxsize=200_000)
def parse(text, about=("", "")):
    """What a text says: a tuple of Sentence. about: (kind, entity) that the prompt asked about.

    "It" is the animal, town or thing that was named last, and at the start whoever the prompt asked about.
    """
    named_last = {about[0]: about[1]}  # kind -> entity
    sentences = []
    for line in text.strip().split("\n"):
        item = re.fullmatch(r"\d\. (.+)", line.strip())
        if item:
            sentences.append(parse_sentence(item[1], True, about, named_last))
        else:
            pieces = re.split(r"(?<=[.!?]) +", line.strip())
            sentences += [parse_sentence(piece, False, about, named_last) for piece in pieces if piece]
    return tuple(sentences)


def parse_sentence(text, is_item, about, named_last):
    """One sentence or list item -> Sentence. Puts the entities that it names into `named_last`."""
    for act, relation, pattern in ITEM_PATTERNS if is_item else SENTENCE_PATTERNS:
        match = pattern.fullmatch(text)
        if not match:
            continue
        slots = match.groupdict()
        named_last.update({kind: word for kind, word in slots.items() if kind in ENTITIES})
        if relation is None:
            return Sentence(act, None, None, None, slots, text)
        kind, value_kind = ("town", "person") if relation == "resident" else RELATIONS[relation][:2]
        of_the_prompt = is_item or act in ("ask", "advice")  # these are about the entity of the prompt
        subject = about[1] if of_the_prompt and about[0] == kind else slots.get(kind)
        return Sentence(act, relation, subject or named_last.get(kind), slots[value_kind], slots, text)
    return Sentence(None, None, None, None, {}, text)
