"""The same numbers on a GPU as on the CPU. Skipped where there is no GPU; `python -m pytest tests/test_cuda.py` on one.

float32 on both: results differ by the order of additions only. bfloat16: by its 8 bits, so only losses are compared.
"""

import pytest
import torch

import core.sampling
import model as model_file
import ppo
from core.batches import generator
from core.config import Training
from core.device import configure_model, sampling_copy
from core.optim import adamw
from core.sampling import generate
from model import GPT, GPTConfig, ScalarModel, lm_loss, pad, token_logprobs, token_values

CUDA = "cuda"
CFG = GPTConfig(3, 4, 64, 128, 500)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def models(device, **settings):
    """Policy, reference, reward model and value model: the same weights on every device."""
    torch.manual_seed(0)
    made = [kind(CFG) for kind in (GPT, GPT, ScalarModel, ScalarModel)]
    for model in made:
        for p in model.parameters():
            p.data += 0.05 * torch.randn_like(p)
    cfg = Training(device=device, **{"dtype": "float32"} | settings)
    return [configure_model(model.to(device).eval(), cfg) for model in made]


def one_iteration(device, **settings):
    """Rollout and one pass of updates. -> episodes, metrics of the first update, of the last, the weights after it."""
    settings = {"dtype": "float32"} | settings
    policy, reference, reward_model, value_model = models(device, **settings)
    cfg = ppo.Config(device=device, batch_size=16, minibatch_size=8, max_new_tokens=24, ptx_coef=0.5, **settings)
    rng = torch.Generator().manual_seed(3)
    prompts = [torch.randint(499, (n,), generator=rng).tolist() for n in range(3, 19)]
    episodes = ppo.rollout(sampling_copy(policy, cfg), prompts, 499, cfg, rng)
    episodes |= ppo.score_responses(episodes, policy, reference, reward_model, value_model, cfg)
    mask = episodes["mask"]
    rewards = ppo.shaped_rewards(episodes["scores"], episodes["logprobs"], episodes["ref_logprobs"], mask, cfg.kl_coef)
    advantages, episodes["returns"] = ppo.gae(rewards, episodes["values"], mask, cfg.discount, cfg.lam)
    episodes["advantages"] = ppo.whiten(advantages, mask)
    windows = torch.randint(499, (16, cfg.ptx_per_episode, cfg.ptx_window + 1), generator=rng)
    episodes["pretraining"] = windows.to(device)
    average = {name: weight.clone() for name, weight in policy.state_dict().items()}
    policy_optimizer, value_optimizer = adamw(policy, 1e-4), adamw(value_model, 1e-4)
    metrics = []
    for rows in torch.randperm(16, generator=rng).to(device).split(cfg.minibatch_size):
        minibatch = ppo.select(episodes, rows)
        metrics.append(ppo.update_policy(policy, policy_optimizer, average, minibatch, 1e-4, cfg))
        metrics[-1] |= ppo.update_values(value_model, value_optimizer, minibatch, cfg)
    weights = {name: weight.cpu() for name, weight in policy.state_dict().items()}
    return {name: x.cpu() for name, x in episodes.items()}, metrics[0], metrics[-1], weights


LOSSES = ("policy_loss", "value_loss", "ptx_loss")


def test_an_iteration_of_ppo_is_the_same_in_float32():
    (episodes, *metrics, weights), (theirs, *their_metrics, their_weights) = one_iteration("cpu"), one_iteration(CUDA)
    for name in ("tokens", "lengths", "mask", "ended"):
        assert torch.equal(episodes[name], theirs[name]), name
    for name in ("logprobs", "ref_logprobs", "values", "scores", "advantages", "returns"):
        assert torch.allclose(episodes[name], theirs[name], atol=1e-3), name
    for ours, other in zip(metrics, their_metrics):
        for name in (*LOSSES, "ratio", "grad_norm"):
            assert ours[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    for name in weights:
        assert torch.allclose(weights[name], their_weights[name], atol=2.1e-4), name  # Adam moves each by up to 2e-4


def test_bfloat16_is_near_and_starts_at_ratio_one():
    (_, exact, _, _), (_, rounded, _, _) = one_iteration(CUDA), one_iteration(CUDA, dtype="bfloat16")
    assert rounded["ratio"] == pytest.approx(1, abs=0.01)  # scored 4 rows at a time, updated 8 at a time
    assert rounded["ptx_loss"] == pytest.approx(exact["ptx_loss"], rel=0.01)


@pytest.mark.parametrize("how", [{"micro_batch_size": 3}, {"recompute": True}, {"compile": True}])
def test_what_saves_memory_or_time_changes_nothing(how):
    (_, *plain, _), (_, *other, _) = one_iteration(CUDA), one_iteration(CUDA, **how)
    for ours, theirs in zip(plain, other):
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("how", [{}, {"dtype": "bfloat16"}, {"recompute": True}, {"compile": True}])
def test_no_rows_give_gradients_of_zero(how):
    """What a process does whose share of a micro-batch is empty."""
    policy, _, scalar, _ = models(CUDA, **how)
    tokens, lengths = pad([], CUDA)
    mask = torch.zeros(0, 1, device=CUDA)
    windows = torch.zeros(0, 9, dtype=torch.long, device=CUDA)
    results = [token_logprobs(policy, tokens, mask), lm_loss(policy, windows)]
    results += [scalar.score(tokens, lengths), token_values(scalar, tokens, mask)]
    sum(result.sum() for result in results).backward()
    for model in (policy, scalar):
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_fast_sampling_is_plain_sampling():
    """The kernels differ with the shapes: one token may fall differently, and then all after it in its row."""
    policy = models(CUDA)[0]
    prompts = [[i + 1] * (1 + i // 3) for i in range(40)]
    u = torch.rand(30, 40, generator=generator(1)).to(CUDA)
    fast = generate(policy, prompts, 30, 3, uniforms=u)[0]
    plain = model_file.generate(policy, prompts, 30, 3, uniforms=u)[0]
    width = min(fast.size(1), plain.size(1))
    assert (fast[:, :width] == plain[:, :width]).float().mean() > 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_sample_the_same_text(dtype):
    """Over several calls: weights that have changed in between, prompts of other lengths, rows that end."""
    plain, recorded = (models(CUDA, dtype=dtype)[0] for _ in range(2))
    for longest, B in ((10, 70), (40, 70), (10, 40), (30, 90)):
        with torch.no_grad():
            for model in (plain, recorded):
                rng = generator(longest + B)
                for p in model.parameters():
                    p += 0.01 * torch.randn(p.shape, generator=rng).to(CUDA)
        prompts = [[i + 1] * (1 + i * longest // B) for i in range(B)]
        u = torch.rand(80, B, generator=generator(longest)).to(CUDA)
        texts = []
        for model, capture in ((plain, False), (recorded, True)):
            sampler = sampling_copy(model, ppo.Config(dtype=dtype, capture=capture))
            texts.append(generate(sampler, prompts, 80, 3, uniforms=u)[0][:, :60])
        # Other kernels for other shapes: one token may fall differently, and then all after it in its row.
        width = min(text.size(1) for text in texts)
        same = (texts[0][:, :width] == texts[1][:, :width]).float().mean()
        assert same > (0.95 if dtype == "float32" else 0.8)
    sampler = sampling_copy(recorded, ppo.Config(dtype=dtype, capture=True))
    assert core.sampling._cuda_graphs[sampler].graphs
