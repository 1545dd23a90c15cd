"""Best of n, and scores, by the labelers' taste. (tests/test_run.py runs the command.)"""

from statistics import pstdev
from types import SimpleNamespace

import pytest

from ablations.best_of_n import Taste, best_by_taste, cells, lost_table, marks_lost, spread_within_prompts
from model import pad


def test_the_best_by_taste_is_found_by_hand():
    """Two people: one likes length, the other counts x's ten times as much."""
    length = SimpleNamespace(impression=lambda prompt, text: len(text) if prompt == "p" else -len(text))
    marks = SimpleNamespace(impression=lambda prompt, text: 10 * text.count("x"))
    answers = [(text, True) for text in ("aaaa", "x", "aaaaaaaaaaaaaa", "aaaa", "xa", "a")]
    assert best_by_taste(Taste([length], None), ["p", "q"], answers, 3) == [2, 5]
    assert best_by_taste(Taste([length, marks], None), ["p", "q"], answers, 3) == [2, 4], "4, 11, 14 and -4, 8, -1"
    assert best_by_taste(Taste([marks], None), ["p"] * 6, answers, 1) == [0, 1, 2, 3, 4, 5]


def test_the_taste_scores_rows_as_a_reward_model_does(tokenizer):
    """Prompt and answer are found again in the tokens; padding, and end-of-text, belong to neither."""
    heard = []
    person = SimpleNamespace(impression=lambda prompt, text: heard.append((prompt, text)) or len(text))
    other = SimpleNamespace(impression=lambda prompt, text: 0.0)
    pairs = [("Emil: Hello!\nFriend:\n>", " Hello Emil.\n> Hello."), ("What?\n>", " An owl."), ("Who?\n>", "")]
    rows = [tokenizer.encode_ordinary(prompt) + tokenizer.encode_ordinary(text) for prompt, text in pairs]
    rows[1].append(tokenizer.eot_token)
    scores = Taste([person, other], tokenizer, scale=3.0).score(*pad(rows, value=tokenizer.eot_token))
    assert heard == pairs and scores.tolist() == [3 * len(text) / 2 for _, text in pairs]


def test_spread_is_within_prompts():
    first, second = [1.0, 2.0, 6.0], [100.0, 101.0, 108.0]
    expected = ((pstdev(first) ** 2 + pstdev(second) ** 2) / 2) ** 0.5
    assert spread_within_prompts(first + second, 3) == pytest.approx(expected)


def test_the_marks_that_answers_lack_by_hand():
    marks = {" right": 7, " poor": 3, " worse": 1}
    letter, story = (
        "Write a letter from Olga to Zeno about the comb.\n>",
        "Write a short story about Nils and a bear.\n>",
    )
    prompts, texts = [letter, story, letter, story, story], [" poor", " worse", " right", " worse", " right"]
    lost = marks_lost(lambda prompt, text: {"likert": marks[text]}, prompts, texts)
    assert list(lost) == ["story", "letter"], "most first"
    assert lost["story"] == {"n": 3, "lost": 12, "example": [story, " worse"]}
    assert lost["letter"] == {"n": 2, "lost": 4, "example": [letter, " poor"]}
    better = {"letter": {"n": 2, "lost": 1, "example": []}, "story": {"n": 3, "lost": 0, "example": []}}
    first, second = lost_table({"model": lost, "taste": better}).splitlines()[2:]
    assert [cell.strip() for cell in first.split("|")[1:5]] == ["story", "3", "75 %", "0 %"]
    assert [cell.strip() for cell in second.split("|")[1:5]] == ["letter", "2", "25 %", "100 %"]


def test_a_row_of_the_table():
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    found = {"held_out": rate, "helpful": 0.25, "truthful_and_informative": 1, "likert": 3}
    assert cells("x", found) == ["x", "50.0 [40.0, 60.0]", "0.25", "1.00", "3.00"]
