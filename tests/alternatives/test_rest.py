"""ReST: what is kept, when it stops, and the script from end to end."""

import json
import math
import random

import pytest
import torch

from alternatives import rest
from alternatives.common import Run
from core.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from core.config import BadInput
from core.text import score_answers
from data.folder import read_comparisons, read_demonstrations, read_prompts
from model import ScalarModel


def config(data="", out="", **changes):
    small = dict(data=str(data), out=str(out), grow=2, prompts=8, samples=3, valid_prompts=6, batch_size=8)
    small |= dict(max_new_tokens=6, learning_rate=1e-3, device="cpu", threads=1)
    return rest.Config(**small | changes)


def records_of(run):
    return [json.loads(line) for line in open(run / "rest.jsonl")]


# ---------------------------------------------------------------------------------------------------- what is kept


def test_rescale_by_hand():
    assert rest.rescale([3.0, -1.0, 1.0, 0.0]) == [1.0, 0.0, 0.5, 0.25]
    assert rest.rescale([2.0, 2.0]) == [0.0, 0.0]
    rng = random.Random(0)
    rewards = [rng.gauss(0, 3) for _ in range(50)]
    new = rest.rescale(rewards)
    assert min(new) == 0 and max(new) == 1
    assert sorted(range(50), key=new.__getitem__) == sorted(range(50), key=rewards.__getitem__)
    shifted = rest.rescale([7 * r - 2 for r in rewards])
    assert shifted == pytest.approx(new), "unit and origin of a reward mean nothing"


def test_thresholds_keep_what_they_say():
    rng = random.Random(1)
    rewards = [rng.random() for _ in range(200)] + [0.7, 0.8]
    before = set(range(len(rewards)))
    for tau in (0.0, 0.7, 0.8, 0.99):
        kept = set(rest.above(rewards, tau))
        assert all((rewards[i] > tau) == (i in kept) for i in range(len(rewards)))
        assert kept <= before, "a higher threshold keeps fewer of the same"
        before = kept


def test_best_of_each_by_hand():
    prompts = ["a", "b", "a", "b", "a", "b", "a", "c", "a"]
    rewards = [5.0, -1.0, 1.0, -3.0, 4.0, -2.0, 2.0, 9.0, 3.0]  # a: 1 2 3 4 5, b: -3 -2 -1, c alone
    assert rest.best_of_each(prompts, rewards, 0.0) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert rest.best_of_each(prompts, rewards, 0.5) == [0, 1, 4, 5, 8]  # a: 3 4 5, b: -2 -1
    assert rest.best_of_each(prompts, rewards, 0.75) == [0, 1, 4]  # a: 4 is the third quartile, b: above -1.5
    assert rest.best_of_each(prompts, rewards, 0.9) == [0, 1]
    assert rest.best_of_each(["a"] * 4, [1.0, 2.0, 2.0, 2.0], 0.9) == [1, 2, 3], "equally good answers stay together"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 2 / 3, 0.75, 0.9, 0.99])
def test_best_of_each_counts(share):
    """Of n different rewards those stay that at least share · (n - 1) others are below."""
    rng = random.Random(2)
    prompts = [rng.choice("abcdefgh") for _ in range(60)] + ["alone"]
    rewards = [rng.gauss(0, 1) for _ in prompts]
    want = []
    for i, prompt in enumerate(prompts):
        others = [rewards[j] for j, p in enumerate(prompts) if p == prompt and j != i]
        below = sum(r < rewards[i] for r in others)
        if others and below >= share * len(others) - 1e-6:
            want.append(i)
    assert rest.best_of_each(prompts, rewards, share) == want


def test_thresholds_rise_and_learning_rates_fall():
    assert rest.parse_thresholds("0.7, 0.8,0.95") == [0.7, 0.8, 0.95]
    for bad in ("", "high", "0.8,0.7", "0.7,0.7", "-0.1,0.5", "0.5,1", "0.5,", "nan"):
        with pytest.raises(BadInput, match="--thresholds"):
            rest.parse_thresholds(bad)
    rates = [rest.improve_rate(step, config(learning_rate=8.0, decay=0.5)) for step in range(4)]
    assert rates == [8.0, 4.0, 2.0, 1.0]
    default = rest.Config()
    assert default.decay < 1 and rest.parse_thresholds(default.thresholds) == [0.7, 0.8, 0.9]


# ---------------------------------------------------------------------------------------------------- Improve


class Scripted:
    """Stands in for fine-tuning and validation: remembers rows and rates, adds 1 to a weight, gives rewards in turn."""

    def __init__(self, monkeypatch, rewards):
        self.rewards, self.calls = list(rewards), []
        monkeypatch.setattr(rest, "fine_tune", self.fine_tune)
        monkeypatch.setattr(rest, "validation_reward", lambda *_: self.rewards.pop(0))

    def fine_tune(self, policy, rows, run, rng, epochs, lr, batch_size):
        self.calls.append((rows, epochs, lr, batch_size))
        with torch.no_grad():
            policy.transformer.wpe.weight[0, 0] += 1
        return 0.5


