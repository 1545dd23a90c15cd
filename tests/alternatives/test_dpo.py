"""DPO: its losses by hand, which log-probs it sums, and the script from end to end."""

import json
import math

import pytest
import torch

import reward
from alternatives import dpo
from alternatives.common import Run
from core.checkpoint import read_checkpoint
from core.config import BadInput
from data.folder import load_tokenizer, read_comparisons
from reward import Ranking, encode_ranking


def softplus(x):
    return math.log1p(math.exp(x))


def test_it_starts_at_ln_2_with_a_gradient():
    h = torch.zeros(3, requires_grad=True)
    for smoothing in (0.0, 0.2):
        assert dpo.preference_loss(h, 0.1, smoothing).tolist() == pytest.approx([math.log(2)] * 3)
    dpo.preference_loss(h, 0.1).sum().backward()
    assert h.grad.tolist() == pytest.approx([-0.05] * 3)  # -β σ(r̂_l - r̂_w) = -β/2


def test_losses_by_hand():
    h = torch.tensor([3.0, -2.0])
    plain = [softplus(-0.5 * x) for x in (3.0, -2.0)]
    swapped = [softplus(0.5 * x) for x in (3.0, -2.0)]
    assert dpo.preference_loss(h, 0.5).tolist() == pytest.approx(plain)
    mixed = [0.9 * a + 0.1 * b for a, b in zip(plain, swapped)]
    assert dpo.preference_loss(h, 0.5, 0.1).tolist() == pytest.approx(mixed)
    assert dpo.preference_loss(h, 0.5, ipo=True).tolist() == pytest.approx([4.0, 9.0])  # (h - 1)²


@pytest.mark.parametrize("settings", [(0.5,), (0.5, 0.1), (0.5, 0.0, True)])
def test_a_prompt_is_the_mean_over_its_pairs(settings):
    ratios, ranks = [0.3, -1.0, 2.0, 0.1], [2, 1, 2, 3]
    pairs = [(i, j) for i in range(4) for j in range(4) if ranks[i] < ranks[j]]
    losses = [dpo.preference_loss(torch.tensor(ratios[i] - ratios[j]), *settings).item() for i, j in pairs]
    got = dpo.pairwise_loss(torch.tensor(ratios), torch.tensor(ranks), *settings)
    assert len(pairs) == 5 and got.item() == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert dpo.pairwise_loss(torch.tensor(ratios), torch.tensor([1] * 4), *settings) == 0


def test_it_is_the_reward_models_loss_with_other_scores():
    ratios, ranks = torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.tensor([2, 1, 2, 3])
    got = dpo.pairwise_loss(ratios, ranks, 0.7)
    assert got.item() == pytest.approx(reward.pairwise_loss(0.7 * ratios, ranks).item(), rel=1e-6)


def test_ratios_are_of_whole_responses(data, run):
    process = Run(dpo.Config(data=str(data), out=str(run), device="cpu", threads=1), "x")
    policy, reference, tokenizer = process.load_policy("ppo_init"), process.load_policy("base"), process.tokenizer
    records = read_comparisons(data / "comparisons.jsonl")[:2]
    records[1] = records[1] | {"completions": ["A cat.", "No"], "ranks": [1, 2], "ended": [True, False]}
    rankings = [encode_ranking(record, tokenizer, 64) for record in records]

    def logprob(model, prompt, text, ended):
        ids = tokenizer.encode_ordinary(prompt)
        start = len(ids)
        ids = ids + tokenizer.encode_ordinary(text) + [tokenizer.eot_token] * ended
        logprobs = model.unembed(model(torch.tensor([ids])))[0].log_softmax(-1)
        return sum(logprobs[t - 1, ids[t]].item() for t in range(start, len(ids)))

    got = dpo.log_ratios(policy, reference, rankings, tokenizer)
    for record, ratios in zip(records, got, strict=True):
        ended = record.get("ended") or [True] * 3
        for i, text in enumerate(record["completions"]):
            want = [logprob(model, record["prompt"], text, ended[i]) for model in (policy, reference)]
            assert ratios[i].item() == pytest.approx(want[0] - want[1], abs=1e-4)
    assert all(ratios.abs().max() == 0 for ratios in dpo.log_ratios(policy, policy, rankings, tokenizer))


@pytest.mark.parametrize("ranks, kept", [([2, 4, 1, 3], [2, 1]), ([1, 2, 1, 2], [0, 3]), ([3, 1], [1, 0])])
def test_best_against_worst(ranks, kept):
    ranking = Ranking([[i] for i in range(len(ranks))], ranks, [], "?", "training")
    two = dpo.best_and_worst(ranking)
    assert two.rows == [[i] for i in kept] and two.ranks == [min(ranks), max(ranks)] and two.prompt == "?"


def test_implicit_rewards_are_means_over_pairs():
    ratios, ranks = [torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7.0, 8.0])], [[1, 2, 2], [2, 1]]
    got = dpo.mean_implicit_rewards(ratios, [torch.tensor(r) for r in ranks], 0.5)
    assert got == pytest.approx({"chosen": 0.5 * (1 + 1 + 8) / 3, "rejected": 0.5 * (3 + 5 + 7) / 3})


def test_it_learns_what_was_ranked(data, run):
    cfg = dpo.Config(data=str(data), out=str(run), epochs=12, learning_rate=3e-3, device="cpu", threads=1)
    dpo.main(cfg)
    records = [json.loads(line) for line in open(run / "dpo.jsonl")]
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and records[0]["chosen"] == 0
    assert len(records) == 12 * 2 + 1 and "valid_accuracy" in records[-2]
    made = read_checkpoint(run / "dpo.pt")
    assert made["results"]["valid_accuracy"] > 0.8 and made["results"]["valid_margin"] > 0
    tokenizer = load_tokenizer(data)[1]
    records = [r for r in read_comparisons(data / "comparisons.jsonl") if r["split"] == "train"]
    tokens = sum(len(tokenizer.encode_ordinary(text)) for r in records for text in r["completions"])
    assert made["cost"]["labels"] == 18 and made["cost"]["tokens"] == tokens, "DPO itself samples nothing"


@pytest.mark.parametrize("changes", [{"ipo": True}, {"best_vs_worst": True}, {"label_smoothing": 0.1}])
def test_its_variants_run(data, run, changes):
    dpo.main(dpo.Config(data=str(data), out=str(run), device="cpu", threads=1, **changes))
    first = json.loads(open(run / "dpo.jsonl").readline())
    at_zero = (1 / 0.6) ** 2 if "ipo" in changes else math.log(2)
    assert first["loss"] == pytest.approx(at_zero, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"epochs": 0}, {"label_smoothing": 0.5}, {"learning_rate": -1.0}])
def test_it_refuses(data, run, wrong):
    with pytest.raises(BadInput, match=f"--{next(iter(wrong))}"):
        dpo.main(dpo.Config(data=str(data), out=str(run), device="cpu", threads=1, **wrong))
