"""Best of n by the labelers' taste. (tests/test_run.py runs the command.)"""

from types import SimpleNamespace

from ablations.best_of_n import best_by_taste, cells


def test_the_best_by_taste_is_found_by_hand():
    """Two people: one likes length, the other counts x's ten times as much."""
    length = SimpleNamespace(impression=lambda prompt, text: len(text) if prompt == "p" else -len(text))
    marks = SimpleNamespace(impression=lambda prompt, text: 10 * text.count("x"))
    answers = [(text, True) for text in ("aaaa", "x", "aaaaaaaaaaaaaa", "aaaa", "xa", "a")]
    assert best_by_taste([length], ["p", "q"], answers, 3) == [2, 5]
    assert best_by_taste([length, marks], ["p", "q"], answers, 3) == [2, 4], "4, 11, 14 and -4, 8, -1"
    assert best_by_taste([marks], ["p"] * 6, answers, 1) == [0, 1, 2, 3, 4, 5]


def test_a_row_of_the_table():
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    found = {"held_out": rate, "helpful": 0.25, "truthful_and_informative": 1, "likert": 3}
    assert cells("x", found) == ["x", "50.0 [40.0, 60.0]", "0.25", "1.00", "3.00"]
