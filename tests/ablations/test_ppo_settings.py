"""What each sweep trains, and what is said about it. (tests/test_run.py runs the command.)"""

import json
import math
from dataclasses import asdict
from typing import get_args

import pytest

import ppo
from ablations.ppo_settings import (
    FINDINGS,
    INITS,
    MEASURES,
    Config,
    change,
    checkpoint_of,
    default_settings,
    difference,
    findings,
    main,
    name_of,
    page,
    ppo_config,
    seeds_of,
    settings_figure,
    title_of,
    variants,
)
from core.config import BadInput

SWEEPS = get_args(Config.__dataclass_fields__["vary"].type)


def configs(vary, **more):
    """{value that is varied: its ppo.Config}"""
    cfg = Config(vary=vary, out="o", **more)
    return {s[vary]: ppo_config(cfg, s, 3) for s in variants(cfg)}


# ---------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("vary", SWEEPS)
def test_a_sweep_changes_one_setting_and_what_follows_from_it(vary, quick):
    cfg = Config(vary=vary, out="o", quick=quick)
    default = asdict(ppo_config(cfg, {}, 3))
    follows = {"batch_size": {"iterations", "warmup_iterations", "value_only_iterations"}, "kl_coef": {"ptx_coef"}}
    follows |= {"minibatch_size": {"ema"}, "iterations": {"ema"}}
    follows["batch_size"] |= {"ema"} if quick else set()  # whose iterations cannot be divided as evenly
    seen = []
    for settings in variants(cfg):
        trained = ppo_config(cfg, settings, 3)
        ppo.check_sizes(trained, 160)  # BadInput if sizes do not fit each other
        differ = {key for key, value in asdict(trained).items() if value != default[key]} - {"name"}
        assert differ <= {vary} | follows.get(vary, set())
        assert (trained.name == "seed_3") == (not differ), "the default is trained once for all sweeps"
        seen.append((trained.name, title_of(settings)))
    assert ("seed_3" in dict(seen)) and len(set(seen)) == len(dict(seen)) == len({title for _, title in seen})
    assert set(SWEEPS) == set(FINDINGS)


def test_batches_of_all_sizes_have_as_many_episodes_and_updates():
    found = configs("batch_size")
    assert list(found) == [64, 128, 256, 512, 1024], "the paper's"
    for c in found.values():
        assert c.iterations * c.batch_size == Config.iterations * ppo.Config.batch_size
        assert c.value_only_iterations * c.batch_size == c.warmup_iterations * c.batch_size == 4 * 256
        assert (c.iterations - c.value_only_iterations) * c.batch_size // c.minibatch_size == 224
    assert {c.ema for c in found.values()} == {0.9702} and 0.9702**224 == pytest.approx(0.985**448, rel=0.05)


def test_the_other_sweeps_have_the_values_that_they_should():
    assert list(configs("minibatch_size")) == [8, 16, 32, 64], "the paper's"
    assert list(configs("ptx_per_episode")) == [2, 4, 16], (
        "half and four times the default, as the paper's 4 and 32 of 8"
    )
    assert list(configs("iterations")) == [16, 32, 64, 128]
    assert list(configs("ptx_coef", ptx_coef=0.3)) == [0.0, 0.05, 0.3, 0.5, 2.0]
    assert [(s["kl_coef"], s["ptx_coef"]) for s in variants(Config(vary="kl_coef"))] == [
        (kl, ptx) for ptx in (0.0, 0.2) for kl in (0.0, 0.02, 0.15, 0.5, 2.0, 15.0)
    ]
    for vary in ("minibatch_size", "iterations"):
        for c in configs(vary).values():
            updates = (c.iterations - c.value_only_iterations) * c.batch_size // c.minibatch_size
            assert c.ema**updates == pytest.approx(0.985**448, rel=0.1), "as little is left of the initial weights"
    assert configs("iterations", iterations=60)[60].ema == ppo.Config.ema


def test_where_policies_start_and_lie():
    cfg = Config(vary="init", out="o")
    starts = {key: str(checkpoint_of(cfg, key)) for key in INITS}
    assert starts["base"] == "o/base.pt" and starts["ppo_init"] == "o/ppo_init.pt"
    assert starts["ppo_init_mix_0"] == "o/ablations/policies/ppo_init_mix_0.pt"
    assert {key: c.init for key, c in configs("init").items()} == starts, "and that is the reference, too"
    assert name_of(cfg, {"init": "base"}, 1) == "init_base_seed_1"
    assert name_of(cfg, {"kl_coef": 0.5, "ptx_coef": 0.0}, 0) == "kl_coef_0.5_ptx_coef_0.0_seed_0"
    assert (
        configs("kl_coef")[0.5].out == "o/ablations/policies" and configs("kl_coef")[0.5].reward_model == "o/reward.pt"
    )


