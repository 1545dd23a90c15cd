"""PPO: the mathematics one function at a time, the two verbs, and the script from end to end."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import ppo
from data.folder import read_prompts
from model import GPT, GPTConfig, ScalarModel, generate, load_checkpoint, save_checkpoint
from plumbing import BadInput, adamw, generator, optimizer_step
from pretrain import lm_loss


def config(data="", out="", **changes):
    small = dict(data=str(data), out=str(out), iterations=2, batch_size=8, minibatch_size=4, max_new_tokens=6)
    small |= dict(ptx_window=8, value_only_iterations=0, look_every=1, look_prompts=3, device="cpu", threads=1)
    return ppo.Config(**small | changes)


def masked(B=3, T=6, seed=0, garbage=()):
    """A mask of responses that start and end at different places, and random arrays with garbage outside of it."""
    torch.manual_seed(seed)
    t = torch.arange(T)
    first, last = torch.tensor([[1], [0], [3]])[:B], torch.tensor([[T], [4], [4]])[:B]
    mask = ((t >= first) & (t < last)).float()
    arrays = []
    for value in garbage:
        x = torch.randn(B, T)
        x[mask == 0] = value
        arrays.append(x)
    return mask, *arrays


def places(mask):
    """(row, [positions where the mask is 1]) for every row."""
    return [(b, row.nonzero().flatten().tolist()) for b, row in enumerate(mask)]


# ---------------------------------------------------------------------------------------------------- rewards


def test_last_token():
    mask, *_ = masked()
    want = torch.zeros_like(mask)
    for b, ts in places(mask):
        want[b, ts[-1]] = 1
    assert torch.equal(ppo.last_token(mask), want)


def test_rewards_sum_to_score_minus_kl():
    mask, logprobs, ref_logprobs = masked(garbage=(99.0, -7.0))
    scores, beta = torch.tensor([1.0, -2.0, 0.5]), 0.3
    rewards = ppo.shaped_rewards(scores, logprobs, ref_logprobs, mask, beta)
    for b, ts in places(mask):
        for t in range(mask.size(1)):
            want = -beta * (logprobs[b, t] - ref_logprobs[b, t]).item() if t in ts else 0.0
            assert rewards[b, t].item() == pytest.approx(want + scores[b].item() * (t == ts[-1]), abs=1e-6)
        logratio = sum((logprobs[b, t] - ref_logprobs[b, t]).item() for t in ts)
        assert rewards[b].sum().item() == pytest.approx(scores[b].item() - beta * logratio, abs=1e-5)


def test_the_kl_term_is_the_kl_from_the_reference():
    """Tokens in proportion to π = (½, ¼, ¼): the mean penalty is KL(π, π_ref), positive, exactly."""
    p, q = torch.tensor([0.5, 0.5, 0.25, 0.25]), torch.tensor([0.1, 0.1, 0.6, 0.3])
    kl = 0.5 * math.log(0.5 / 0.1) + 0.25 * math.log(0.25 / 0.6) + 0.25 * math.log(0.25 / 0.3)
    rewards = ppo.shaped_rewards(torch.zeros(4), p.log()[:, None], q.log()[:, None], torch.ones(4, 1), 2.0)
    assert rewards.mean().item() == pytest.approx(-2 * kl, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- advantages


def gae_by_hand(rewards, values, mask, discount, lam):
    """The definition: A_t = Σ_k (discount λ)^k δ_{t+k}, row by row, without the recursion."""
    advantages = torch.zeros_like(rewards)
    for b, ts in places(mask):
        V = [values[b, t].item() for t in ts] + [0.0]
        delta = [rewards[b, t].item() + discount * V[i + 1] - V[i] for i, t in enumerate(ts)]
        for i, t in enumerate(ts):
            advantages[b, t] = sum((discount * lam) ** k * delta[i + k] for k in range(len(ts) - i))
    return advantages


@pytest.mark.parametrize("discount, lam", [(0.9, 0.8), (1.0, 0.95), (1.0, 0.0)])
def test_gae_matches_its_definition(discount, lam):
    mask, rewards, values = masked(garbage=(99.0, -7.0))
    advantages, returns = ppo.gae(rewards, values, mask, discount, lam)
    want = gae_by_hand(rewards, values, mask, discount, lam)
    torch.testing.assert_close(advantages, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns, (want + values) * mask, atol=1e-5, rtol=1e-5)


def test_gae_with_lambda_1_is_what_is_still_to_come_minus_the_value():
    mask, rewards, values = masked(garbage=(99.0, -7.0))
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    for b, ts in places(mask):
        for t in ts:
            to_come = sum(rewards[b, s].item() for s in ts if s >= t)
            assert advantages[b, t].item() == pytest.approx(to_come - values[b, t].item(), abs=1e-5)
            assert returns[b, t].item() == pytest.approx(to_come, abs=1e-5)


def test_whiten():
    mask, x = masked(garbage=(99.0,))
    x = 5 * x + 3
    y = ppo.whiten(x, mask)
    inside, before = y[mask == 1], x[mask == 1]
    assert inside.mean().item() == pytest.approx(0, abs=1e-5)
    assert inside.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(inside * before.std(unbiased=False) + before.mean(), before, atol=1e-4, rtol=1e-4)
    assert (y[mask == 0] == 0).all()


# ---------------------------------------------------------------------------------------------------- losses


def test_policy_loss_matches_a_loop():
    mask, new, old, advantages = masked(garbage=(3.0, -3.0, 99.0))
    loss, stats = ppo.policy_loss(new, old, advantages, mask, 0.2)
    losses, clipped, ratios, kls = [], [], [], []
    for b, ts in places(mask):
        for t in ts:
            ratio, A = math.exp(new[b, t].item() - old[b, t].item()), advantages[b, t].item()
            losses.append(-min(A * ratio, A * min(max(ratio, 0.8), 1.2)))
            clipped.append(not 0.8 <= ratio <= 1.2)
            ratios.append(ratio)
            kls.append(ratio - 1 - math.log(ratio))
    n = len(losses)
    assert loss.item() == pytest.approx(sum(losses) / n, rel=1e-5)
    assert stats["clip_fraction"] == pytest.approx(sum(clipped) / n)
    assert stats["ratio"] == pytest.approx(sum(ratios) / n, rel=1e-5)
    assert stats["approx_kl"] == pytest.approx(sum(kls) / n, rel=1e-5)


CASES = [  # advantage, ratio, may it still learn from this token?
    (+1.0, 1.5, False),
    (+1.0, 0.5, True),
    (-1.0, 0.5, False),
    (-1.0, 1.5, True),
    (+1.0, 1.1, True),
    (-1.0, 0.9, True),
]


@pytest.mark.parametrize("advantage, ratio, learns", CASES)
def test_clipping_stops_the_gradient_on_the_safe_side_only(advantage, ratio, learns):
    old = torch.tensor([[-2.0]])
    new = (old + math.log(ratio)).requires_grad_()
    loss, _ = ppo.policy_loss(new, old, torch.tensor([[advantage]]), torch.ones(1, 1), 0.2)
    loss.backward()
    assert new.grad.item() == pytest.approx(-advantage * ratio if learns else 0.0, abs=1e-5)


def test_approx_kl_is_the_kl_of_two_small_distributions():
    p, q = torch.tensor([[0.5, 0.5, 0.25, 0.25]]), torch.tensor([[0.1, 0.1, 0.6, 0.3]])  # sampled from p = (½, ¼, ¼)
    kl = 0.5 * math.log(0.5 / 0.1) + 0.25 * math.log(0.25 / 0.6) + 0.25 * math.log(0.25 / 0.3)
    _, stats = ppo.policy_loss(q.log(), p.log(), torch.zeros(1, 4), torch.ones(1, 4), 0.2)
    assert stats["approx_kl"] == pytest.approx(kl, abs=1e-6)
    for seed in range(20):
        mask, new, old = masked(seed=seed, garbage=(9.0, 1.0))
        assert ppo.policy_loss(new, old, new, mask, 0.2)[1]["approx_kl"] >= 0
    assert ppo.policy_loss(old, old, new, mask, 0.2)[1]["approx_kl"] == 0


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_value_loss_matches_a_loop(clip):
    mask, new, old, returns = masked(garbage=(99.0, -7.0, 42.0))
    losses = []
    for b, ts in places(mask):
        for t in ts:
            V, V_old, G = (x[b, t].item() for x in (new, old, returns))
            near = V_old + min(max(V - V_old, -clip), clip)
            losses.append(max((V - G) ** 2, (near - G) ** 2) if clip else (V - G) ** 2)
    assert ppo.value_loss(new, old, returns, mask, clip).item() == pytest.approx(
        0.5 * sum(losses) / len(losses), rel=1e-5
    )


def test_more_padding_changes_nothing():
    mask, a, b, c = masked(garbage=(0.0, 0.0, 0.0))
    wide = [torch.cat([x, torch.full((3, 4), 7.0)], dim=1) for x in (a, b, c)]
    wide_mask = torch.cat([mask, torch.zeros(3, 4)], dim=1)
    assert ppo.policy_loss(a, b, c, mask, 0.2)[0] == pytest.approx(ppo.policy_loss(*wide, wide_mask, 0.2)[0])
    assert ppo.value_loss(a, b, c, mask, 0.2) == pytest.approx(ppo.value_loss(*wide, wide_mask, 0.2))
    assert ppo.explained_variance(a, b, mask) == pytest.approx(ppo.explained_variance(*wide[:2], wide_mask))
    torch.testing.assert_close(ppo.whiten(a, mask), ppo.whiten(wide[0], wide_mask)[:, :6])
    torch.testing.assert_close(ppo.gae(a, b, mask, 1, 0.9)[0], ppo.gae(*wide[:2], wide_mask, 1, 0.9)[0][:, :6])


def test_explained_variance():
    mask, returns, noise = masked(garbage=(99.0, 50.0))
    inside = mask == 1
    assert ppo.explained_variance(returns, returns, mask) == pytest.approx(1)
    assert ppo.explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0, abs=1e-5)
    assert ppo.explained_variance(-returns, returns, mask) == pytest.approx(-3, abs=1e-4)
    G, V = returns[inside], noise[inside]
    want = 1 - ((G - V).var() / G.var()).item()
    assert ppo.explained_variance(noise, returns, mask) == pytest.approx(want, abs=1e-4)


def test_warm_up():
    cfg = config(learning_rate=3.0, warmup_iterations=10)
    rates = [ppo.warmed_up(i, cfg) for i in range(13)]
    assert rates[0] == pytest.approx(0.3) and rates[5] == pytest.approx(1.65)
    assert rates[10] == rates[11] == rates[12] == pytest.approx(3.0) and rates[9] < 3.0
    assert ppo.warmed_up(0, replace(cfg, warmup_iterations=0)) == 3.0


def test_ema():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    want = {k: v.clone() for k, v in average.items()}
    for _ in range(5):
        for p in model.parameters():
            p.data += torch.randn_like(p)
        ppo.update_ema(average, model, 0.992)
        want = {k: 0.992 * w + 0.008 * model.state_dict()[k] for k, w in want.items()}
    for k in want:
        torch.testing.assert_close(average[k], want[k])


def test_distinct_2():
    tokens = torch.tensor([[1, 2, 3, 2, 3, 9, 9], [7, 2, 3, 5, 9, 9, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0]]).float()
    assert ppo.distinct_2(tokens, mask) == pytest.approx(3 / 5)  # 23 32 23 | 23 35: three different among five


# ---------------------------------------------------------------------------------------------------- the two verbs

V, EOT = 12, 11
CFG = GPTConfig(2, 2, 16, 64, V)
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6], [5, 3], [5, 8, 9], [7, 9], [3], [2, 3, 8, 4]]
ENCODING = SimpleNamespace(eot_token=EOT)


def make(kind, seed, spread=1):
    torch.manual_seed(seed)
    model = kind(CFG).eval()
    model.transformer.wte.weight.data *= spread
    return model


def collected(seed=0, **changes):
    """A rollout with everything that `update` needs. -> models, batch, cfg"""
    cfg = config(max_new_tokens=10, **changes)
    models = {"policy": make(GPT, 1, 10), "reference": make(GPT, 2, 10)}
    models |= {"reward_model": make(ScalarModel, 3), "value_model": make(ScalarModel, 4)}
    batch, _ = ppo.rollout(*models.values(), PROMPTS, ENCODING, cfg, generator(seed))
    rewards = ppo.shaped_rewards(batch["scores"], batch["logprobs"], batch["ref_logprobs"], batch["mask"], cfg.kl_coef)
    advantages, batch["returns"] = ppo.gae(rewards, batch["values"], batch["mask"], cfg.discount, cfg.lam)
    batch["advantages"] = ppo.whiten(advantages, batch["mask"])
    return models, batch, cfg


def test_rollout_matches_its_parts():
    models, batch, cfg = collected()
    tokens, lengths, mask = generate(models["policy"], PROMPTS, 10, EOT, 1.0, generator(0))
    for key, want in (("tokens", tokens), ("lengths", lengths), ("mask", mask)):
        assert torch.equal(batch[key], want)
    ended = [tokens[b, n - 1].item() == EOT for b, n in enumerate(lengths)]
    assert batch["ended"].tolist() == ended and 0 < sum(ended) < len(ended)
    with torch.no_grad():
        for b, n in enumerate(lengths.tolist()):
            row, start = tokens[b : b + 1, :n], len(PROMPTS[b])
            assert batch["scores"][b].item() == pytest.approx(models["reward_model"](row)[0, -1].item(), abs=1e-5)
            V = models["value_model"](row)[0]
            for key, name in (("logprobs", "policy"), ("ref_logprobs", "reference")):
                log_p = models[name].unembed(models[name](row))[0].log_softmax(-1)
                for t in range(start, n):
                    assert batch[key][b, t].item() == pytest.approx(log_p[t - 1, row[0, t]].item(), abs=1e-4)
            for t in range(start, n):
                assert batch["values"][b, t].item() == pytest.approx(V[t - 1].item(), abs=1e-5)


def test_nothing_outside_the_response():
    _, batch, cfg = collected()
    outside = batch["mask"] == 0
    rewards = ppo.shaped_rewards(batch["scores"], batch["logprobs"], batch["ref_logprobs"], batch["mask"], 0.5)
    assert outside.any()
    for x in (rewards, *(batch[k] for k in ("logprobs", "ref_logprobs", "values", "advantages", "returns"))):
        assert (x[outside] == 0).all()


def test_the_score_of_a_response_without_an_end():
    policy = make(GPT, 1)
    constant = SimpleNamespace(score=lambda tokens, lengths: torch.full((len(tokens),), 5.0))
    for seen, cfg in (({5.0}, config()), ({5.0, -3.0}, config(score_without_eot=False))):
        batch, _ = ppo.rollout(policy, policy, constant, make(ScalarModel, 4), PROMPTS * 4, ENCODING, cfg, generator(0))
        assert 0 < batch["ended"].sum() < 32 and set(batch["scores"].tolist()) == seen
        assert (batch["scores"][batch["ended"]] == 5).all()


class Spy:
    """Stands in for plumbing.optimizer_step: steps if asked to, and remembers which model and which gradient."""

    def __init__(self, monkeypatch, step=True):
        self.step, self.calls = step, []
        monkeypatch.setattr(ppo, "optimizer_step", self)

    def __call__(self, optimizer, model, *rest):
        self.calls.append((model, [p.grad.clone() for p in model.parameters()]))
        if self.step:
            return optimizer_step(optimizer, model, *rest)
        optimizer.zero_grad(set_to_none=True)
        return 0.0

    def of(self, model):
        return [gradient for m, gradient in self.calls if m is model]


def do_update(models, batch, cfg, corpus=None, learn=True, seed=0):
    policy, value_model = models["policy"], models["value_model"]
    average = {k: v.clone() for k, v in policy.state_dict().items()}
    optimizers = adamw(policy, 1e-3), adamw(value_model, 1e-3)
    streams = {"order": generator(seed), "pages": generator(9)}
    stats = ppo.update(policy, value_model, optimizers, average, batch, corpus, cfg, 1e-3 * learn, streams)
    return stats, average


class Pages:
    """A corpus of random tokens that remembers how many windows of which length were asked for."""

    def __init__(self):
        self.asked = []

    def windows(self, count, length, order):
        self.asked.append((count, length))
        return torch.randint(V, (count, length), generator=order)


@pytest.mark.parametrize("epochs", [1, 3])
def test_counts_of_steps_and_pretraining_examples(monkeypatch, epochs):
    models, batch, cfg = collected(ptx_coef=0.5, epochs=epochs, minibatch_size=2)
    spy, corpus = Spy(monkeypatch), Pages()
    do_update(models, batch, cfg, corpus)
    steps = 8 // 2 * epochs
    assert len(spy.of(models["policy"])) == len(spy.of(models["value_model"])) == steps
    assert len(spy.calls) == 2 * steps, "one step for both terms of the objective"
    assert corpus.asked == [(8 * 2, cfg.ptx_window + 1)] * steps


def test_gradients_are_those_of_the_two_objectives(monkeypatch):
    """One minibatch of all episodes; policy and value gradients from autograd on the formulas, written out."""
    models, batch, cfg = collected(minibatch_size=8)
    policy, value_model = models["policy"], models["value_model"]
    spy = Spy(monkeypatch, step=False)
    do_update(models, batch, cfg)
    mask, n = batch["mask"], batch["mask"].sum()
    log_p = policy.unembed(policy(batch["tokens"])).log_softmax(-1)[:, :-1]
    new = log_p.gather(2, batch["tokens"][:, 1:, None]).squeeze(2)
    gain = ((new - batch["logprobs"][:, 1:]).exp() * batch["advantages"][:, 1:] * mask[:, 1:]).sum() / n
    values = value_model(batch["tokens"])[:, :-1]
    error = 0.5 * ((values - batch["returns"][:, 1:]) ** 2 * mask[:, 1:]).sum() / n
    for model, loss in ((policy, -gain), (value_model, error)):  # at ratio 1 and V = V_old nothing is clipped
        for got, want in zip(spy.of(model)[0], torch.autograd.grad(loss, list(model.parameters())), strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-3)


def test_tokens_after_the_end_do_not_teach(monkeypatch):
    models, batch, cfg = collected()
    spy = Spy(monkeypatch, step=False)
    do_update(models, batch, cfg)
    first, spy.calls = spy.calls, []
    after = torch.arange(batch["tokens"].size(1)) >= batch["lengths"][:, None]
    assert after.any()
    changed = {k: v.clone() for k, v in batch.items()}
    changed["tokens"][after] = torch.randint(V, (int(after.sum()),), generator=generator(1))
    for key, value in (
        ("logprobs", 3.0),
        ("ref_logprobs", -3.0),
        ("values", 9.0),
        ("advantages", 7.0),
        ("returns", 8.0),
    ):
        changed[key][after] = value
    do_update(models, changed, cfg)
    for (_, a), (_, b) in zip(first, spy.calls, strict=True):
        for x, y in zip(a, b):
            torch.testing.assert_close(x, y)


def first_policy_gradient(monkeypatch, ptx_coef):
    models, batch, cfg = collected(ptx_coef=ptx_coef)
    spy, windows = Spy(monkeypatch, step=False), []
    monkeypatch.setattr(ppo, "lm_loss", lambda model, w: windows.append(w) or lm_loss(model, w))
    do_update(models, batch, cfg, Pages())
    return spy.of(models["policy"])[0], windows, models["policy"]


def test_the_gradient_is_linear_in_the_pretraining_coefficient(monkeypatch):
    (g0, none, _), (g1, windows, policy), (g2, _, _) = (first_policy_gradient(monkeypatch, c) for c in (0.0, 1.0, 2.0))
    assert none == []
    ptx = torch.autograd.grad(lm_loss(policy, windows[0]), list(policy.parameters()))
    for zero, one, two, want in zip(g0, g1, g2, ptx, strict=True):
        torch.testing.assert_close(one - zero, want, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(two - zero, 2 * want, atol=1e-5, rtol=1e-3)


def test_ppo_ptx_with_coefficient_0_is_ppo_bit_for_bit():
    """1e-300 goes all the way through the pretraining term and is 0 in single precision."""
    weights = []
    for ptx_coef in (0.0, 1e-300):
        models, batch, cfg = collected(ptx_coef=ptx_coef)
        corpus = Pages() if ptx_coef else None
        do_update(models, batch, cfg, corpus)
        assert ptx_coef == 0 or corpus.asked
        weights.append([p for name in ("policy", "value_model") for p in models[name].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights))


def test_only_the_value_model_learns_at_the_start(monkeypatch):
    models, batch, cfg = collected()
    spy, before = Spy(monkeypatch), [p.clone() for p in models["policy"].parameters()]
    stats, average = do_update(models, batch, cfg, learn=False)
    assert {id(model) for model, _ in spy.calls} == {id(models["value_model"])}
    assert all(torch.equal(a, b) for a, b in zip(before, models["policy"].parameters()))
    assert stats["first_ratio"] == pytest.approx(1, abs=1e-5) and stats["clip_fraction"] == 0, "looked at, not learned"
    assert "policy_grad_norm" not in stats and stats["value_loss"] > 0


def test_the_average_is_taken_after_every_update(monkeypatch):
    models, batch, cfg = collected(ema=0.9, epochs=2)
    policy, history = models["policy"], []
    want = {k: v.clone() for k, v in policy.state_dict().items()}

    def step(optimizer, model, *rest):
        norm = optimizer_step(optimizer, model, *rest)
        if model is policy:
            history.append({k: v.clone() for k, v in model.state_dict().items()})
        return norm

    monkeypatch.setattr(ppo, "optimizer_step", step)
    _, average = do_update(models, batch, cfg)
    assert len(history) == 4
    for weights in history:
        want = {k: 0.9 * want[k] + 0.1 * weights[k] for k in want}
    for k in want:
        torch.testing.assert_close(average[k], want[k])


def test_an_epoch_shows_every_episode_once(monkeypatch):
    models, batch, cfg = collected(minibatch_size=4, epochs=2)
    seen, policy_loss = [], ppo.policy_loss

    def spy(new, old, *rest):
        seen.append(old.sum(1).tolist())
        return policy_loss(new, old, *rest)

    monkeypatch.setattr(ppo, "policy_loss", spy)
    do_update(models, batch, cfg)
    want = sorted(batch["logprobs"].sum(1).tolist())
    for epoch in (seen[:2], seen[2:]):
        assert sorted(x for minibatch in epoch for x in minibatch) == pytest.approx(want, abs=1e-5)
    assert sorted(seen[0]) != sorted(seen[2]), "shuffled anew"


# ---------------------------------------------------------------------------------------------------- from end to end

KEYS = {"iteration", "score", "kl", "first_ratio", "ratio", "clip_fraction", "approx_kl", "policy_grad_norm"}
KEYS |= {"policy_loss", "entropy", "value_loss", "explained_variance", "length", "without_eot", "distinct_2"}
KEYS |= {"learning_rate", "seconds_rollout", "seconds_sampling", "seconds_update"}
KEYS |= {"tokens_per_second_rollout", "tokens_per_second_update"}


def records_of(path):
    return [json.loads(line) for line in open(path)]


@pytest.mark.parametrize("ptx_coef, name, more", [(0.0, "ppo", set()), (0.3, "ppo_ptx", {"ptx_loss"})])
def test_from_end_to_end(data, run, tokenizer, encoding, ptx_coef, name, more):
    ppo.main(config(data, run, ptx_coef=ptx_coef, warmup_iterations=1))
    policy, _, checkpoint = load_checkpoint(run / f"{name}.pt", "policy", tokenizer=tokenizer)
    init, _, _ = load_checkpoint(run / "ppo_init.pt", "policy")
    assert not all(torch.equal(a, b) for a, b in zip(policy.parameters(), init.parameters()))
    assert checkpoint["step"] == 2 and checkpoint["config"]["ptx_coef"] == ptx_coef
    records = records_of(run / f"{name}.jsonl")
    assert [set(r) for r in records] == [KEYS | more] * 2
    assert records[0]["learning_rate"] == pytest.approx(0.1 * records[1]["learning_rate"])
    assert all(math.isfinite(v) for r in records for v in r.values())
    # the numbers of step 0: the checkpoint was trained with dropout, which is off here
    assert records[0]["kl"] == 0.0
    assert records[0]["first_ratio"] == pytest.approx(1, abs=1e-5)
    looks = records_of(run / f"{name}.samples.jsonl")
    prompts = [r["prompt"] for r in read_prompts(data, "valid")][:3]
    assert [(r["iteration"], r["prompt"]) for r in looks] == [(i, p) for i in (0, 1) for p in prompts]
    assert set(looks[0]) == {"iteration", "prompt", "completion", "score", "kl"}


def test_the_loop_of_main(data, run, monkeypatch):
    """Watches a whole run: frozen models, first minibatch, targets before whitening, counts, what is saved."""
    models, losses, batches, averages = [], [], [], []
    rollout, policy_loss, update, update_ema = ppo.rollout, ppo.policy_loss, ppo.update, ppo.update_ema

    def spy_rollout(*args):
        names = ("policy", "reference", "reward_model", "value_model")
        models.append({n: (m, {k: v.clone() for k, v in m.state_dict().items()}) for n, m in zip(names, args)})
        return rollout(*args)

    def spy_policy_loss(*args):
        losses.append(policy_loss(*args)[1])
        return policy_loss(*args)

    def spy_update(policy, value_model, optimizers, average, batch, *rest):
        batches.append(batch)
        return update(policy, value_model, optimizers, average, batch, *rest)

    def spy_ema(average, model, decay):
        update_ema(average, model, decay)
        averages.append(average)

    for name, spy in (("rollout", spy_rollout), ("policy_loss", spy_policy_loss), ("update", spy_update)):
        monkeypatch.setattr(ppo, name, spy)
    monkeypatch.setattr(ppo, "update_ema", spy_ema)
    steps = Spy(monkeypatch)
    cfg = config(data, run, iterations=3, epochs=2, kl_coef=0.4, lam=0.9, discount=0.97, learning_rate=0.02)
    ppo.main(cfg)

    # reference and reward model never change, and share nothing with what learns
    first, last = models[0], models[-1]
    for name in ("reference", "reward_model"):
        model, before = first[name]
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert not any(p.requires_grad for p in model.parameters())
    storage = {n: {v.data_ptr() for v in m.state_dict().values()} for n, (m, _) in last.items()}
    names = list(storage)
    for i, one in enumerate(names):
        assert all(storage[one].isdisjoint(storage[other]) for other in names[:i])
    assert all(torch.equal(first["policy"][1][k], v) for k, v in first["reference"][1].items())
    assert all(torch.equal(first["value_model"][1][k], v) for k, v in first["reward_model"][1].items())
    for name in ("policy", "value_model"):
        assert any(not torch.equal(first[name][1][k], v) for k, v in last[name][1].items())
    assert all(m.transformer.dropout.p == 0 for m, _ in last.values())

    # nothing has moved before the first step
    assert torch.equal(batches[0]["logprobs"], batches[0]["ref_logprobs"])
    assert losses[0]["ratio"].item() == pytest.approx(1, abs=1e-5) and losses[0]["clip_fraction"] == 0
    assert losses[0]["approx_kl"].item() == pytest.approx(0, abs=1e-6)
    updates = 8 // 4 * 2
    assert len(losses) == 3 * updates and len(steps.calls) == 2 * 3 * updates

    # value targets come from the plain advantages; only the policy gets whitened ones
    for batch in batches:
        mask = batch["mask"]
        rewards = -0.4 * (batch["logprobs"] - batch["ref_logprobs"])
        for b, ts in places(mask):
            rewards[b, ts[-1]] += batch["scores"][b]
        plain = gae_by_hand(rewards, batch["values"], mask, 0.97, 0.9)
        torch.testing.assert_close(batch["returns"], plain + batch["values"] * mask, atol=1e-4, rtol=1e-4)
        inside = plain[mask == 1]
        want = (inside - inside.mean()) / inside.std(unbiased=False)
        torch.testing.assert_close(batch["advantages"][mask == 1], want, atol=1e-3, rtol=1e-3)
    r = records_of(run / "ppo.jsonl")
    kl = ((batches[2]["logprobs"] - batches[2]["ref_logprobs"]) * batches[2]["mask"]).sum() / 8
    assert r[2]["kl"] == pytest.approx(kl.item(), abs=1e-4) and r[2]["kl"] != 0
    assert r[2]["ratio"] == pytest.approx(float(sum(x["ratio"] for x in losses[-updates:])) / updates, abs=1e-5)

    # the averaged weights are what is saved
    saved, _, _ = load_checkpoint(run / "ppo.pt", "policy")
    assert all(torch.equal(v, averages[-1][k]) for k, v in saved.state_dict().items())


def test_without_whitening_the_advantages_are_plain(data, run, monkeypatch):
    batches, update = [], ppo.update
    monkeypatch.setattr(ppo, "update", lambda *args: batches.append(args[4]) or update(*args))
    ppo.main(config(data, run, whiten=False, iterations=1))
    b = batches[0]
    torch.testing.assert_close(b["advantages"], (b["returns"] - b["values"]) * b["mask"])


def test_prompts_come_once_per_pass(data, run, encoding, monkeypatch):
    seen, rollout = [], ppo.rollout
    monkeypatch.setattr(ppo, "rollout", lambda *args: seen.extend(args[4]) or rollout(*args))
    prompts = [encoding.encode_ordinary(r["prompt"]) for r in read_prompts(data, "train")]
    n = len(prompts)
    ppo.main(config(data, run, iterations=3, batch_size=12, minibatch_size=12))
    assert sorted(seen[:n]) == sorted(prompts) and sorted(seen[n : 2 * n]) == sorted(prompts)
    assert seen[:n] != seen[n : 2 * n]


def test_value_only_iterations(data, run):
    ppo.main(config(data, run, iterations=3, value_only_iterations=2, ema=0.0))
    records = records_of(run / "ppo.jsonl")
    assert ["policy_grad_norm" in r for r in records] == [False, False, True]
    assert [r["kl"] == 0 for r in records] == [True] * 3 and records[0]["learning_rate"] == 0


def test_a_toy_reward_goes_up(data, run, tokenizer, tiny):
    """The reward is 1 if the last token is end-of-text. A few dozen iterations, and the policy ends its answers."""
    toy = ScalarModel(tiny)
    with torch.no_grad():
        for name, p in toy.named_parameters():
            if "c_proj" in name or "wpe" in name or name.endswith("bias"):
                p.zero_()  # blocks add nothing: the hidden state is the last token's embedding, layer-normalised
        eot = toy.transformer.ln_f(toy.transformer.wte.weight[-1])
        toy.head.weight.copy_(eot[None] / eot.square().sum())
    save_checkpoint(run / "toy.pt", toy, tokenizer, tiny, 0)
    cfg = config(
        data, run, iterations=40, batch_size=32, minibatch_size=8, max_new_tokens=4, kl_coef=0.0, learning_rate=0.01
    )
    ppo.main(replace(cfg, reward_model=str(run / "toy.pt"), look_every=100, value_learning_rate=1e-3))
    records = records_of(run / "ppo.jsonl")
    assert records[0]["without_eot"] > 0.9 and records[-1]["without_eot"] < 0.1
    assert records[-1]["score"] > 0.9 > 0.5 > records[0]["score"]
    averaged, encoding, _ = load_checkpoint(run / "ppo.pt", "policy")
    tokens, lengths, mask = generate(averaged, [[1, 2]] * 64, 4, encoding.eot_token, generator=generator(0))
    assert mask.sum(1).mean() < 3.5, "the average lags behind, and has learned too"


def test_the_penalty_holds_the_policy_back(data, run):
    """The same run with a large β stays closer to the reference."""
    kl = {}
    for beta in (0.0, 5.0):
        ppo.main(config(data, run, iterations=25, learning_rate=0.01, kl_coef=beta, batch_size=16, look_every=100))
        kl[beta] = sum(r["kl"] for r in records_of(run / "ppo.jsonl")[-5:]) / 5
    assert kl[5.0] < 0.5 * kl[0.0]


def test_same_seed_same_run(data, run):
    for name in ("one", "two"):
        ppo.main(config(data, run, name=name))
    one, two = (load_checkpoint(run / f"{name}.pt", "policy")[0].state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_divergence_stops_the_run(data, run):
    with pytest.raises(BadInput, match="learning_rate"):
        ppo.main(config(data, run, iterations=4, learning_rate=1e30))
    assert not (run / "ppo.pt").exists()


def test_divergence_in_the_last_update_stops_the_run(data, run):
    with pytest.raises(BadInput, match="learning_rate"):
        ppo.main(config(data, run, iterations=1, minibatch_size=8, learning_rate=1e30, look_every=100, ema=0.0))
    assert not (run / "ppo.pt").exists(), "broken weights are not saved"


BAD = [
    ("batch_size", 10),
    ("minibatch_size", 0),
    ("iterations", 0),
    ("epochs", 0),
    ("max_new_tokens", 0),
    ("look_every", 0),
    ("look_prompts", 0),
    ("ptx_per_episode", 0),
    ("ptx_window", 0),
    ("kl_coef", -0.1),
    ("ptx_coef", -1.0),
    ("lam", 1.5),
    ("discount", -0.1),
    ("ema", 1.0),
    ("clip_ratio", 0.0),
    ("clip_value", -1.0),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        ppo.main(config(data, run, **{flag: value}))


@pytest.mark.parametrize(
    "change, match", [({"max_new_tokens": 64}, "prompt"), ({"ptx_coef": 1.0, "ptx_window": 100}, "context")]
)
def test_what_does_not_fit_the_context(data, run, change, match):
    with pytest.raises(BadInput, match=match):
        ppo.main(config(data, run, **change))


def test_wrong_checkpoints(data, run):
    with pytest.raises(BadInput, match="scalar model is needed"):
        ppo.main(config(data, run, reward_model=str(run / "sft.pt")))
    with pytest.raises(BadInput, match="nothing.pt"):
        ppo.main(config(data, run, init=str(run / "nothing.pt")))
