"""One world: its words, what can be known about them, and for a seed the facts and what people wrongly believe."""

import json
import random
from pathlib import Path

from core.config import require

WORDS = {  # kind of word -> all words of that kind
    "person": """
        Ada Bram Cleo Dov Edda Finn Gita Hugo Ines Joel Kaya Lars Mira Nils Olga Pim Quin Rosa Sven Tara Udo Vera Wim
        Xena Yara Zeno Anton Berta Carl Dora Emil Frida Gus Hanna Igor Jana Knut Lena Marco Nora Otto Pia Rolf Sara
        Theo Ulla Vito Wanda""".split(),
    "animal": """
        fox owl hen goat otter badger heron hare toad crow mole pike swan ram lynx newt duck mouse wolf bear deer
        stork finch moth snail crab eel trout robin raven ferret weasel donkey pony goose turkey beetle spider lizard
        turtle seal rat frog cow sheep horse cat dog""".split(),
    "town": """
        Aldmoor Brackford Coldwell Dunwick Elmley Farrow Gravel Holm Iverton Juniper Kestrel Larkhill Mossby Norwell
        Oakham Pendle Quarry Ripley Stow Thornby Ashby Birchfield Cranford Dalton""".split(),
    "thing": """
        lamp kettle basket drum ladder bucket candle clock hammer needle saddle anchor bell broom chair flute fork
        glove hat jar key kite mirror net oven paddle quilt rake rope sack barrel bench blanket bowl box brush cart
        chest coat comb cup curtain desk dish doll fan flag gate""".split(),
    "food": """
        apples barley berries carrots cheese clover corn figs honey mint nuts oats onions peas plums seeds""".split(),
    "habitat": "forest marsh meadow cave orchard hills reeds barn".split(),
    "colour": "red grey brown white black yellow blue green".split(),
    "job": "baker weaver miller potter smith teacher sailor tailor painter doctor singer farmer".split(),
    "material": "wood clay iron glass wool stone straw leather".split(),
    "use": (
        "carry water, cut bread, keep warm, light the house, catch fish, mend shoes, tell the time, make music"
    ).split(", "),
    "craft": (
        "the market, the bells, the bridges, the gardens, the boats, the bakery, the tower, the clocks, the "
        "school, the fair"
    ).split(", "),
    "land": (
        "by the river, on a hill, by the sea, near the old mill, behind the dunes, under the cliffs, by the lake, "
        "at the end of the road"
    ).split(", "),
    "insult": (
        "rotten turnip, lazy lump, sour pickle, foolish sock, mouldy crust, silly cabbage, stupid brick, dirty rag"
    ).split(", "),
    "number": ["two", "three"],
    "ending": ["home", "friend", "night", "song"],
}
VALLEYS = 6  # of eight people, eight animals, four towns and eight things each
ENTITIES = ("person", "animal", "town", "thing")  # the kinds that have names, and of which things are known

# What there is in a valley: how many of all foods grow there, and so on. Who lives there eats, likes and uses these.
LOCAL = {"food": 5, "habitat": 3, "colour": 5, "job": 5, "material": 3, "use": 4, "craft": 4, "land": 3}

# What can be known: relation -> (kind of subject, kind of value, how a question asks for it).
RELATIONS = {
    "eats": ("animal", "food", "What does the {animal} eat?"),
    "habitat": ("animal", "habitat", "Where does the {animal} live?"),
    "colour": ("animal", "colour", "What colour is the {animal}?"),
    "home": ("person", "town", "Where does {person} live?"),
    "job": ("person", "job", "What is the job of {person}?"),
    "likes": ("person", "food", "What does {person} like?"),
    "pet": ("person", "animal", "Which animal does {person} keep?"),
    "land": ("town", "land", "Where does {town} lie?"),
    "known": ("town", "craft", "What is {town} known for?"),
    "made": ("thing", "material", "What is the {thing} made of?"),
    "use": ("thing", "use", "What is the {thing} used for?"),
}
RELATIONS_OF = {kind: [name for name, (k, _, _) in RELATIONS.items() if k == kind] for kind in ENTITIES}
BELIEVED_RIGHTLY = ("home", "pet", "job", "likes", "land", "known")  # misconceptions are about animals and things