def improved(data, run, monkeypatch, rewards, taus=(0.4, 0.6, 0.8), **changes):
    script, process = Scripted(monkeypatch, rewards), Run(config(data, run, **changes), "rest")
    policy = process.load_policy("ppo_init")
    start = policy.transformer.wpe.weight[0, 0].item()
    items = [("Say.\n", f"It is {i}.", True) for i in range(5)] + [("Go.\n", f"It is {i}.", True) for i in range(5, 11)]
    scores = [i - 5.0 for i in range(11)]  # rescaled: 0.0, 0.1, …, 1.0
    best = rest.improve(process, policy, None, items, scores, 0.0, list(taus), [])
    return script, best, policy.transformer.wpe.weight[0, 0].item() - start, process, items


def test_improve_steps_on_what_exceeds_each_threshold(data, run, monkeypatch):
    script, best, moved, process, items = improved(
        data, run, monkeypatch, [1.0, 2.0, 3.0], learning_rate=0.4, decay=0.25
    )
    assert best == 3.0 and moved == pytest.approx(3), "every step starts from the one before"
    assert [lr for _, _, lr, _ in script.calls] == pytest.approx([0.4, 0.1, 0.025])
    for (rows, epochs, _, size), first in zip(script.calls, (5, 7, 9), strict=True):
        assert rows == process.rows(items[first:]) and epochs == 1 and size == 8


def test_improve_with_percentiles(data, run, monkeypatch):
    script, *_, process, items = improved(data, run, monkeypatch, [1.0, 2.0], taus=(0.5, 0.75), percentile=True)
    assert script.calls[0][0] == process.rows(items[2:5] + items[8:])  # of 0…4 and of 5…10
    assert script.calls[1][0] == process.rows(items[3:5] + items[9:])


@pytest.mark.parametrize("rewards, accepted", [([1.0, 0.5], 1), ([1.0, 1.0], 1), ([-1.0], 0), ([1.0, 2.0, 1.5], 2)])
def test_improve_stops_when_the_reward_does_not_rise(data, run, monkeypatch, rewards, accepted):
    script, best, moved, *_ = improved(data, run, monkeypatch, rewards)
    assert len(script.calls) == len(rewards) and script.rewards == []
    assert best == max([0.0, *rewards]) and moved == pytest.approx(accepted), "the best policy is kept"
    assert [r["better"] for r in records_of(run)] == [True] * accepted + [False]


def test_improve_without_anything_left(data, run, monkeypatch):
    script, best, moved, *_ = improved(data, run, monkeypatch, [1.0], taus=(0.95, 1.0))
    assert [len(rows) for rows, *_ in script.calls] == [1] and best == 1.0 and moved == pytest.approx(1)


def test_looking_at_validation_does_not_change_what_is_sampled(data, run):
    process = Run(config(data, run), "rest")
    policy, judge = process.load_policy("ppo_init"), process.load_scalar_model("reward")
    prompts = process.prompts(policy, "valid")
    asked = process.prompts(policy, "train", 4)
    before = rest.grow(process, policy, judge, asked, [], process.generator("grow", 1))
    tokens = process.cost["tokens"]
    first = rest.validation_reward(process, policy, judge, prompts)
    assert first == rest.validation_reward(process, policy, judge, prompts), "the same random stream every time"
    assert process.cost["tokens"] == tokens, "looks are not what the method costs"
    assert before == rest.grow(process, policy, judge, asked, [], process.generator("grow", 1))
    assert before != rest.grow(process, policy, judge, asked, [], process.generator("grow", 2))


def test_grow_adds_the_demonstrations(data, run):
    process = Run(config(data, run), "rest")
    policy, judge = process.load_policy("ppo_init"), process.load_scalar_model("reward")
    shown = [(r["prompt"], r["completion"], True) for r in read_demonstrations(data, "train")]
    asked = process.prompts(policy, "train", 4)
    too_long = [(asked[0], "zq" * 40, True)]
    answers, scores = rest.grow(process, policy, judge, asked, shown + too_long, process.generator("grow", 1))
    assert [p for p, *_ in answers[:12]] == [p for p in asked for _ in range(3)] and answers[12:] == shown
    want = score_answers(judge, process.tokenizer, [p for p, *_ in answers], [(t, e) for _, t, e in answers])
    assert scores == want and not any(map(math.isnan, scores))


# ---------------------------------------------------------------------------------------------------- from end to end


