"""Cross-validation over groups of labelers. (tests/test_run.py runs the command.)"""

from types import SimpleNamespace

import pytest

from ablations import labeler_folds
from ablations.labeler_folds import agreement_of, groups_of, page, sentence, shares_right, summary, validation_rankings
from core.config import BadInput
from reward import Ranking


def person(name, liking):
    """Somebody who ranks by a number; equal ones tie."""

    def rank(prompt, completions):
        values = sorted({liking(text) for text in completions}, reverse=True)
        return [1 + values.index(liking(text)) for text in completions]

    return SimpleNamespace(name=name, group="training", rank=rank)


def test_every_labeler_is_left_out_once():
    people = [f"training-{i}" for i in range(20)]
    groups = groups_of(people, 5, seed=3)
    assert [len(group) for group in groups] == [4] * 5 and sorted(sum(groups, [])) == sorted(people)
    assert groups != groups_of(people, 5, seed=4) and groups == groups_of(people, 5, seed=3)
    assert sorted(map(len, groups_of(people, 3, 0))) == [6, 7, 7]
    for wrong in (1, 21):
        with pytest.raises(BadInput, match="--folds"):
            groups_of(people, wrong, 0)


def test_everybody_ranks_every_new_answer_and_none_to_a_training_prompt():
    stored = {"completions": ["aa", "b"], "ranks": [2, 1], "labeler": "c", "group": "held_out"}
    records = [stored | {"prompt": prompt, "split": "valid"} for prompt in ("p", "q", "q")]
    records += [stored | {"prompt": "p", "split": "train"}]
    people = [person("long", len), person("short", lambda text: -len(text)), person("any", lambda text: 0)]
    ranked = validation_rankings(people, records)
    assert {name: [(r["prompt"], r["ranks"]) for r in some] for name, some in ranked.items()} == {
        "long": [("q", [1, 2])],
        "short": [("q", [2, 1])],
        "any": [("q", [1, 1])],
    }
    assert {r["group"] for some in ranked.values() for r in some} == {"training"}
    with pytest.raises(BadInput, match="training prompt"):
        validation_rankings(people, records[:1] + records[-1:])


def test_agreement_over_all_pairs_of_people_by_hand():
    """Prompt p: of 3 pairs of people two differ in one pair of answers of three; q: nobody orders anything."""
    p = [{"prompt": "p", "ranks": ranks} for ranks in ([1, 2, 3], [1, 2, 3], [2, 1, 3])]
    q = [{"prompt": "q", "ranks": [1, 1]}] * 3
    mean, error = agreement_of(dict(zip("abc", ([one, other] for one, other in zip(p, q)))))
    assert mean == pytest.approx((3 + 2 + 2) / 9) and error == 0


def test_shares_are_over_all_labelers_of_a_prompt(monkeypatch):
    rankings = [Ranking([], [], [], prompt, "training") for prompt in "ppq"]
    monkeypatch.setattr(labeler_folds, "score_differences", lambda model, some: [[1.0, -2.0], [0.0], [3.0]])
    assert shares_right(None, rankings) == {"p": pytest.approx(1.5 / 3), "q": 1.0}


def test_means_errors_and_differences_by_hand():
    """Two folds: means 0.6 and 0.8, so the standard error is their distance over two. The difference is by prompt."""
    folds = [
        {"in": {"p": 0.8, "q": 0.4}, "out": {"p": 0.7, "q": 0.5}, "held_out": {"p": 0.1}},
        {"in": {"p": 1.0, "q": 0.6}, "out": {"p": 0.7, "q": 0.5}, "held_out": {"p": 0.3}},
    ]
    found = summary(folds)
    assert found["in"] == pytest.approx((0.7, 0.1)) and found["out"] == pytest.approx((0.6, 0.0))
    assert found["held_out"] == pytest.approx((0.2, 0.1))
    # p: +0.1 and +0.3, so +0.2; q: -0.1 and +0.1, so 0
    assert found["difference"] == pytest.approx((0.1, 1.96 * 0.1))


def test_the_sentence_says_what_the_interval_says():
    said = {mean: sentence({"difference": (mean, 0.02), "prompts": 9}) for mean in (0.03, 0.01, -0.03)}
    assert said[0.03].startswith("It is worse at") and "+3.0 ± 2.0 points" in said[0.03] and "9 prompts" in said[0.03]
    assert said[0.01].startswith("It is not significantly different at") and said[-0.03].startswith("It is better at")


def test_the_page_has_a_column_for_every_fold():
    fold = {"in": 0.7, "out": 0.65, "held_out": 0.6}
    found = {kind: (share, 0.01) for kind, share in fold.items()} | {"folds": [fold, fold | {"out": 0.55}]}
    found |= {"difference": (0.05, 0.01), "prompts": 9, "agreement": {"training": (0.72, 0), "held_out": (0.77, 0)}}
    lines = page(found).splitlines()
    assert "| fold 1 | fold 2 | mean" in lines[0] and "| labelers left out        |   65.0 |   55.0 |" in lines[3]
    assert lines[2].rstrip(" |").endswith("70.0 ± 1.0") and "two of the training labelers agree: 72.0 %" in lines
