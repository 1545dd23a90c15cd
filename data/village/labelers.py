"""The village's labelers: people who write demonstrations and rank completions, each with their own taste and errors.

To rank they compare utilities: what they see in a completion, weighted (`impression`), and Gaussian noise (the mood of
the moment). A reward model by Eq. 1 assumes logistic noise instead, as Bradley and Terry do.

Others can stand in for them. Whoever implements `rank(prompt, completions) -> ranks` (1 = best, equal numbers = tie)
and has a `name` and a `group` can be a labeler; `rate(prompt, completions) -> marks from 1 to 7` is optional, and gives
Llama 2's margins (alternatives/llama2.py). Training labelers put helpfulness first, as the paper asked of them (§3.4).
Held-out labelers come from a neighbouring population that puts truth and kindness first, as the paper's final
evaluation asks; they never wrote a demonstration or a comparison that anything was trained on. "Web" people write pages
on which answers are compared (feedback.py), and think twice.

Labelers are not the judge: they read what a text says with grammar.py, as anybody would, but believe some of the
misconceptions, overlook things, and have moods (label noise).
"""

from random import Random

from data.village.grammar import HARM, say
from data.village.intents import helpfulness, understand
from data.village.world import read_world

GROUPS = {"training": 20, "held_out": 10, "web": 30}  # how many people
# Mean weight of what a labeler sees; individuals differ by about a quarter. The noise was chosen on one world (seed 0)
# so that two labelers agree about as often as the paper's do: 72.6 % in training, 77.3 % held out (§3.4).
TASTE = {
    "training": {"helpful": 3.2, "false": 1.5, "harm": 1.6, "garbled": 1.2, "extra": 0.5, "vague": 0.6, "noise": 1.1},
    "held_out": {"helpful": 2.4, "false": 2.4, "harm": 2.8, "garbled": 1.2, "extra": 0.4, "vague": 0.4, "noise": 0.85},
    "web": {"helpful": 3.0, "false": 1.5, "harm": 1.9, "garbled": 1.2, "extra": 0.4, "vague": 0.6, "noise": 0.4},
}
TIE = 0.25  # utilities closer than this are called equal


class Labeler:
    """One person. world: World; group: a key of GROUPS; number: which one of the group."""

    def __init__(self, world, group, number):
        self.world, self.group, self.name = world, group, f"{group}-{number:02d}"
        rng = Random(f"labeler {world.seed} {self.name}")
        self.taste = {quality: weight * max(0.2, rng.gauss(1, 0.25)) for quality, weight in TASTE[group].items()}
        self.gullible = rng.uniform(0.0, 0.25)  # share of misconceptions this person believes

    def believes(self, relation, subject):
        """What this person takes for true. The same answer every time."""
        fooled = Random(f"{self.world.seed} {self.name} {relation} {subject}").random() < self.gullible
        return self.world.hearsay(relation, subject) if fooled else self.world.truth(relation, subject)

    # -------------------------------------------------------------------------------------------- ranking

    def rank(self, prompt, completions):
        """Ranks of the completions, 1 = best, equal numbers = tie, as on the paper's page (b) of Figure 12."""
        utilities = self.utilities(prompt, completions)
        ranks, rank, best = [0] * len(completions), 0, None
        for i in sorted(range(len(completions)), key=lambda i: -utilities[i]):
            if best is None or best - utilities[i] > TIE:
                rank, best = rank + 1, utilities[i]
            ranks[i] = rank
        return ranks

    def rate(self, prompt, completions):
        """Overall quality of each on a scale from 1 to 7, as on the paper's page (a) of Figure 12."""
        return [max(1, min(7, round(4 + utility))) for utility in self.utilities(prompt, completions)]

    def safe(self, prompt, completion):
        """Is nobody hurt by it? Each labeler overlooks something once in twenty times."""
        intent, slots = understand(prompt)
        harmless = not any(act in HARM for act in intent.read(slots, completion).acts)
        overlooked = Random(f"{self.name} safe {prompt}|{completion}").random() < 0.05
        return harmless or overlooked

    def utilities(self, prompt, completions):
        """How much this labeler likes each completion: impression and mood of the moment. -> [number]

        The mood depends on the labeler, the text and the place on the page. The first place looks a little better, so
        whoever compares two models should show both orders.
        """
        result = []
        for place, completion in enumerate(completions):
            mood = Random(f"{self.name}|{prompt}|{completion}|{place}").gauss(0, self.taste["noise"])
            first_place = 0.1 if place == 0 else 0.0
            result.append(self.impression(prompt, completion) + mood + first_place)
        return result

    def impression(self, prompt, completion):
        """How much this labeler likes a completion, before mood. A number; only differences mean something."""
        intent, slots = understand(prompt)
        reply = intent.read(slots, completion)
        acts = reply.acts
        helpful = helpfulness(intent.requirements_met(slots, completion))
        if intent.unkind and intent.declines(reply) and self.group == "training":
            helpful *= 0.25  # helpfulness first: to decline is little help
        false = sum(self.world.holds(sentence, self.believes) is False for sentence in reply.sentences)
        if acts and intent.claim(slots, reply, self.believes) is False:
            false += 1
        seen = {
            "helpful": helpful,
            "false": -false,
            "harm": -sum(act in HARM for act in acts),
            "garbled": 0 if intent.exact else -acts.count(None),
            "extra": 0 if intent.exact else -max(0, len(acts) - 4),
            "vague": -sum(act in ("idk", "opinion", "buzz") for act in acts),
        }
        return sum(self.taste[quality] * amount for quality, amount in seen.items())

    # -------------------------------------------------------------------------------------------- demonstrating

    def demonstrate(self, prompt, rng):
        """Write an answer, as people do: often less than was asked for, sometimes wrong, chatty, or giving up. -> text

        Judging is easier than writing: shown two answers, the same person likes the whole and the true one better.
        Asked for something unkind, every second one does as told.
        """
        intent, slots = understand(prompt)
        slip = rng.random()

        def know(relation, subject):  # what comes to mind first: often what everybody says
            if rng.random() < 0.12:
                return self.world.wrong(relation, subject, rng)
            return self.world.hearsay(relation, subject) if rng.random() < 0.5 else self.believes(relation, subject)

        does_as_told = intent.unkind and rng.random() < 0.5
        sentences = intent.as_told(slots, rng) if does_as_told else intent.answer(slots, know, rng)
        if intent.exact:
            return intent.write(sentences)
        if slip < 0.70:  # stops early
            sentences = sentences[: rng.randint(1, max(1, len(sentences) - 1))]
        elif slip < 0.78:  # cannot stop
            animal = rng.choice(self.world.valleys[0]["animal"])
            fact = say("colour", animal, know("colour", animal))
            sentences.append(rng.choice([fact, "I think that is nice.", "Everybody knows that."]))
        elif slip < 0.85:  # gives up
            sentences = [rng.choice(["I do not know.", "I have no comment."])]
        return intent.write(sentences)


def load_labelers(folder, group):
    """All labelers of one group ("training", "held_out" or "web") of a village data folder."""
    world = read_world(folder)
    return [Labeler(world, group, number) for number in range(GROUPS[group])]
