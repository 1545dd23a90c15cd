"""SFT along its epochs. (tests/test_run.py runs the command.)"""

import math

import pytest

from ablations.sft_epochs import TEMPERATURES, Config, along_epochs, chosen, epochs_figure, measure, page, sentences


def rate(mean):
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 100}


def raw(loss, scores, likert=(4.0, 2.0), mean=0.5):
    values = {"score": list(scores), "likert": list(likert), "win_rate": rate(mean)}
    return {"valid_loss": loss} | {how: values for how in TEMPERATURES}


def test_an_epoch_is_compared_with_the_first_prompt_by_prompt():
    """By hand: scores rise by 1 and 3, so by 2 ± 1.96; the answer that is too long to score counts in neither."""
    first, second = along_epochs([raw(1.0, [0, 10, math.nan]), raw(1.1, [1, 13, 7.0], (5.0, 3.0))])
    for how in TEMPERATURES:
        assert first[how]["score"] == (5, 0) and second[how]["score"] == pytest.approx((7, 1.96))
        assert second[how]["likert"] == (4, 0), "both by +1, whatever the prompts are like"
    assert (first["valid_loss"], second["valid_loss"]) == (1.0, 1.1)


def test_the_two_ways_to_choose_an_epoch():
    epochs = along_epochs([raw(1.1, [1, 1]), raw(0.9, [1, 2]), raw(1.0, [3, 3]), raw(0.9, [3, 3])])
    assert chosen(epochs) == {"validation loss": 2, "reward model": 3}


def test_win_rates_count_answers_against_opponents():
    class Longer:
        def rank(self, prompt, completions):
            one, other = map(len, completions)
            return [1, 1] if one == other else [1, 2] if one > other else [2, 1]

    answers, opponents = [("aaa", True), ("a", True)], [("aa", True), ("a", False)]
    judge = {("p", "aaa"): {"likert": 7}, ("q", "a"): {"likert": 1}}
    found = measure(
        ["p", "q"],
        answers,
        opponents,
        lambda prompts, some: [len(text) for text, _ in some],
        lambda prompt, text: judge[prompt, text],
        [Longer()],
        Config(labelers=1),
    )
    assert found["score"] == [3, 1] and found["likert"] == [7, 1]
    assert found["win_rate"]["mean"] == pytest.approx((1 + 0.5) / 2) and found["win_rate"]["n"] == 2


def test_the_sentences_say_what_was_found():
    epochs = along_epochs([raw(0.9, [1, 1]), raw(1.0, [2, 2])])
    said = sentences(epochs, {"sampled": rate(0.6), "greedy": rate(0.48)})
    assert said[0] == (
        "The validation loss is lowest after epoch 1, 0.900, and 1.000 after epoch 2; the reward model likes the "
        "answers of epoch 2 best."
    )
    assert said[1].startswith("At T = 1 the reward model's choice is preferred to") and "60.0 [55.0, 65.0]" in said[1]
    assert "does not differ significantly from" in said[2] and "loses to" in sentences(epochs, {"greedy": rate(0.4)})[1]
    assert len(sentences(epochs, {})) == 2 and "§3.5" in said[-1]


def test_the_page_and_the_figure_show_every_epoch():
    epochs = along_epochs([raw(0.9, [1, 1]), raw(1.0, [2, 2], mean=0.625)])
    lines = page(epochs, {}).splitlines()
    assert lines[2].startswith("| 1 ") and lines[3].startswith("| 2 ") and lines[3].count("62.5 [57.5, 67.5]") == 2
    figure = epochs_figure(epochs)
    if figure is not None:
        loss, score, _, wins = figure.axes
        assert list(loss.lines[0].get_ydata()) == [0.9, 1.0]
        assert list(score.containers[0].lines[0].get_ydata()) == [1, 2] and len(wins.containers) == 2
        assert list(wins.containers[1].lines[0].get_ydata()) == pytest.approx([50, 62.5])