def test_bad_flags_are_refused(run, data):
    assert seeds_of("0, 12") == [0, 12]
    for wrong in ("", "a", "0,,1", "-1", "1,1", "1.5", f"{2**63}"):
        with pytest.raises(BadInput, match="--seeds"):
            seeds_of(wrong)
    shared = {"data": str(data), "out": str(run), "device": "cpu", "threads": 1}
    for wrong, said in (
        ({"iterations": 30}, "multiple of 4"),
        ({"iterations": 8}, "12"),
        ({"vary": "lr"}, "choose from"),
    ):
        with pytest.raises(BadInput, match=said):
            main(Config(**shared, **wrong))
    with pytest.raises(BadInput, match="village"):
        main(Config(**shared))
    (run / "reward.pt").unlink()
    with pytest.raises(BadInput, match="python run.py"):
        main(Config(**shared))
    assert not (run / "ablations").exists()


# ---------------------------------------------------------------------------------------------------- comparing


def number(mean, spread=0.1, n=50):
    """As of n prompts, half of them above the mean and half below."""
    values = [mean + (spread if i % 2 else -spread) for i in range(n)]
    return {"mean": mean, "error": 1.96 * spread / math.sqrt(n - 1), "values": values}


def policy(title, settings, *, likert=4.0, score=1.0, tasks=0.8, loss=0.7, seconds=60.0, seeds=2):
    measured = {"score": number(score), "likert": number(likert), "tasks": number(tasks, 0.01)}
    measured |= {how: {"mean": 0.6, "error": 0.03} for how in ("win_rate", "win_rate_greedy")}
    measured |= {"corpus_loss": {"mean": loss, "error": 0.0}, "kl": {"mean": 1.0, "error": 0.0}}
    return {
        "title": title,
        "settings": settings,
        "measured": [measured | {"seconds": {"mean": seconds, "error": 0.0}}] * seeds,
    }


def report(vary, **numbers):
    """A made-up result of a sweep; numbers: {measure: one value per variant}, or "gpt", "start": of the references."""
    cfg = Config(vary=vary)
    references = {"GPT": policy("GPT", {}, **numbers.pop("gpt", {}))}
    references["PPO's start"] = policy("PPO's start", {}, **numbers.pop("start", {}))
    policies = []
    for i, settings in enumerate(variants(cfg)):
        policies.append(policy(title_of(settings), settings, **{key: values[i] for key, values in numbers.items()}))
    default = default_settings(cfg)
    title = next(p["title"] for p in policies if default | p["settings"] == default)
    found = {"vary": vary, "quick": False, "iterations": 32, "n_prompts": 50, "default": title}
    return found | {"references": references, "policies": policies}


def shown(vary, **numbers):
    """Which of the paper's findings show in these numbers."""
    return [finding.shows for finding in findings(report(vary, **numbers))]


def test_a_difference_is_taken_prompt_by_prompt_and_seed_by_seed():
    """By hand: per prompt +2 and +4, mean 3, standard deviation √2; and +1, +5 with the second seed."""

    def two(*seeds):
        measured = [{"likert": {"mean": sum(v) / 2, "error": 9.0, "values": v}} for v in seeds]
        return {"measured": measured}

    low = two([1, 1], [1, 1])
    assert difference(two([3, 5], [3, 5]), low, "likert") == pytest.approx((3, 1.96 * math.sqrt(2 / 2), 1))
    assert difference(low, two([3, 5], [3, 5]), "likert") == pytest.approx((-3, 1.96, -1))
    assert difference(two([3, 5], [2, 6]), low, "likert") == pytest.approx((3, 1.96 * 1.5, 1)), "2.5 and 4.5… minus 1"
    assert difference(two([9, 9], [0, 0]), low, "likert") == (3.5, 0, 0), "the seeds do not agree"
    assert difference(two([0, 4], [0, 4]), low, "likert")[2] == 0, "within the error"


def test_without_a_number_per_prompt_the_two_are_independent():
    one, other = ({"measured": [{"win_rate": {"mean": m, "error": e}}] * 2} for m, e in ((0.6, 0.03), (0.5, 0.04)))
    assert difference(one, other, "win_rate") == pytest.approx((0.1, 0.05, 1))
    assert change(one, other, "win_rate") == "+10.0 ± 5.0"
    one, other = ({"measured": [{"corpus_loss": {"mean": m, "error": 0.0}}] * 2} for m in (0.7, 0.7))
    assert difference(one, other, "corpus_loss") == (0, 0, 0) and change(one, other, "corpus_loss") == "+0.000"


# ---------------------------------------------------------------------------------------------------- the findings


