"""Ablations of the reward model. (tests/test_run.py runs the commands.)"""

import math

import pytest
import torch
import torch.nn.functional as F

from ablations import reward_models
from ablations.reward_models import (
    DEFAULTS,
    PAPER,
    Config,
    at_equal_cost,
    compared,
    cut_down,
    losses_and_accuracies,
    measure,
    page,
    reward_figure,
    sentences,
    values_of,
    variants,
)
from core.config import BadInput
from reward import Ranking, pairwise_loss, score_differences


def record(prompt, K, split="train"):
    texts = [f"{prompt} {i}" for i in range(K)]
    return {
        "prompt": prompt,
        "completions": texts,
        "ranks": [K - i for i in range(K)],
        "ended": [True] * K,
        "split": split,
    }


def test_values_are_read_in_order_or_refused():
    assert values_of(Config(vary="K")) == [2, 3, 4, 6] and values_of(Config(vary="epochs", values="4, 1")) == [1, 4]
    assert values_of(Config(vary="size", values="0.6M,50k")) == ["50k", "0.6M"]
    assert values_of(Config(vary="pairs")) == ["together", "shuffled"] and set(DEFAULTS) == set(PAPER)
    for vary, wrong in {"K": "1,2", "epochs": "0,1", "size": "7B,50k", "pairs": "together"}.items():
        with pytest.raises(BadInput, match=f"--values {wrong}"):
            values_of(Config(vary=vary, values=wrong))
    for wrong in ("2", "2,2", "a,2", "2,,3"):
        with pytest.raises(BadInput, match="--values"):
            values_of(Config(vary="K", values=wrong))


def test_every_k_costs_the_same_answers_of_the_same_prompts():
    records = [record(f"p{i}", 2 + i % 6) for i in range(60)]
    large = {r["prompt"] for r in records if len(r["completions"]) >= 6}
    cut = at_equal_cost(records, [2, 3, 4, 6], seed=0)
    answers = {k: sum(len(r["completions"]) for r in some) for k, some in cut.items()}
    assert len(cut[2]) == len(large) == 20 and max(answers.values()) == 40 and min(answers.values()) > 40 - 6
    for k, some in cut.items():
        assert {len(r["completions"]) for r in some} == {k} and {r["prompt"] for r in some} <= large
        for r in some:
            for text, rank in zip(r["completions"], r["ranks"]):  # what the labeler said of it, wherever it stands now
                original = record(r["prompt"], 7)
                size = next(len(o["completions"]) for o in records if o["prompt"] == r["prompt"])
                assert rank == size - original["completions"].index(text)
    for two, three in zip(cut[2], cut[3]):
        assert set(two["completions"]) < set(three["completions"])
    with pytest.raises(BadInput, match="smaller K"):
        at_equal_cost(records, [2, 9], seed=0)


def test_a_ranking_is_cut_down_in_all_its_lists():
    whole = record("p", 4) | {"ratings": [1, 2, 3, 4], "labeler": "a"}
    cut = cut_down(whole, [2, 0])
    assert cut["completions"] == ["p 2", "p 0"] and cut["ranks"] == [2, 4] and cut["ratings"] == [3, 1]
    assert cut["ended"] == [True, True] and cut["labeler"] == "a" and len(whole["ranks"]) == 4


def test_what_differs_between_the_models(tmp_path):
    records = [record(f"p{i}", 6) for i in range(30)]
    ks = variants(Config(vary="K", rankings=24), tmp_path, records)
    assert [v.settings["batch_size"] * k for v, k in zip(ks, (2, 3, 4, 6))] == [24] * 4
    assert [len(v.records) for v in ks] == [24, 16, 12, 8], "answers in all: 48 each; so are the steps: 2"
    together, shuffled = variants(Config(vary="pairs", rankings=9), tmp_path, records)
    assert together.records == shuffled.records == records[:9]
    assert (together.settings, shuffled.settings) == ({"shuffle_pairs": False}, {"shuffle_pairs": True})
    epochs = variants(Config(vary="epochs"), tmp_path, records)
    assert [(v.title, v.settings["epochs"]) for v in epochs] == [("1 epoch", 1), ("2 epochs", 2), ("4 epochs", 4)]


def test_sizes_that_are_not_there_are_left_out(tmp_path, capsys):
    (tmp_path / "ppo_init.pt").touch()
    with pytest.raises(BadInput, match="python ablations/sizes.py"):
        variants(Config(vary="size"), tmp_path, [])
    (tmp_path / "sizes" / "50k").mkdir(parents=True)
    (tmp_path / "sizes" / "50k" / "ppo_init.pt").touch()
    capsys.readouterr()
    found = variants(Config(vary="size"), tmp_path, [])
    assert [v.title for v in found] == ["50k", "0.6M"] and found[0].settings["init"].endswith("50k/ppo_init.pt")
    assert "0.2M is left out" in capsys.readouterr().out


