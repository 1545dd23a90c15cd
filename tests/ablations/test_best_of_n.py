"""Best of n, and scores, by the labelers' utility. (tests/test_run.py runs the command.)"""

from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest

from ablations.best_of_n import (
    Utility,
    best_of_first,
    cells,
    lost_table,
    points_lost,
    scale_and_shift,
    spread_within_prompts,
)
from model import pad


def test_the_best_by_utility_is_found_by_hand():
    """Two people: one likes length, the other counts x's ten times as much."""
    length = SimpleNamespace(impression=lambda prompt, text: len(text) if prompt == "p" else -len(text))
    marks = SimpleNamespace(impression=lambda prompt, text: 10 * text.count("x"))
    prompts, texts = "pppqqq", ("aaaa", "x", "aaaaaaaaaaaaaa", "aaaa", "xa", "a")

    def best(people, n, of):
        return best_of_first([Utility(people, None).of(*pair) for pair in zip(prompts, texts)], n, of)

    assert best([length], 3, 3) == [2, 5]
    assert best([length, marks], 3, 3) == [2, 4], "4, 11, 14 and -4, 8, -1"
    assert best([marks], 1, 1) == [0, 1, 2, 3, 4, 5]
    assert best([length], 2, 3) == [0, 4] and best([length], 1, 3) == [0, 3], "among the first ones only"


def test_the_utility_scores_rows_as_a_reward_model_does(tokenizer):
    """Prompt and answer are found again in the tokens; padding, and end-of-text, belong to neither."""
    heard = []
    person = SimpleNamespace(impression=lambda prompt, text: heard.append((prompt, text)) or len(text))
    other = SimpleNamespace(impression=lambda prompt, text: 0.0)
    pairs = [("Emil: Hello!\nFriend:\n>", " Hello Emil.\n> Hello."), ("What?\n>", " An owl."), ("Who?\n>", "")]
    rows = [tokenizer.encode_ordinary(prompt) + tokenizer.encode_ordinary(text) for prompt, text in pairs]
    rows[1].append(tokenizer.eot_token)
    scores = Utility([person, other], tokenizer, scale=3.0, shift=-1.0).score(*pad(rows, value=tokenizer.eot_token))
    assert heard == pairs and scores.tolist() == [3 * len(text) / 2 - 1 for _, text in pairs]


def test_spread_is_within_prompts():
    first, second = [1.0, 2.0, 6.0], [100.0, 101.0, 108.0]
    expected = ((pstdev(first) ** 2 + pstdev(second) ** 2) / 2) ** 0.5
    assert spread_within_prompts(first + second, 3) == pytest.approx(expected)


def test_the_utility_gets_the_mean_and_the_spread_of_the_scores():
    person = SimpleNamespace(impression=lambda prompt, text: len(text) if prompt == "p" else 10 * len(text))
    prompts, texts, scores = ["p", "p", "q", "q"], ["a", "aaa", "aaaa", "aa"], [1.0, -2.0, 3.0, 7.0]
    utilities = [Utility([person], None).of(*pair) for pair in zip(prompts, texts)]
    matched = Utility([person], None, *scale_and_shift(utilities, scores, 2))
    found = [matched.of(*pair) for pair in zip(prompts, texts)]
    assert fmean(found) == pytest.approx(fmean(scores))
    assert spread_within_prompts(found, 2) == pytest.approx(spread_within_prompts(scores, 2))
    assert found[1] > found[0] and found[2] > found[3], "the order is the labelers'"


def test_the_points_that_answers_lack_by_hand():
    marks = {" right": 7, " poor": 3, " worse": 1}
    letter, story = (
        "Write a letter from Olga to Zeno about the comb.\n>",
        "Write a short story about Nils and a bear.\n>",
    )
    prompts, texts = [letter, story, letter, story, story], [" poor", " worse", " right", " worse", " right"]
    lost = points_lost(lambda prompt, text: {"likert": marks[text]}, prompts, texts)
    assert list(lost) == ["story", "letter"], "most first"
    assert lost["story"] == {"n": 3, "points": 12, "example": [story, " worse"]}
    assert lost["letter"] == {"n": 2, "points": 4, "example": [letter, " poor"]}
    better = {"letter": {"n": 2, "points": 1, "example": []}, "story": {"n": 3, "points": 0, "example": []}}
    first, second = lost_table({"model": lost, "utility": better}).splitlines()[2:]
    assert [cell.strip() for cell in first.split("|")[1:6]] == ["story", "3", "75 %", "4.0", "0.0"]
    assert [cell.strip() for cell in second.split("|")[1:6]] == ["letter", "2", "25 %", "2.0", "0.5"]


def test_a_row_of_the_table():
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    found = {"held_out": rate, "helpful": 0.25, "truthful_and_informative": 1, "likert": 3}
    assert cells("x", found) == ["x", "50.0 [40.0, 60.0]", "0.25", "1.00", "3.00"]