def test_findings_about_the_kl_coefficient():
    """Twelve variants: β of 0, .02, .15, .5, 2, 15 with γ = 0, then with γ = 0.2."""
    as_in_the_paper = {
        "tasks": [0.7] * 6 + [0.8] * 6,
        "score": [2, 2, 2, 1, 0, -1] + [1.5] * 6,
        "likert": [3] * 6 + [2, 3.9, 4, 3.9, 3.5, 3],
    }
    assert shown("kl_coef", **as_in_the_paper) == [True] * 6
    flat = {key: [value] * 12 for key, value in (("tasks", 0.8), ("score", 1), ("likert", 4))}
    assert shown("kl_coef", **flat) == [False] * 6
    given_back_by_beta = as_in_the_paper | {"tasks": [0.7, 0.7, 0.7, 0.75, 0.75, 0.8] + [0.75] * 6}
    assert shown("kl_coef", **given_back_by_beta)[:4] == [True, False, True, False], "ptx only in part"
    only_zero_is_poor = as_in_the_paper | {"likert": [3] * 6 + [2, 4, 4, 4, 4, 4.5]}
    assert shown("kl_coef", **only_zero_is_poor)[4:] == [True, False]


def test_findings_about_the_weight_of_pretraining():
    """Five variants: γ of 0, .05, .2, .5, 2."""
    paper = {"tasks": [0.6, 0.7, 0.8, 0.8, 0.8], "score": [2, 2, 1.5, 1, 0], "likert": [3, 4, 4, 4, 4]}
    assert shown("ptx_coef", **paper) == [True, True, True]
    assert "from γ = 0.2 on" in findings(report("ptx_coef", **paper))[0].numbers
    other = {"tasks": [0.6, 0.8, 0.8, 0.8, 0.7], "score": [1] * 5, "likert": [3, 4, 4, 4, 5]}
    assert shown("ptx_coef", **other) == [False, False, False]
    assert "from no γ that was tried on" in findings(report("ptx_coef", **other))[0].numbers
    assert shown("ptx_coef", tasks=[0.8] * 5)[0] is False, "nothing was lost"


def test_findings_about_pretraining_examples_per_episode():
    paper = {"loss": [0.8, 0.7, 0.6], "likert": [4, 4, 4.5], "seconds": [50, 60, 180]}
    assert shown("ptx_per_episode", **paper) == [True, True, True]
    other = {"loss": [0.7, 0.7, 0.6], "likert": [4, 4, 3.5], "seconds": [50, 60, 110]}
    assert shown("ptx_per_episode", **other) == [False, False, False]
    assert shown("ptx_per_episode", **paper, start={"loss": 0.9})[0] is False
    assert "3.0 times" in findings(report("ptx_per_episode", **paper))[2].numbers


def test_findings_about_longer_training():
    paper = {"likert": [3, 4, 4.5, 4.5], "tasks": [0.85, 0.82, 0.8, 0.78]}
    assert shown("iterations", **paper) == [True, True, True]
    assert shown("iterations", likert=[3, 4, 4.5, 5], tasks=[0.8] * 4) == [False, False, False]
    assert shown("iterations", likert=[3, 4, 4.5, 4])[0] is True, "worse is no benefit"


@pytest.mark.parametrize("vary", ["batch_size", "minibatch_size"])
def test_the_default_is_best_if_no_other_is_better_and_one_is_worse(vary):
    default, titles = report(vary)["default"], [p["title"] for p in report(vary)["policies"]]
    place, count = titles.index(default), len(titles)

    def likert(**by_place):
        return [by_place.get(f"p{i}", 4.0) for i in range(count)]

    other = f"p{(place + 1) % count}", f"p{(place + 2) % count}"
    assert shown(vary, likert=likert(**{other[0]: 3.5})) == [True]
    assert shown(vary, likert=likert()) == [False], "none is significant"
    assert shown(vary, likert=likert(**{other[0]: 3.5, other[1]: 4.5})) == [False]
    numbers = findings(report(vary, likert=likert(**{other[0]: 3.5, other[1]: 4.5})))[0].numbers
    assert "higher: " + titles[(place + 2) % count] + " (+0.50" in numbers
    assert "lower: " + titles[(place + 1) % count] + " (-0.50" in numbers


def test_the_usual_start_stands_out_if_both_other_mixes_are_worse():
    """Four variants: from GPT, which the paper has not tried, and from SFT with 0, 10 and 50 % mix."""
    assert shown("init", likert=[5, 3, 4, 3]) == [True]
    assert shown("init", likert=[3, 4, 4, 4]) == shown("init", likert=[3, 3, 4, 4]) == [False]
    assert shown("init", likert=[3, 3, 4, 5]) == [False]


# ---------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("vary", SWEEPS)
def test_the_page_has_every_finding_and_every_policy(vary):
    found = report(vary)
    text = page(found)
    assert text.count(" here: ") == len(findings(found))
    for one in (*found["references"].values(), *found["policies"]):
        assert f"\n| {one['title']} " in text
    assert all(name in text for name, _, _ in MEASURES.values()) and "mean nothing" not in text
    assert "mean nothing" in page(found | {"quick": True})
    json.dumps(found)
    figure = settings_figure(found)
    assert figure is None or len(figure.axes) == 4
