"""The same numbers on a GPU as on the CPU. Skipped where there is no GPU; `python -m pytest tests/test_cuda.py` on one.

float32 on both: results differ by the order of additions only. bfloat16: by its 8 bits, so only losses are compared.
"""

import copy
from types import SimpleNamespace

import pytest
import torch

import ppo
from machine import Training, for_sampling, prepare
from model import GPT, GPTConfig, ScalarModel, generate, token_logprobs
from plumbing import adamw, generator

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
    return [prepare(model.to(device).eval(), cfg) for model in made]


def one_iteration(device, **settings):
    """Rollout and one pass of updates. -> the episodes, what was logged, the weights after it."""
    policy, reference, reward_model, value_model = models(device, **settings)
    settings = {"dtype": "float32"} | settings
    cfg = ppo.Config(device=device, batch_size=16, minibatch_size=8, max_new_tokens=24, ptx_coef=0.5, **settings)
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(499, (n,), generator=draw).tolist() for n in range(3, 19)]
    corpus = SimpleNamespace(windows=lambda n, T, g: torch.randint(499, (n, T), generator=g))
    u = torch.rand(cfg.max_new_tokens, 16, generator=draw).to(device)
    sampler = for_sampling(policy, cfg)
    tokens, lengths, mask = generate(sampler, prompts, cfg.max_new_tokens, 499, uniforms=u)
    with torch.no_grad():
        batch = {"tokens": tokens, "lengths": lengths, "mask": mask, "scores": reward_model.score(tokens, lengths)}
        batch["logprobs"] = token_logprobs(policy, tokens, mask)
        batch["values"] = ppo.values_before(value_model, tokens, mask)
        ref_logprobs = token_logprobs(reference, tokens, mask)
    rewards = ppo.shaped_rewards(batch["scores"], batch["logprobs"], ref_logprobs, mask, cfg.kl_coef)
    advantages, batch["returns"] = ppo.gae(rewards, batch["values"], mask, 1.0, 0.95)
    batch["advantages"] = ppo.whiten(advantages, mask)
    average = {k: v.clone() for k, v in policy.state_dict().items()}
    streams = {"order": generator(1), "pages": generator(2)}
    optimizers = adamw(policy, 1e-4), adamw(value_model, 1e-4)
    stats = ppo.update(policy, value_model, optimizers, average, batch, corpus, cfg, 1e-4, streams)
    weights = {k: v.cpu() for k, v in policy.state_dict().items()}
    return {k: v.cpu() for k, v in batch.items()}, stats, weights


def test_an_iteration_of_ppo_is_the_same_in_float32():
    (batch, stats, weights), (theirs, their_stats, their_weights) = one_iteration("cpu"), one_iteration(CUDA)
    for name in ("tokens", "lengths", "mask"):
        assert torch.equal(batch[name], theirs[name]), name
    for name in ("logprobs", "values", "scores", "advantages", "returns"):
        assert torch.allclose(batch[name], theirs[name], atol=1e-3), name
    for name in ("ratio", "policy_loss", "value_loss", "ptx_loss", "entropy", "policy_grad_norm"):
        assert stats[name] == pytest.approx(their_stats[name], rel=1e-3, abs=1e-4), name
    for name in weights:
        assert torch.allclose(weights[name], their_weights[name], atol=2.1e-4), name  # Adam moves each by up to 2e-4


def test_bfloat16_is_near_and_starts_at_ratio_one():
    (_, exact, _), (_, rounded, _) = one_iteration(CUDA), one_iteration(CUDA, dtype="bfloat16")
    assert rounded["first_ratio"] == pytest.approx(1, abs=0.01)  # scored 16 rows at a time, updated 8 at a time
    assert rounded["ptx_loss"] == pytest.approx(exact["ptx_loss"], rel=0.01)


@pytest.mark.parametrize("how", [{"micro_batch_size": 3}, {"recompute": True}, {"compile": True}])
def test_what_saves_memory_or_time_changes_nothing(how):
    (_, plain, _), (_, other, _) = one_iteration(CUDA), one_iteration(CUDA, **how)
    for name in ("policy_loss", "value_loss", "ptx_loss"):
        assert other[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_sample_the_same_text(dtype):
    """Over several calls: weights that have changed in between, prompts of other lengths, rows that end."""
    policy = models(CUDA, dtype=dtype)[0]
    plain, recorded = copy.deepcopy(policy), policy
    for longest, B in ((10, 70), (40, 70), (10, 40), (30, 90)):
        with torch.no_grad():
            for model in (plain, recorded):
                draw = generator(longest + B)
                for p in model.parameters():
                    p += 0.01 * torch.randn(p.shape, generator=draw).to(CUDA)
        prompts = [[i + 1] * (1 + i * longest // B) for i in range(B)]
        u = torch.rand(80, B, generator=generator(longest)).to(CUDA)
        texts = []
        for model, capture in ((plain, False), (recorded, True)):
            sampler = for_sampling(model, ppo.Config(dtype=dtype, capture=capture))
            texts.append(generate(sampler, prompts, 80, 3, uniforms=u))
        # Other kernels for other shapes: one token may fall differently, and then all after it in its row.
        same = (texts[0][0][:, :60] == texts[1][0][:, :60]).float().mean()
        assert same > (0.95 if dtype == "float32" else 0.8)
    assert for_sampling(recorded, ppo.Config(dtype=dtype, capture=True)).replay.graphs