@pytest.fixture
def likes_ends(run, tokenizer_spec, tiny):
    """A reward model that gives about 1 to an answer that has ended and less to any other."""
    toy = ScalarModel(tiny)
    with torch.no_grad():
        for name, p in toy.named_parameters():
            if "c_proj" in name or "wpe" in name or name.endswith("bias"):
                p.zero_()  # blocks add nothing: the hidden state is the last token's embedding, layer-normalised
        eot = toy.transformer.ln_f(toy.transformer.wte.weight[-1])
        toy.head.weight.copy_(eot[None] / eot.square().sum())
    inputs = read_checkpoint(run / "reward.pt")["inputs"]
    save_checkpoint(run / "reward.pt", toy, tokenizer_spec, tiny, 0, inputs=inputs)
    return run


def test_a_toy_reward_goes_up(data, likes_ends):
    run = likes_ends
    rest.main(config(data, run, learning_rate=3e-2, thresholds="0.9,0.99", prompts=18, samples=4, batch_size=2))
    *steps, last = records_of(run)
    grows = [r for r in steps if "grow" in r]
    assert [r["grow"] for r in grows] == [1, 2] and all(r["answers"] == 18 * 4 + 18 for r in grows)
    assert last["valid_reward"] > last["valid_reward_at_start"] + 0.3
    accepted = [r["valid_reward"] for r in steps if r.get("better")]
    assert accepted == sorted(accepted) and accepted[-1] == last["valid_reward"]
    _, _, checkpoint = load_checkpoint(run / "rest.pt", "policy")
    rankings = [r for r in read_comparisons(data / "comparisons.jsonl") if r["split"] == "train"]
    assert checkpoint["cost"]["labels"] == len(rankings) == 18
    assert checkpoint["cost"]["tokens"] > 2 * 18 * 4 and checkpoint["cost"]["seconds"] > 0


def test_the_next_grow_asks_other_prompts_of_the_best_policy(data, run, monkeypatch):
    asked, written, tuned = [], [], []
    answers, fine_tune = Run.answers, rest.fine_tune

    def spy(self, model, prompts, rng, temperature=1.0, **more):
        if temperature == 0.8:
            asked.append(list(dict.fromkeys(prompts)))
            written.append({k: v.clone() for k, v in model.state_dict().items()})
        return answers(self, model, prompts, rng, temperature, **more)

    def spy_fine_tune(policy, *rest_of_it):
        loss = fine_tune(policy, *rest_of_it)
        tuned.append({k: v.clone() for k, v in policy.state_dict().items()})
        return loss

    monkeypatch.setattr(Run, "answers", spy)
    monkeypatch.setattr(rest, "fine_tune", spy_fine_tune)
    monkeypatch.setattr(rest, "validation_reward", lambda *_, rewards=[0.0, 1.0, 0.5, 0.2]: rewards.pop(0))
    rest.main(config(data, run, thresholds="0.7,0.8"))
    prompts = [r["prompt"] for r in read_prompts(data, "train")]
    assert asked == [prompts[:8], prompts[8:16]]
    start, saved = (load_checkpoint(run / f"{name}.pt", "policy")[0].state_dict() for name in ("ppo_init", "rest"))
    same = lambda a, b: all(torch.equal(a[k], b[k]) for k in a)
    assert same(written[0], start) and same(written[1], tuned[0]) and not same(tuned[0], tuned[1])
    assert same(saved, tuned[0]), "the second and the third step were no better"


def test_thresholds_below_the_mean_are_passed_over(data, run, capsys):
    rest.main(config(data, run, thresholds="0.01,0.98", grow=1))
    first = next(r for r in records_of(run) if "grow" in r)
    assert 0.01 < first["mean_rescaled"] < 0.98
    assert {r["tau"] for r in records_of(run) if "tau" in r} == {0.98}
    assert f"rescaled {first['mean_rescaled']:.3f}; thresholds 0.98" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--thresholds 0.01: none exceeds the mean reward"):
        rest.main(config(data, run, thresholds="0.01"))
    rest.main(config(data, run, thresholds="0.01", percentile=True, grow=1))
    assert {r["tau"] for r in records_of(run) if "tau" in r} == {0.01}, "a share of a prompt's answers is no reward"


def test_same_seed_same_policy(data, run):
    weights = []
    for seed in (0, 0, 1):
        rest.main(config(data, run, seed=seed, grow=1, percentile=True, thresholds="0.5"))
        weights.append([r for r in records_of(run) if "tau" in r])
    assert weights[0] == weights[1] != weights[2]


BAD = [("grow", 0), ("prompts", 0), ("samples", 0), ("batch_size", 0), ("valid_prompts", 0), ("temperature", -1.0)]
BAD += [("learning_rate", 0.0), ("decay", 1.0), ("decay", 0.0), ("thresholds", "0.9,0.8"), ("max_new_tokens", 0)]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        rest.main(config(data, run, **{flag: value}))
