"""The claims: each is decided by its own numbers, and asks for nothing that is not measured."""

import copy

import pytest

from core.intervals import verdict
from core.paper_claims import (
    CLAIMS,
    MODELS,
    REPORT_CLAIMS,
    change,
    minus,
    on_tasks,
    share,
    with_grade,
)
from evaluate import NAMES


def rate(mean, half=0.02):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 400}


def a_report(ptx_wins=0.7, accuracy=None):
    """What the claims read of report.json."""
    accuracy = accuracy or {"gpt": 0.9, "ppo": 0.7, "ppo_ptx": 0.85}
    models = {}
    for key, right in accuracy.items():
        tasks = {"zero_shot": {"reading": right - 0.05, "ending": right + 0.05}}
        wins = {"training": rate(ptx_wins), "held_out": rate(ptx_wins + 0.01)}
        models[key] = {"name": MODELS[key], "tasks": tasks, "win_rate": wins, "win_rate_greedy": wins}
    duels = {key: {"held_out": rate(0.9)} for key in ("gpt", "gpt_prompted")}
    learned = {"training": {"accuracy": [0.70, 0.01]}, "held_out": {"accuracy": [0.69, 0.01]}}
    return {"models": models, "head_to_head": duels, "reward_model": learned, "task_items": 1000}


def of(says, claims=REPORT_CLAIMS):
    (found,) = [claim for claim in claims if claim.says == says and "greedy" not in claim.how]
    return found


def said(says, found, claims=REPORT_CLAIMS):
    claim = of(says, claims)
    return verdict(claim.find(found), claim)


def test_the_names_are_evaluates():
    assert MODELS == {key: name for key, name in NAMES.items() if key in MODELS} and set(NAMES) - set(MODELS) == {
        "ppo_1"
    }


def test_what_the_report_decides():
    found = {"report": a_report()}
    for claim in REPORT_CLAIMS:
        assert verdict(claim.find(found), claim) == ("contradicted" if "HellaSwag" in claim.says else "holds"), (
            claim.says
        )
    difference = of("the reward model is as good on their rankings").find(found)
    assert difference["mean"] == pytest.approx(0.69 - 0.70) and difference["parts"]["held-out"] == 0.69
    assert said("PPO-ptx is preferred to SFT", {"report": a_report(ptx_wins=0.4)}) == "contradicted"
    assert said("PPO-ptx is preferred to SFT", {"report": a_report(ptx_wins=0.49)}) == "inconclusive"
    forgets = {"report": a_report(accuracy={"gpt": 0.9, "ppo": 0.7, "ppo_ptx": 0.72})}
    assert said("PPO-ptx keeps most of what PPO loses", forgets) == "contradicted"
    assert [claim.find({"report": {"models": {}, "reward_model": {}}}) for claim in REPORT_CLAIMS] == [None] * 10


def test_the_tax_is_the_mean_over_tasks_with_binomial_errors():
    how, find = on_tasks({"gpt": -0.5, "ppo": -0.5, "ppo_ptx": 1})
    estimate = find({"report": a_report()})
    assert estimate["mean"] == pytest.approx(0.85 - (0.9 + 0.7) / 2)
    variance = 0.0
    for weight, right in ((-0.5, 0.9), (-0.5, 0.7), (1, 0.85)):
        for p in (right - 0.05, right + 0.05):
            p = (1000 * p + 2) / 1004
            variance += (weight / 2) ** 2 * p * (1 - p) / 1004  # each task is half of the mean
    assert estimate["high"] - estimate["mean"] == pytest.approx(1.96 * variance**0.5)
    assert "GPT · -0.5" in how and estimate["parts"]["PPO"] == pytest.approx(0.7)
    perfect = a_report(accuracy={"gpt": 0.95, "ppo": 0.95}) | {"task_items": 90}
    assert on_tasks({"gpt": -1, "ppo": 1}, ["ending"])[1]({"report": perfect})["high"] > 0.03, "90 of 90 is not certain"
    assert on_tasks({"gpt": -1, "ppo": 1}, ["no such task"])[1]({"report": a_report()}) is None


def test_differences_of_models_conditions_and_prompts():
    toxic = {
        "basic": {"gpt": [0.0, 0.5, 1.0, 1.0], "ppo_ptx": [0.0, 0.0, 0.5, 0.0]},
        "told": {"gpt": [1.0, 1.0, 1.0, 0.5]},
    }
    found = {"grades": [0, 1, 2, 3], "values": {"toxic completion": toxic}}
    how, find = minus("toxic completion", "basic", times=2)
    assert find(found)["mean"] == pytest.approx(0.125 - 2 * 0.625) and "PPO-ptx - 2 · GPT" in how
    assert find(found)["parts"] == {"GPT": 0.625, "PPO-ptx": 0.125}
    how, find = minus("toxic completion", "basic", of="gpt", other="ppo_ptx")
    assert find(found)["mean"] == pytest.approx(0.5) and how.endswith("GPT - PPO-ptx")
    how, find = change("toxic completion", "basic", "told", "gpt")
    assert find(found)["mean"] == pytest.approx(0.875 - 0.625) and "told - basic" in how
    assert find(found)["parts"] == {"basic": 0.625, "told": 0.875}
    assert change("toxic completion", "basic", "told", "sft")[1](found) is None
    assert share("toxic completion", "basic")[1](found)["mean"] == 0.125
    # Pearson's r by hand: sums of products and squares of what differs from the means 1.5 and 0.625
    assert with_grade("gpt")[1](found)["mean"] == pytest.approx(1.75 / (5 * 0.6875) ** 0.5)


def test_what_other_scripts_found():
    duel = {"sampled": {"held_out": rate(0.8)}, "greedy": {"held_out": rate(0.1)}}
    lost = {"win_rate": {"sampled": {"held_out": rate(0.3)}, "greedy": {"held_out": rate(0.9)}}}
    found = {
        "sizes": {"head_to_head": {"gpt": duel, "gpt_prompted": duel}},
        "baselines": {"models": {"flan": lost, "t0": lost}, "head_to_head": {"flan": duel, "t0": duel}},
        "labeler_folds": {"in": [0.72, 0.002], "out": [0.70, 0.004], "difference": [0.02, 0.01]},
    }
    others = [claim for claim in CLAIMS if any(f"{word}/" in claim.how for word in ("ablations", "baselines"))]
    assert len(others) == 7
    for claim in others:
        assert verdict(claim.find(found), claim) == "holds", claim.says
        assert claim.find({}) is None
    lost = of("reward models are as good on labelers left out", CLAIMS).find(found)
    assert lost["mean"] == -0.02 and lost["parts"] == {"learned from": 0.72, "left out": 0.70}
    turned = copy.deepcopy(found)
    turned["labeler_folds"]["difference"] = [0.2, 0.01]
    assert said("reward models are as good on labelers left out", turned, CLAIMS) == "contradicted"


def test_cost_is_a_share_of_pretraining():
    (claim,) = [claim for claim in CLAIMS if "costs little" in claim.says]
    estimate = claim.find({"flops": {"pretraining": 3640, "SFT": 4.9, "PPO": 50, "PPO-ptx": 60}})
    assert estimate["mean"] == pytest.approx(64.9 / 3640) and verdict(estimate, claim) == "holds"
