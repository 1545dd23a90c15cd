"""PPO: the mathematics one function at a time, updates against one step by hand, the script from end to end."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from runs import OptimizerSteps, check_resuming, copy_of, metrics_of, records_of, same, weights_of

import ppo
from core import watch
from core.batches import generator
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import BadInput
from core.log import JsonLines
from core.optim import adamw
from data.folder import Corpus, read_prompts
from model import GPT, GPTConfig, ScalarModel, generate


def config(data="", out="", **changes):
    small = dict(data=str(data), out=str(out), iterations=2, batch_size=8, minibatch_size=4, max_new_tokens=6)
    small |= dict(ptx_window=8, value_only_iterations=0, sample_every=1, sample_prompts=3, device="cpu", threads=1)
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
            if t == ts[-1]:
                want += scores[b].item()
            assert rewards[b, t].item() == pytest.approx(want, abs=1e-6)
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


def test_policy_loss_of_every_token_matches_a_loop():
    torch.manual_seed(0)
    ratio, advantages = torch.randn(3, 50).exp(), torch.randn(3, 50)
    losses = ppo.clipped_policy_loss(ratio, advantages, 0.2)
    for b in range(3):
        for t in range(50):
            rho, A = ratio[b, t].item(), advantages[b, t].item()
            want = -min(A * rho, A * min(max(rho, 0.8), 1.2))
            assert losses[b, t].item() == pytest.approx(want, rel=1e-5)


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
    ratio = torch.tensor([[ratio]], requires_grad=True)
    ppo.clipped_policy_loss(ratio, torch.tensor([[advantage]]), 0.2).sum().backward()
    assert ratio.grad.item() == pytest.approx(-advantage if learns else 0.0)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_value_loss_of_every_token_matches_a_loop(clip):
    torch.manual_seed(0)
    new, old, returns = (torch.randn(3, 50) for _ in range(3))
    losses = ppo.clipped_value_loss(new, old, returns, clip)
    for b in range(3):
        for t in range(50):
            V, V_old, G = (x[b, t].item() for x in (new, old, returns))
            near = V_old + min(max(V - V_old, -clip), clip)
            want = max((V - G) ** 2, (near - G) ** 2) if clip else (V - G) ** 2
            assert losses[b, t].item() == pytest.approx(0.5 * want, rel=1e-4, abs=1e-6)


def test_more_padding_changes_nothing():
    mask, a, b, c = masked(garbage=(0.0, 0.0, 0.0))
    wide = [torch.cat([x, torch.full((3, 4), 7.0)], dim=1) for x in (a, b, c)]
    wide_mask = torch.cat([mask, torch.zeros(3, 4)], dim=1)
    assert watch.explained_variance(a, b, mask) == pytest.approx(watch.explained_variance(*wide[:2], wide_mask))
    torch.testing.assert_close(ppo.whiten(a, mask), ppo.whiten(wide[0], wide_mask)[:, :6])
    torch.testing.assert_close(ppo.gae(a, b, mask, 1, 0.9)[0], ppo.gae(*wide[:2], wide_mask, 1, 0.9)[0][:, :6])


def test_explained_variance():
    mask, returns, noise = masked(garbage=(99.0, 50.0))
    inside = mask == 1
    assert watch.explained_variance(returns, returns, mask) == pytest.approx(1)
    assert watch.explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0, abs=1e-5)
    assert watch.explained_variance(-returns, returns, mask) == pytest.approx(-3, abs=1e-4)
    G, V = returns[inside], noise[inside]
    want = 1 - ((G - V).var() / G.var()).item()
    assert watch.explained_variance(noise, returns, mask) == pytest.approx(want, abs=1e-4)


def test_warm_up():
    cfg = config(learning_rate=3.0, warmup_iterations=10)
    rates = [ppo.policy_learning_rate(updates, cfg) for updates in range(13)]
    for updates in range(10):
        assert rates[updates] == pytest.approx(0.3 + 2.7 * updates / 10)
    assert rates[10] == rates[11] == rates[12] == 3.0
    assert ppo.policy_learning_rate(0, replace(cfg, warmup_iterations=0)) == 3.0


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
    assert watch.distinct_2(tokens, mask) == pytest.approx(3 / 5)  # 23 32 23 | 23 35: three different among five


# ---------------------------------------------------------------------------------------------------- collecting

V, EOT = 12, 11
CFG = GPTConfig(2, 2, 16, 64, V)
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6], [5, 3], [5, 8, 9], [7, 9], [3], [2, 3, 8, 4]]


def make(kind, seed, spread=1):
    torch.manual_seed(seed)
    model = kind(CFG).eval()
    model.transformer.wte.weight.data *= spread
    return model


def collected(**changes):
    """Models, and episodes with everything that the updates need. -> models, episodes, cfg"""
    cfg = config(max_new_tokens=10, **changes)
    models = {"policy": make(GPT, 1, 10), "reference": make(GPT, 2, 10)}
    models |= {"reward_model": make(ScalarModel, 3), "value_model": make(ScalarModel, 4)}
    episodes = ppo.rollout(models["policy"], PROMPTS, EOT, cfg, generator(0))
    episodes |= ppo.score_responses(episodes, *models.values(), cfg)
    mask, logprobs, ref_logprobs = episodes["mask"], episodes["logprobs"], episodes["ref_logprobs"]
    rewards = ppo.shaped_rewards(episodes["scores"], logprobs, ref_logprobs, mask, cfg.kl_coef)
    advantages, episodes["returns"] = ppo.gae(rewards, episodes["values"], mask, cfg.discount, cfg.lam)
    episodes["advantages"] = ppo.whiten(advantages, mask)
    return models, episodes, cfg


def test_rollout_samples_from_the_policy_at_temperature_1():
    models, episodes, cfg = collected()
    uniforms = torch.rand(len(PROMPTS), 10, generator=generator(0)).T
    tokens, lengths, mask = generate(models["policy"], PROMPTS, 10, EOT, uniforms=uniforms)  # the plain one
    for key, want in (("tokens", tokens), ("lengths", lengths), ("mask", mask)):
        assert torch.equal(episodes[key], want)
    ended = [tokens[b, n - 1].item() == EOT for b, n in enumerate(lengths)]
    assert episodes["ended"].tolist() == ended and 0 < sum(ended) < len(ended)


@torch.no_grad()
def test_scores_logprobs_and_values_are_those_of_every_response_alone():
    models, episodes, cfg = collected()
    for b, n in enumerate(episodes["lengths"].tolist()):
        row, start = episodes["tokens"][b : b + 1, :n], len(PROMPTS[b])
        assert episodes["scores"][b].item() == pytest.approx(models["reward_model"](row)[0, -1].item(), abs=1e-5)
        values = models["value_model"](row)[0]
        log_p = {name: models[name].unembed(models[name](row))[0].log_softmax(-1) for name in ("policy", "reference")}
        for t in range(start, n):
            token = row[0, t]
            assert episodes["logprobs"][b, t].item() == pytest.approx(log_p["policy"][t - 1, token].item(), abs=1e-4)
            want = log_p["reference"][t - 1, token].item()
            assert episodes["ref_logprobs"][b, t].item() == pytest.approx(want, abs=1e-4)
            assert episodes["values"][b, t].item() == pytest.approx(values[t - 1].item(), abs=1e-5)


def test_nothing_outside_the_response():
    _, episodes, _ = collected()
    outside = episodes["mask"] == 0
    assert outside.any()
    for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
        assert (episodes[name][outside] == 0).all()


def test_the_score_of_a_response_without_an_end():
    models, episodes, _ = collected()
    plain = episodes["scores"]
    other = ppo.score_responses(episodes, *models.values(), config(score_without_eot=False, missing_eot_score=-9.0))
    assert 0 < episodes["ended"].sum() < 8
    for ended, one, score in zip(episodes["ended"], plain, other["scores"]):
        assert score == (one if ended else -9.0)


def test_selected_episodes_are_cut_to_the_longest_of_them():
    _, episodes, _ = collected()
    rows = episodes["lengths"].argsort()[:3]
    part = ppo.select(episodes, rows)
    longest = int(episodes["lengths"][rows].max())
    assert longest < episodes["mask"].size(1) and part["mask"].shape == (3, longest)
    for name, x in episodes.items():
        for got, i in zip(part[name], rows):
            assert torch.equal(got, x[i] if x.dim() == 1 else x[i, :longest])
    assert torch.equal(part["mask"].sum(1), episodes["mask"][rows].sum(1)), "nothing of a response is cut off"
    assert ppo.select(episodes, torch.tensor([], dtype=torch.long))["mask"].size(0) == 0


def test_metrics_of_the_episodes_by_hand():
    _, episodes, _ = collected()
    metrics, kls, logprobs = watch.episode_metrics(episodes), [], []
    for b, ts in places(episodes["mask"]):
        kls.append(sum((episodes["logprobs"][b, t] - episodes["ref_logprobs"][b, t]).item() for t in ts))
        logprobs += [episodes["logprobs"][b, t].item() for t in ts]
    assert metrics["kl"] == pytest.approx(sum(kls) / 8, rel=1e-4)
    assert metrics["entropy"] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-4)
    assert metrics["length"] == pytest.approx(len(logprobs) / 8)
    assert metrics["score"] == pytest.approx(sum(episodes["scores"].tolist()) / 8, abs=1e-5)
    assert metrics["without_eot"] == pytest.approx(sum(not ended for ended in episodes["ended"].tolist()) / 8)


def test_means_over_minibatches():
    assert watch.mean_metrics([{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 0.0}]) == {"a": 1.5, "b": 2.0}
    assert watch.mean_metrics([]) == {}


# ---------------------------------------------------------------------------------------------------- updating


def moved_on(seed=0, **changes):
    """Episodes of a policy and a value model that have changed since: ratios on both sides of the clipping.

    Two pretraining examples of eight tokens are beside each episode.
    """
    models, episodes, cfg = collected(ptx_per_episode=2, **changes)
    rng = generator(seed, "noise")
    for name, scale in (("logprobs", 0.3), ("values", 0.3)):
        noise = scale * torch.randn(episodes[name].shape, generator=rng)
        episodes[name] = (episodes[name] + noise) * episodes["mask"]
    episodes["pretraining"] = torch.randint(V, (len(PROMPTS), 2, cfg.ptx_window + 1), generator=rng)
    return models, episodes, cfg


def policy_objective(policy, episodes, gamma, clip_ratio):
    """Eq. 2 in one go, token by token: what is to be minimised, and the metrics."""
    logits = policy.unembed(policy(episodes["tokens"])).log_softmax(-1)
    losses, ratios = [], []
    for b, ts in places(episodes["mask"]):
        for t in ts:
            ratio = (logits[b, t - 1, episodes["tokens"][b, t]] - episodes["logprobs"][b, t]).exp()
            A = episodes["advantages"][b, t]
            losses.append(-torch.minimum(A * ratio, A * ratio.clamp(1 - clip_ratio, 1 + clip_ratio)))
            ratios.append(ratio.item())
    pages = episodes["pretraining"].flatten(0, 1)
    page_logits = policy.unembed(policy(pages[:, :-1]))
    ptx_loss = F.cross_entropy(page_logits.flatten(0, 1), pages[:, 1:].flatten())
    n, policy_loss = len(losses), torch.stack(losses).mean()
    metrics = {
        "policy_loss": policy_loss.item(),
        "ratio": sum(ratios) / n,
        "clip_fraction": sum(abs(ratio - 1) > clip_ratio for ratio in ratios) / n,
        "approx_kl": sum(ratio - 1 - math.log(ratio) for ratio in ratios) / n,
    }
    if gamma:
        metrics["ptx_loss"] = ptx_loss.item()
    return policy_loss + gamma * ptx_loss, metrics


def step_by_hand(model, loss, learning_rate, max_grad_norm):
    """One step of gradient descent with the gradient clipped to a norm. -> ({name: new weight}, norm before)"""
    names, weights = zip(*model.named_parameters())
    gradients = torch.autograd.grad(loss, weights)
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    scale = min(1.0, max_grad_norm / norm)
    return {n: w - learning_rate * scale * g for n, w, g in zip(names, weights, gradients)}, norm


def assert_weights(model, want):
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            weight, want[name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("micro_batch_size", [0, 1, 3])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("max_grad_norm", [0.1, 1000.0])
def test_a_policy_update_is_one_step_on_equation_2(micro_batch_size, gamma, max_grad_norm):
    """Plain gradient descent, so that the weights tell the size of the gradient; micro-batches add up to the whole."""
    settings = dict(ptx_coef=gamma, micro_batch_size=micro_batch_size, max_grad_norm=max_grad_norm, ema=0.9)
    models, episodes, cfg = moved_on(**settings)
    policy = models["policy"]
    loss, want_metrics = policy_objective(policy, episodes, gamma, 0.2)
    want, norm = step_by_hand(policy, loss, 0.5, max_grad_norm)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    average = {name: value.clone() for name, value in before.items()}
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    metrics = ppo.update_policy(policy, optimizer, average, episodes, 0.5, cfg)
    assert_weights(policy, want)
    assert 0 < want_metrics["clip_fraction"] < 1
    assert metrics == pytest.approx(want_metrics | {"grad_norm": norm}, rel=1e-3, abs=1e-5)
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(average[name], 0.9 * before[name] + 0.1 * value)
    assert all(p.grad is None for p in policy.parameters()), "nothing is left for the next minibatch"


@pytest.mark.parametrize("micro_batch_size", [0, 1, 3])
@pytest.mark.parametrize("clip_value", [0.0, 0.2])
def test_a_value_update_is_one_step_on_the_clipped_error(micro_batch_size, clip_value):
    settings = dict(micro_batch_size=micro_batch_size, clip_value=clip_value, value_learning_rate=0.5)
    models, episodes, cfg = moved_on(**settings)
    model = models["value_model"]
    values, losses = model(episodes["tokens"]), []
    for b, ts in places(episodes["mask"]):
        for t in ts:
            V, V_old, G = values[b, t - 1], episodes["values"][b, t], episodes["returns"][b, t]
            near = V_old + (V - V_old).clamp(-clip_value, clip_value)
            losses.append(0.5 * (torch.maximum((V - G) ** 2, (near - G) ** 2) if clip_value else (V - G) ** 2))
    loss = torch.stack(losses).mean()
    want, _ = step_by_hand(model, loss, 0.5, 1.0)
    metrics = ppo.update_values(model, torch.optim.SGD(model.parameters(), lr=0.0), episodes, cfg)
    assert metrics == {"value_loss": pytest.approx(loss.item(), rel=1e-4)}
    assert_weights(model, want)


def test_tokens_after_the_end_do_not_teach():
    """Garbage behind the responses changes neither update."""
    results = []
    for garbage in (False, True):
        models, episodes, cfg = moved_on(ptx_coef=0.5)
        if garbage:
            after = torch.arange(episodes["tokens"].size(1)) >= episodes["lengths"][:, None]
            assert after.any()
            episodes["tokens"][after] = torch.randint(V, (int(after.sum()),), generator=generator(1))
            for name, value in (("logprobs", 3.0), ("values", 9.0), ("advantages", 7.0), ("returns", 8.0)):
                episodes[name][after] = value
        policy, value_model = models["policy"], models["value_model"]
        average = {name: value.clone() for name, value in policy.state_dict().items()}
        optimizers = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (policy, value_model))
        metrics = ppo.update_policy(policy, next(optimizers), average, episodes, 0.1, cfg)
        metrics |= ppo.update_values(value_model, next(optimizers), episodes, cfg)
        results.append((metrics, {**policy.state_dict(), **value_model.state_dict()}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(weight, results[1][1][name])


def policy_gradient(monkeypatch, gamma):
    models, episodes, cfg = moved_on(ptx_coef=gamma)
    steps = OptimizerSteps(monkeypatch, ppo, step=False)
    average = {name: value.clone() for name, value in models["policy"].state_dict().items()}
    ppo.update_policy(models["policy"], adamw(models["policy"], 1.0), average, episodes, 1.0, cfg)
    return steps.calls[0][1], episodes["pretraining"], models["policy"]


def test_the_gradient_is_linear_in_the_pretraining_coefficient(monkeypatch):
    (g0, _, _), (g1, pages, policy), (g2, _, _) = (policy_gradient(monkeypatch, gamma) for gamma in (0.0, 1.0, 2.0))
    logits = policy.unembed(policy(pages[:, :, :-1].flatten(0, 1)))
    ptx_loss = F.cross_entropy(logits.flatten(0, 1), pages[:, :, 1:].flatten())
    for zero, one, two, want in zip(g0, g1, g2, torch.autograd.grad(ptx_loss, list(policy.parameters())), strict=True):
        torch.testing.assert_close(one - zero, want, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(two - zero, 2 * want, atol=1e-5, rtol=1e-3)


def test_ppo_ptx_with_coefficient_0_is_ppo_bit_for_bit(data, run, monkeypatch):
    """1e-300 goes all the way through the pretraining term and is 0 in single precision."""
    pages, lm_loss = [], ppo.lm_loss
    monkeypatch.setattr(ppo, "lm_loss", lambda model, tokens: pages.append(tokens) or lm_loss(model, tokens))
    ppo.main(config(data, run, name="ppo"))
    assert not pages
    ppo.main(config(data, run, name="ptx", ptx_coef=1e-300))
    assert pages and same(weights_of(run / "ppo.pt"), weights_of(run / "ptx.pt"))
    without = [{key: value for key, value in r.items() if key != "ptx_loss"} for r in metrics_of(run / "ptx.jsonl")]
    assert without == metrics_of(run / "ppo.jsonl")


# ---------------------------------------------------------------------------------------------------- from end to end

ALWAYS = {"step", "score", "kl", "entropy", "explained_variance", "length", "without_eot", "distinct_2", "value_loss"}
ALWAYS |= {"seconds_rollout", "seconds_update"}
OF_THE_POLICY = {"policy_loss", "ratio", "clip_fraction", "approx_kl", "grad_norm", "first_ratio", "learning_rate"}


@pytest.mark.parametrize("ptx_coef, name, more", [(0.0, "ppo", set()), (0.3, "ppo_ptx", {"ptx_loss"})])
def test_from_end_to_end(data, run, tokenizer_spec, ptx_coef, name, more, capsys):
    ppo.main(config(data, run, ptx_coef=ptx_coef, warmup_iterations=1))
    assert "next: python evaluate.py" in capsys.readouterr().out
    policy, _, checkpoint = load_checkpoint(run / f"{name}.pt", "policy", tokenizer_spec=tokenizer_spec)
    assert not same(policy.state_dict(), weights_of(run / "ppo_init.pt"))
    assert checkpoint["step"] == 2 and checkpoint["config"]["ptx_coef"] == ptx_coef
    records = records_of(run / f"{name}.jsonl")
    assert [set(r) for r in records] == [ALWAYS | OF_THE_POLICY | more] * 2
    assert [r["step"] for r in records] == [1, 2]
    assert records[0]["learning_rate"] == pytest.approx(0.1 * records[1]["learning_rate"])
    assert all(math.isfinite(value) for r in records for value in r.values())
    # nothing has moved before the first step: the checkpoint was trained with dropout, which is off here
    assert records[0]["kl"] == 0.0
    assert [r["first_ratio"] for r in records] == pytest.approx([1, 1], abs=1e-5)
    samples = records_of(run / f"{name}.samples.jsonl")
    prompts = [r["prompt"] for r in read_prompts(data, "valid")][:3]
    assert [(r["iteration"], r["prompt"]) for r in samples] == [(i, p) for i in (0, 1) for p in prompts]
    assert set(samples[0]) == {"iteration", "prompt", "completion", "score", "kl"}


@torch.no_grad()
def test_samples_are_kept_with_score_and_kl(tmp_path, tokenizer, tiny, capsys):
    torch.manual_seed(0)
    policy, reference, reward_model = GPT(tiny).eval(), GPT(tiny).eval(), ScalarModel(tiny).eval()
    prompts, cfg = ["The cat", "A dog sat", "It is\n"], config(max_new_tokens=6)
    samples = JsonLines(tmp_path / "samples.jsonl")
    watch.keep_samples(samples, 4, policy, reference, reward_model, prompts, tokenizer, cfg)
    ids = [tokenizer.encode_ordinary(prompt) for prompt in prompts]
    uniforms = torch.rand(6, 3, generator=generator(cfg.seed, "samples"))
    tokens, lengths, _ = generate(policy, ids, 6, tokenizer.eot_token, uniforms=uniforms)
    records = records_of(tmp_path / "samples.jsonl")
    for i, record in enumerate(records):
        row, start = tokens[i, : lengths[i]], len(ids[i])
        text = tokenizer.decode([token for token in row[start:].tolist() if token != tokenizer.eot_token])
        assert (record["iteration"], record["prompt"], record["completion"]) == (4, prompts[i], text)
        assert record["score"] == pytest.approx(reward_model(row[None])[0, -1].item(), abs=1e-4)
        kl = 0.0
        for t in range(start, len(row)):
            for model, sign in ((policy, 1), (reference, -1)):
                kl += sign * model.unembed(model(row[None, :t]))[0, -1].log_softmax(-1)[row[t]].item()
        assert record["kl"] == pytest.approx(kl, abs=1e-4)
    printed = capsys.readouterr().out
    assert (
        len(records) == 3 and "'A dog sat' -> " in printed and "'It is' -> " in printed and "'The cat'" not in printed
    )


class Watch:
    """What a run of ppo.main hands to its own functions, iteration by iteration."""

    def __init__(self, monkeypatch):
        self.prompts, self.rollouts, self.models, self.before, self.minibatches = [], [], [], [], []
        self.values, self.averages = [], []
        rollout, score, policy, values = ppo.rollout, ppo.score_responses, ppo.update_policy, ppo.update_values

        def spy_rollout(model, prompts, eot, cfg, rng):
            self.prompts.append(prompts)
            self.rollouts.append(rollout(model, prompts, eot, cfg, rng))
            return dict(self.rollouts[-1])

        def spy_score(episodes, *models_and_cfg):
            names = ("policy", "reference", "reward_model", "value_model")
            self.models.append(dict(zip(names, models_and_cfg)))
            self.before.append(
                {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in self.models[-1].items()}
            )
            return score(episodes, *models_and_cfg)

        def spy_policy(model, optimizer, average, minibatch, rate, cfg):
            metrics = policy(model, optimizer, average, minibatch, rate, cfg)
            self.minibatches.append((len(self.models) - 1, minibatch, rate, metrics))
            self.averages.append({k: v.clone() for k, v in average.items()})
            return metrics

        def spy_values(model, optimizer, minibatch, cfg):
            self.values.append((len(self.models) - 1, minibatch))
            return values(model, optimizer, minibatch, cfg)

        for name, spy in (("rollout", spy_rollout), ("score_responses", spy_score)):
            monkeypatch.setattr(ppo, name, spy)
        for name, spy in (("update_policy", spy_policy), ("update_values", spy_values)):
            monkeypatch.setattr(ppo, name, spy)


def test_the_loop_of_main(data, run, monkeypatch):
    """Watches a whole run: frozen models, first minibatch, targets before whitening, counts, what is saved."""
    watch, steps = Watch(monkeypatch), OptimizerSteps(monkeypatch, ppo)
    changes = dict(iterations=3, epochs=2, kl_coef=0.4, lam=0.9, discount=0.97, learning_rate=0.02, ema=0.9)
    cfg = config(data, run, ptx_coef=0.2, name="x", warmup_iterations=2, **changes)
    ppo.main(cfg)

    # reference and reward model never change, and share nothing with what learns
    first, last, models = watch.before[0], watch.before[-1], watch.models[-1]
    for name in ("reference", "reward_model"):
        assert same(first[name], last[name]) and same(first[name], models[name].state_dict())
        assert not any(p.requires_grad for p in models[name].parameters())
    storage = {n: {v.data_ptr() for v in m.state_dict().values()} for n, m in models.items()}
    for one in storage:
        assert all(storage[one].isdisjoint(storage[other]) for other in storage if other != one)
    assert same(first["policy"], first["reference"]) and same(first["policy"], weights_of(run / "ppo_init.pt"))
    assert same(first["value_model"], first["reward_model"]) and same(
        first["value_model"], weights_of(run / "reward.pt")
    )
    for name in ("policy", "value_model"):
        assert not same(first[name], last[name])
    assert all(m.transformer.dropout.p == 0 and not m.training for m in models.values())

    # nothing has moved before the first step
    _, minibatch, _, metrics = watch.minibatches[0]
    assert torch.equal(minibatch["logprobs"], minibatch["ref_logprobs"])
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)

    # every iteration: each episode once per epoch, one step of each model per minibatch
    per_epoch, corpus = 8 // 4, Corpus(data, "train")
    assert len(watch.minibatches) == len(watch.values) == 3 * 2 * per_epoch
    assert len(steps.calls) == 2 * len(watch.minibatches), "one step for both terms of the objective"
    for iteration in range(3):
        score = [m["scores"].tolist() for i, m, *_ in watch.minibatches if i == iteration]
        assert score == [m["scores"].tolist() for i, m in watch.values if i == iteration]
        epochs = [sum(score[:per_epoch], []), sum(score[per_epoch:], [])]
        assert len(set(epochs[0])) == 8 and sorted(epochs[0]) == sorted(epochs[1])
        assert epochs[0] != epochs[1], "shuffled anew"
        pages = [m["pretraining"].tolist() for i, m, *_ in watch.minibatches if i == iteration]
        windows = corpus.windows(8 * 4, 8 + 1, generator(0, "pretraining", iteration)).view(8, 4, 9)
        assert sorted(sum(pages[:per_epoch], [])) == sorted(sum(pages[per_epoch:], [])) == sorted(windows.tolist())
    for iteration, _, rate, _ in watch.minibatches:
        assert rate == pytest.approx(ppo.policy_learning_rate(iteration, cfg))

    # value targets come from the plain advantages; only the policy gets whitened ones
    for iteration in range(3):
        some = [m for i, m, *_ in watch.minibatches if i == iteration][:per_epoch]
        inside, whitened = [], []
        for m in some:
            mask, rewards = m["mask"], -0.4 * (m["logprobs"] - m["ref_logprobs"])
            for b, ts in places(mask):
                rewards[b, ts[-1]] += m["scores"][b]
            plain = gae_by_hand(rewards, m["values"], mask, 0.97, 0.9)
            torch.testing.assert_close(m["returns"], plain + m["values"] * mask, atol=1e-4, rtol=1e-4)
            inside.append(plain[mask == 1])
            whitened.append(m["advantages"][mask == 1])
        inside = torch.cat(inside)
        want = (inside - inside.mean()) / inside.std(unbiased=False)
        torch.testing.assert_close(torch.cat(whitened), want, atol=1e-3, rtol=1e-3)

    # the log holds means over the minibatches, and the averaged weights are what is saved
    records = records_of(run / "x.jsonl")
    for iteration, record in enumerate(records):
        some = [metrics for i, *_, metrics in watch.minibatches if i == iteration]
        for name in ("ratio", "ptx_loss", "grad_norm", "approx_kl"):
            assert record[name] == pytest.approx(sum(m[name] for m in some) / 4, abs=1e-5)
        assert record["first_ratio"] == pytest.approx(some[0]["ratio"], abs=1e-5) != record["ratio"]
        episodes = [m for i, m, *_ in watch.minibatches if i == iteration][:per_epoch]
        kl = sum(((m["logprobs"] - m["ref_logprobs"]) * m["mask"]).sum().item() for m in episodes) / 8
        assert record["kl"] == pytest.approx(kl, abs=1e-4) and (record["kl"] != 0) == (iteration > 0)
    assert same(weights_of(run / "x.pt"), watch.averages[-1])
    assert Counter(i for i, *_ in watch.minibatches) == {0: 4, 1: 4, 2: 4}


def test_without_whitening_the_advantages_are_plain(data, run, monkeypatch):
    watch = Watch(monkeypatch)
    ppo.main(config(data, run, whiten=False, iterations=1))
    for _, m, *_ in watch.minibatches:
        torch.testing.assert_close(m["advantages"], (m["returns"] - m["values"]) * m["mask"])


def test_prompts_come_once_per_pass(data, run, tokenizer, monkeypatch):
    watch = Watch(monkeypatch)
    prompts = [tokenizer.encode_ordinary(r["prompt"]) for r in read_prompts(data, "train")]
    n = len(prompts)
    ppo.main(config(data, run, iterations=3, batch_size=12, minibatch_size=12))
    seen = sum(watch.prompts, [])
    assert sorted(seen[:n]) == sorted(prompts) and sorted(seen[n : 2 * n]) == sorted(prompts)
    assert seen[:n] != seen[n : 2 * n]
    first, second, third = (episodes["tokens"] for episodes in watch.rollouts)
    assert first.shape != second.shape or not torch.equal(first, second), "other random numbers in every iteration"


def test_only_the_value_model_learns_at_the_start(data, run, monkeypatch):
    watch = Watch(monkeypatch)
    ppo.main(config(data, run, iterations=4, value_only_iterations=2, warmup_iterations=3))
    records = records_of(run / "ppo.jsonl")
    assert [set(r) for r in records] == [ALWAYS, ALWAYS, ALWAYS | OF_THE_POLICY, ALWAYS | OF_THE_POLICY]
    assert [i for i, *_ in watch.minibatches] == [2, 2, 3, 3] and [i for i, _ in watch.values] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    policies, values = ([b[name] for b in watch.before] for name in ("policy", "value_model"))
    assert same(policies[0], policies[1]) and same(policies[0], policies[2]) and not same(policies[2], policies[3])
    assert not same(values[0], values[1]) and not same(values[1], values[2])
    assert [r["kl"] == 0 for r in records] == [True, True, True, False]
    assert records[2]["learning_rate"] == pytest.approx(0.1 * ppo.Config.learning_rate), (
        "the warm-up begins when the policy does"
    )
    assert records[3]["learning_rate"] == pytest.approx(0.4 * ppo.Config.learning_rate)


def test_samples_change_nothing(data, run):
    for name, every, prompts in (("often", 1, 6), ("rarely", 100, 1)):
        ppo.main(config(data, run, iterations=3, name=name, sample_every=every, sample_prompts=prompts))
    assert same(weights_of(run / "often.pt"), weights_of(run / "rarely.pt"))
    assert {r["iteration"] for r in records_of(run / "rarely.samples.jsonl")} == {0, 2}, "the first and the last"


def test_a_toy_reward_goes_up(data, run, tokenizer_spec, tiny):
    """The reward is 1 if the last token is end-of-text. A few dozen iterations, and the policy ends its answers."""
    toy = ScalarModel(tiny)
    with torch.no_grad():
        for name, p in toy.named_parameters():
            if "c_proj" in name or "wpe" in name or name.endswith("bias"):
                p.zero_()  # blocks add nothing: the hidden state is the last token's embedding, layer-normalised
        eot = toy.transformer.ln_f(toy.transformer.wte.weight[-1])
        toy.head.weight.copy_(eot[None] / eot.square().sum())
    save_checkpoint(run / "toy.pt", toy, tokenizer_spec, {}, 0)
    cfg = config(data, run, iterations=40, batch_size=32, minibatch_size=8, max_new_tokens=4, kl_coef=0.0)
    cfg = replace(cfg, learning_rate=0.01, reward_model=str(run / "toy.pt"), sample_every=100, value_learning_rate=1e-3)
    ppo.main(cfg)
    records = records_of(run / "ppo.jsonl")
    assert records[0]["without_eot"] > 0.9 and records[-1]["without_eot"] < 0.1
    assert records[-1]["score"] > 0.9 > 0.5 > records[0]["score"]
    averaged, tokenizer, _ = load_checkpoint(run / "ppo.pt", "policy")
    uniforms = torch.rand(4, 64, generator=generator(0))
    _, _, mask = generate(averaged, [[1, 2]] * 64, 4, tokenizer.eot_token, uniforms=uniforms)
    assert mask.sum(1).mean() < 3.5, "the average lags behind, and has learned too"
    values, _, _ = load_checkpoint(run / "ppo.value.pt", "scalar")  # what page.py shows
    assert values.head.bias.item() != toy.head.bias.item(), "it has learned, and is no longer the reward model"


def test_anything_that_scores_can_stand_in_for_the_reward_model(data, run):
    """Who likes responses that end with an odd id: PPO makes them, and the samples have these scores."""
    said = []

    class LikesOddEnds:
        def score(self, tokens, lengths):
            said.append((tokens.gather(1, lengths[:, None] - 1) % 2).squeeze(1).float())
            return said[-1]

    cfg = config(data, run, iterations=25, batch_size=32, learning_rate=0.01, kl_coef=0.0, sample_every=100)
    ppo.main(cfg, reward_model=LikesOddEnds())
    records, samples = records_of(run / "ppo.jsonl"), records_of(run / "ppo.samples.jsonl")
    assert records[0]["score"] < 0.7 and records[-1]["score"] > 0.9
    assert [sample["score"] for sample in samples[-3:]] == said[-1].tolist()


def test_the_penalty_holds_the_policy_back(data, run):
    """The same run with a large β stays closer to the reference."""
    kl = {}
    for beta in (0.0, 5.0):
        ppo.main(config(data, run, iterations=25, learning_rate=0.01, kl_coef=beta, batch_size=16, sample_every=100))
        kl[beta] = sum(r["kl"] for r in records_of(run / "ppo.jsonl")[-5:]) / 5
    assert kl[5.0] < 0.5 * kl[0.0]


def test_same_seed_same_run_and_another_seed_another(data, run):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        ppo.main(config(data, run, name=name, seed=seed))
    one, two, other = (weights_of(run / f"{name}.pt") for name in ("one", "two", "other"))
    assert same(one, two) and not same(one, other)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(data, run, tmp_path_factory, monkeypatch, capsys):
    cfg = config(data, run, iterations=25, ptx_coef=0.5, value_only_iterations=3, sample_every=2, epochs=2)
    other = copy_of(run, tmp_path_factory)
    check_resuming(ppo, cfg, "ppo_ptx", "ppo_ptx.jsonl", other, monkeypatch, capsys)
    samples = "ppo_ptx.samples.jsonl"
    assert (run / samples).read_bytes() == (other / samples).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"iterations": 4}, {"iterations": 1, "minibatch_size": 8, "sample_every": 100, "ema": 0.0}],
    ids=["on the way", "in the last update"],
)
def test_divergence_stops_the_run(data, run, changes):
    with pytest.raises(BadInput, match="learning_rate"):
        ppo.main(config(data, run, learning_rate=1e30, warmup_iterations=0, **changes))
    assert not (run / "ppo.pt").exists(), "broken weights are not saved"


BAD = [
    ("batch_size", 10),
    ("minibatch_size", 0),
    ("iterations", 0),
    ("epochs", 0),
    ("max_new_tokens", 0),
    ("sample_every", 0),
    ("sample_prompts", 0),
    ("ptx_per_episode", 0),
    ("ptx_window", 0),
    ("ptx_window", 65),
    ("kl_coef", -0.1),
    ("ptx_coef", -1.0),
    ("lam", 1.5),
    ("discount", -0.1),
    ("ema", 1.1),
    ("clip_ratio", 0.0),
    ("clip_value", -1.0),
    ("value_only_iterations", 2),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        ppo.main(config(data, run, **{flag: value}))


def test_what_does_not_fit_the_context(data, run):
    with pytest.raises(BadInput, match="prompt"):
        ppo.main(config(data, run, max_new_tokens=64))


def test_wrong_checkpoints(data, run):
    with pytest.raises(BadInput, match="scalar model is needed"):
        ppo.main(config(data, run, reward_model=str(run / "sft.pt")))
    with pytest.raises(BadInput, match="nothing.pt"):
        ppo.main(config(data, run, init=str(run / "nothing.pt")))
