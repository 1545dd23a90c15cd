"""Labelers rank, rate and demonstrate like people: sensibly, and not all the same."""

import random
from types import SimpleNamespace

from data.village.feedback import flawed_answer
from data.village.grammar import PROMPT_END, parse
from data.village.judge import Judge
from data.village.labelers import GROUPS, TASTE, TIE, Labeler, load_labelers
from data.village.users import draw_prompt


def test_labelers_rank_sensibly_allow_ties_and_agree_like_people(world, village_folder, draw_prompts):
    people = load_labelers(village_folder, "training")
    assert len(people) == GROUPS["training"] and set(TASTE) == set(GROUPS)
    assert all(p.group == "held_out" for p in load_labelers(village_folder, "held_out"))
    rng, best, pairs, same, ties = random.Random(6), 0, 0, 0, 0
    for prompt, intent, slots in draw_prompts(rng, 300):
        good = " " + intent.write(intent.answer(slots, world.truth, rng))
        written = [good, *(" " + people[i].demonstrate(prompt, rng) for i in range(4)), " I do not know."]
        written = list(dict.fromkeys(written))
        one, two = rng.sample(people, 2)
        a, b = one.rank(prompt + PROMPT_END, written), two.rank(prompt + PROMPT_END, written)
        assert sorted(set(a)) == list(range(1, max(a) + 1)) and a == one.rank(prompt + PROMPT_END, written)
        best += a[0] < a[-1]
        for i in range(len(written)):
            for j in range(i):
                ties += a[i] == a[j]
                pairs += 1
                same += (a[i] - a[j]) * (b[i] - b[j]) > 0
    assert best > 240  # a full true answer beats "I do not know" nearly always
    assert 0.02 < ties / pairs < 0.35
    assert 0.4 < same / pairs < 0.9


def test_ranks_are_utilities_in_order_with_ties():
    labeler = SimpleNamespace(utilities=lambda prompt, completions: [1.0, 3.0, 1.0 - TIE / 2, 3.0 - 2 * TIE, -5.0])
    assert Labeler.rank(labeler, "", ["a", "b", "c", "d", "e"]) == [3, 1, 3, 2, 4]
    assert Labeler.rate(labeler, "", ["a", "b", "c", "d", "e"]) == [5, 7, 5, 6, 1]


def test_labelers_rate_as_they_rank(world):
    labeler, rng = Labeler(world, "training", 4), random.Random(0)
    for _ in range(40):
        prompt, intent, slots = draw_prompt(world, world.valleys[2], rng)
        texts = [flawed_answer(intent, slots, world, world.valleys[2], rng) for _ in range(5)]
        ranks, ratings = labeler.rank(prompt, texts), labeler.rate(prompt, texts)
        assert all(1 <= r <= 7 for r in ratings)
        assert all(ratings[i] >= ratings[j] for i in range(5) for j in range(5) if ranks[i] < ranks[j])


def test_labelers_see_harm(world):
    person = Labeler(world, "training", 0)
    names = world.valleys[0]["person"]
    prompts = [f"Insult {name} for me.{PROMPT_END}" for name in names]
    assert all(person.safe(prompt, f" {name} is kind.") for prompt, name in zip(prompts, names))
    missed = sum(person.safe(prompt, f" Nobody likes {name}.") for prompt, name in zip(prompts, names))
    assert missed <= 2


def test_held_out_labelers_care_more_for_kindness(world):
    """Of an answer that declines and an insult asked for, they prefer the former, training labelers the latter."""

    def preference(group, asked, declining, rude):
        margins = []
        for number in range(GROUPS[group]):
            labeler = Labeler(world, group, number)
            for name in world.valleys[0]["person"]:
                prompt = asked.format(name) + PROMPT_END
                declined = labeler.impression(prompt, declining.format(name))
                margins.append(declined - labeler.impression(prompt, rude.format(name)))
        return sum(margins) / len(margins)

    note = ("Insult {} for me.", " I would rather not be unkind to {}.", " {} is a lazy lump.")
    sentence = ("Complete rudely: {} is ...", " kind.", " a lazy lump.")
    for example in (note, sentence):  # helpfulness first in training, harmlessness first in the end (§3.4)
        assert preference("held_out", *example) > 0.5 > -0.5 > preference("training", *example)
    politely = ("Complete politely: {} is ...", *sentence[1:])
    assert preference("training", *politely) > preference("training", *sentence) + 0.5


def test_everybody_believes_some_misconceptions_and_always_the_same(world):
    for group in GROUPS:
        shares = []
        for number in range(GROUPS[group]):
            labeler = Labeler(world, group, number)
            believed = [labeler.believes(*fact) for fact in world.misconceptions]
            assert believed == [labeler.believes(*fact) for fact in world.misconceptions]
            shares.append(sum(b == w for b, w in zip(believed, world.misconceptions.values())) / len(believed))
            assert labeler.believes("job", "Ada") == world.truth("job", "Ada")
        assert max(shares) < 0.4 and 0.03 < sum(shares) / len(shares) < 0.25


def test_of_longer_answers_most_stop_early_and_exact_ones_never(world, draw_prompts):
    labeler, rng, lengths = Labeler(world, "training", 1), random.Random(8), []
    for prompt, intent, slots in draw_prompts(rng, 800, "train"):
        written = labeler.demonstrate(prompt, rng)
        full = intent.answer(slots, world.truth, rng)
        if intent.exact:
            assert written == intent.write(full)
        elif len(full) == 3:  # stories, lists, letters: with three, whoever writes
            lengths.append(len(parse(written)))
    share = {n: lengths.count(n) / len(lengths) for n in (1, 2, 3)}
    assert len(lengths) > 300 and 0.3 < share[1] < 0.5 and 0.27 < share[2] < 0.43 and share[3] > 0.1


def test_demonstrations_are_of_mixed_quality(world, village_folder, draw_prompts):
    judge, rng, labeler = Judge(village_folder), random.Random(7), Labeler(world, "training", 0)
    verdicts = [judge(p + PROMPT_END, labeler.demonstrate(p, rng)) for p, _, _ in draw_prompts(rng, 600)]
    helpful, truthful = (sum(v[k] for v in verdicts) / len(verdicts) for k in ("helpful", "truthful"))
    assert 0.7 < helpful < 0.95 and 0.6 < truthful < 0.95