class Lengths(torch.nn.Module):
    """A "reward model" that likes large ids."""

    config = type("Config", (), {"block_size": 9})

    def __init__(self):
        super().__init__()
        self.transformer = torch.nn.ModuleDict({"wte": torch.nn.Embedding(1, 1)})

    def score(self, tokens, lengths):
        return tokens.float().amax(dim=1) / 10


def test_losses_are_eq_1_and_means_over_prompts():
    rows = [[1], [5], [9], [5]]
    rankings = [
        Ranking(rows[:3], [2, 1, 2], [], "p", "training"),
        Ranking(rows[:3], [3, 2, 1], [], "p", "training"),
        Ranking(rows[1:], [1, 2, 3], [], "q", "training"),
    ]
    model = Lengths()
    found = losses_and_accuracies(model, rankings)
    scores = torch.tensor([0.1, 0.5, 0.9])
    first, second = [pairwise_loss(scores, torch.tensor(r.ranks)).item() for r in rankings[:2]]
    assert found["p"] == pytest.approx(((2 * first + 3 * second) / 5, 4 / 5)), "two pairs, and three; one is wrong"
    by_hand = [F.softplus(-torch.tensor(d)).item() for d in (-0.4, 0.0, 0.4)]  # 5 over 9, 5 over 5, 9 over 5
    assert found["q"] == pytest.approx((sum(by_hand) / 3, 1.5 / 3))
    assert [len(pairs) for pairs in score_differences(model, rankings)] == [2, 3, 3]


def test_differences_are_paired_by_prompt(monkeypatch):
    """By hand: both prompts lose 0.1, so the error of the difference is 0 though the prompts differ."""
    monkeypatch.setattr(reward_models, "losses_and_accuracies", lambda model, rankings: rankings)
    model = torch.nn.Linear(2, 1)
    first = measure(model, {"s": (0.2, 0.9)}, {"p": (0.6, 0.7), "q": (0.2, 0.9)})
    assert first["parameters"] == 3 and first["loss_seen"] == (0.2, 0) and "loss_difference" not in first
    assert first["loss_new"] == pytest.approx((0.4, 1.96 * 0.2)) and first["accuracy_new"][0] == pytest.approx(0.8)
    found = measure(model, {"s": (0.1, 1.0)}, {"q": (0.3, 0.8), "p": (0.7, 0.7)}, first)
    assert found["loss_difference"] == pytest.approx((0.1, 0), abs=1e-9)
    assert found["accuracy_difference"] == pytest.approx((-0.05, 1.96 * 0.05))


def found(loss, seen, difference=None, error=0.01):
    model = {
        "loss_new": (loss, 0.02),
        "loss_seen": (seen, 0.03),
        "accuracy_new": (0.7, 0.02),
        "accuracy_seen": (0.75, 0.03),
    }
    model |= {"parameters": 50_000, "rankings": 9, "answers": 36, "pairs": 54, "steps": 3}
    if difference is not None:
        model |= {"loss_difference": (difference, error), "accuracy_difference": (-0.02, 0.01)}
    return model


def test_the_sentences_say_what_the_intervals_say():
    assert compared((0.5, 0.1), ".1f") == "higher by 0.5 ± 0.1" and compared((-3, 1), ".1f", " points") == (
        "lower by 3.0 ± 1.0 points"
    )
    assert compared((-0.1, 0.2), ".2f") == "not different (-0.10 ± 0.20)"
    models = {"1 epoch": found(0.6, 0.55), "2 epochs": found(0.7, 0.5, 0.1), "4 epochs": found(0.6, 0.5, 0.005)}
    two, four, paper = sentences("epochs", models)
    assert "loss is higher by 0.100 ± 0.010" in two and "accuracy lower by 2.0 ± 1.0 points" in two
    assert two.endswith("so it overfits.") and four.endswith("so no significant overfitting.") and "App. C.2" in paper
    worse_everywhere = sentences("epochs", {"1 epoch": found(0.6, 0.55), "2 epochs": found(0.7, 0.6, 0.1)})
    assert worse_everywhere[0].endswith("so no significant overfitting."), "it has not even learned what it saw"
    assert "overfit" not in sentences("K", models)[0]


def test_the_page_and_the_figure_show_every_model():
    models = {"K = 2": found(0.6, 0.55), "K = 6": found(0.7, 0.5, 0.1)}
    text = page("K", models)
    assert text.count("| K = ") == 2 and "| 0.700 ± 0.020 |" in text and text.count(" 75.0 ± 3.0 |") == 2
    figure = reward_figure(models)
    if figure is not None:
        loss, accuracy = figure.axes
        assert [label.get_text() for label in loss.get_xticklabels()] == list(models)
        assert list(loss.containers[1].lines[0].get_ydata()) == pytest.approx([0.6, 0.7])
        assert list(accuracy.containers[0].lines[0].get_ydata()) == pytest.approx([75, 75])
        assert math.isclose(loss.containers[1].lines[0].get_xdata()[0], 0.08)