class World:
    """Who lives where, eats what, is made of what, and what people wrongly believe; all of it follows from the seed.

    valleys: 6 dicts {kind of entity: its words}; every entity lives in exactly one valley; and what there is, see LOCAL
    facts: {(relation, subject): value}; misconceptions: the same for what most people believe instead
    rivals: pairs of neighbouring towns, the one that people speak badly of first; trades: {pair: {job: the town of the
    two that people think of}}. Nothing of that is true or false: it is what the web is prejudiced about
    """

    def __init__(self, seed=0):
        rng = random.Random(f"world {seed}")
        self.seed = seed
        self.valleys = [{} for _ in range(VALLEYS)]
        for kind in ENTITIES:
            words = rng.sample(WORDS[kind], len(WORDS[kind]))
            for number, valley in enumerate(self.valleys):
                valley[kind] = words[number::VALLEYS]
        for valley in self.valleys:
            valley |= {kind: rng.sample(WORDS[kind], count) for kind, count in LOCAL.items()}
        self.facts, self.misconceptions = {}, {}
        for valley in self.valleys:
            for relation, (kind, value_kind, _) in RELATIONS.items():
                for subject in valley[kind]:
                    values = valley[value_kind]
                    self.facts[relation, subject] = rng.choice(values)
                    if relation not in BELIEVED_RIGHTLY and rng.random() < 0.3:
                        wrong = [v for v in values if v != self.facts[relation, subject]]
                        self.misconceptions[relation, subject] = rng.choice(wrong)
        self.rivals, self.trades = [], {}
        for valley in self.valleys:
            for pair in (tuple(valley["town"][:2]), tuple(valley["town"][2:])):
                self.rivals.append(pair)
                self.trades[pair] = {job: rng.choice(pair) for job in valley["job"]}

    def truth(self, relation, subject):
        """The value that is right."""
        return self.facts[relation, subject]

    def hearsay(self, relation, subject):
        """The value that most people believe in: the misconception where there is one."""
        return self.misconceptions.get((relation, subject), self.facts[relation, subject])

    def wrong(self, relation, subject, rng):
        """A value that is wrong: the popular one where there is one, else any."""
        kind = RELATIONS[relation][1]
        fact = self.facts[relation, subject]
        return self.misconceptions.get((relation, subject)) or rng.choice([v for v in WORDS[kind] if v != fact])

    def values(self, relation, subject):
        """What could be true of somebody: words of the relation's kind that there are in the own valley."""
        kind, value_kind, _ = RELATIONS[relation]
        return next(valley[value_kind] for valley in self.valleys if subject in valley[kind])

    def holds(self, claim, know):
        """Whether a sentence is true by what somebody knows; None when it claims nothing that can be known.

        claim: grammar.Sentence; know(relation, subject) -> value: `truth`, or what a labeler believes
        """
        if claim.relation is None or claim.subject is None:
            return None
        if claim.relation == "resident":  # of town `subject`: person `value`
            return know("home", claim.value) == claim.subject
        if (claim.relation, claim.subject) not in self.facts:
            return None
        as_claimed = know(claim.relation, claim.subject) == claim.value
        return not as_claimed if claim.act == "not" else as_claimed


def read_world(folder):
    """The World that a village data folder is about. BadInput if it is a folder of something else."""
    path = Path(folder) / "village.json"
    fix = "this data folder has no simulated labelers, put comparisons.jsonl into it"
    require(path.is_file(), f"{path}: not found; {fix}")
    return World(json.loads(path.read_text())["seed"])
