"""RLAIF: the returns, REINFORCE's gradient, and the script from end to end with a small labeler."""

import json
import math
from dataclasses import replace

import pytest
import torch

from alternatives import rlaif
from core.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from core.config import BadInput
from model import GPT

SMALL = {"pairs": 20, "epochs": 1, "iterations": 2, "episodes": 8, "minibatch_size": 4, "max_new_tokens": 6}


def config(data, run, **changes):
    return rlaif.Config(**dict(data=str(data), out=str(run), labeler="base", device="cpu", threads=1) | SMALL | changes)


@pytest.fixture
def run(run, tokenizer_spec, tiny):
    """Models whose context holds a page with two answers."""
    for i, name in enumerate(("base", "ppo_init")):
        torch.manual_seed(i)
        save_checkpoint(run / f"{name}.pt", GPT(replace(tiny, block_size=128)), tokenizer_spec, tiny, step=0)
    return run


def test_reinforce_is_the_gradient_of_the_expected_return():
    """A two-armed bandit: Σ_a π(a) ∇ of the loss equals -∇ Σ_a π(a) Z(a), whatever the baseline says."""
    theta, Z = torch.tensor([0.3, -0.4], requires_grad=True), torch.tensor([1.0, -2.0])
    (theta.softmax(0) * Z).sum().backward()
    exact, theta.grad = theta.grad.clone(), None
    expected = torch.zeros(2)
    for arm, pi in enumerate(theta.softmax(0).tolist()):
        logprob = theta.log_softmax(0)[arm].view(1, 1)
        value = torch.full((1, 1), 0.7, requires_grad=True)
        policy_loss, value_loss = rlaif.reinforce_loss(logprob, value, Z[arm].view(1), torch.ones(1, 1))
        expected += pi * torch.autograd.grad(policy_loss, theta)[0]
        assert torch.autograd.grad(value_loss, value)[0].item() == pytest.approx(2 * (0.7 - Z[arm].item()))
    assert torch.allclose(expected, -exact, atol=1e-6)


def test_returns_weigh_reward_against_divergence():
    logprobs, base = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-1.5, -1.0, 3.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    Z = rlaif.returns_of(torch.tensor([2.0]), logprobs, base, mask, 0.25)
    assert Z.item() == pytest.approx(0.75 * 2 - 0.25 * (0.5 - 1.0))


@pytest.mark.parametrize("direct", [False, True])
def test_from_end_to_end(data, run, direct):
    rlaif.main(config(data, run, direct=direct))
    name = "rlaif_direct" if direct else "rlaif"
    made = read_checkpoint(run / f"{name}.pt")
    before = load_checkpoint(run / "ppo_init.pt", "policy")[0].state_dict()
    assert any(not torch.equal(weight, before[key]) for key, weight in made["model"].items())
    assert made["cost"]["labels"] == 0, "nobody is asked"
    assert made["cost"]["tokens"] >= (2 * 8 if direct else 2 * 8 + 2 * 20)
    assert ("rm_accuracy" in made["results"]) == (not direct) and "labeler_agreement" in made["results"]
    *steps, last = [json.loads(line) for line in open(run / f"{name}.jsonl")]
    assert [step["step"] for step in steps] == [1, 2] and last["cost"] == pytest.approx(made["cost"], abs=1e-3)
    assert all(math.isfinite(step[key]) for step in steps for key in ("reward", "kl", "value_loss", "length"))


def test_the_first_update_starts_at_the_reference(data, run):
    """Before any update π is π_ref: no divergence, and values of 0 leave Σ Z² / N as the value loss."""
    rlaif.main(config(data, run, iterations=1, minibatch_size=8))
    first = json.loads(open(run / "rlaif.jsonl").readline())
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["value_loss"] >= (0.8 * first["reward"]) ** 2 - 1e-6


def test_what_the_policy_writes_scores_zero(data, run, monkeypatch):
    """The distilled model's scores of the first answers are shifted to 0 on average."""
    seen, distil = [], rlaif.distil
    monkeypatch.setattr(rlaif, "distil", lambda *args: seen.append((args, distil(*args))) or seen[-1][1])
    rlaif.main(config(data, run, iterations=1))
    ((_, _, pairs), model) = seen[0]
    scores = [model.score(torch.tensor([first]), torch.tensor([len(first)])).item() for first, _, _ in pairs]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)


BAD = [("pairs", 0), ("epochs", 0), ("iterations", 0), ("episodes", 0), ("minibatch_size", 0), ("batch_size", 0)]
BAD += [("kl_weight", 1.5), ("temperature", 0.0), ("policy_learning_rate", 0.0)]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        rlaif.main(config(data, run, **{flag: value}))
