"""The memory plan against what is there: tensors of each size on the meta device, kept activations, a measured peak."""

import pytest
import torch

import model as model_file
from core.config import BadInput
from core.device import configure_model
from core.sampling import KVCache
from model import GPT, SIZES, GPTConfig, ScalarModel
from tools import benchmark, plan

SMALL = plan.Config(batch_size=8, prompt_tokens=8, new_tokens=8, minibatch_size=4, ptx_per_episode=2, ptx_window=8)


def total(terms, *words):
    """Bytes of the terms whose names hold one of these words."""
    return sum(t.bytes for t in terms if any(word in t.what for word in words))


def size_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.fixture
def uninitialised(monkeypatch):
    """Weights on the meta device have no values."""
    monkeypatch.setattr(model_file, "init_weights", lambda module, cfg: None)


def trained(model):
    """Bytes of gradients and of the optimizer's state, after a step on the meta device: counted, not computed."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    return size_of([*(p.grad for p in model.parameters()), *moments])


@pytest.mark.parametrize("name", ["village", "gpt2", "gpt2-xl", "gpt3-1.3b", "gpt3-6.7b", "gpt3-175b"])
def test_models_and_caches_are_those_that_exist(name, uninitialised):
    shape = SIZES[name]
    terms = plan.memory_plan(shape, shape, SMALL)
    with torch.device("meta"):
        policy, scalar = GPT(shape), ScalarModel(shape)
        cache = KVCache(shape, 8, 16, "meta", torch.bfloat16)
    weights, scalar_weights = size_of(policy.parameters()), size_of(scalar.parameters())
    assert total(terms, "policy: weights") == 2 * weights + trained(policy)  # and their average
    assert total(terms, "value model: weights") == pytest.approx(scalar_weights + trained(scalar), rel=1e-3)
    assert total(terms, "reference: weights") == weights
    assert total(terms, "reward model: weights") == pytest.approx(scalar_weights, rel=1e-3)
    assert total(terms, "keys and values") == size_of([cache.k, cache.v])
    assert total(terms, "copy that samples", "its embeddings") == weights / 2


@pytest.mark.parametrize("name, sharers", [("gpt2", 4), ("gpt2-xl", 5), ("gpt3-1.3b", 8), ("gpt3-175b", 32)])
def test_of_several_gpus_each_holds_its_share(name, sharers, uninitialised):
    """Counted tensor by tensor: as core/distributed.py cuts them."""
    shape, gpus = SIZES[name], 2 * sharers
    one, many = plan.memory_plan(shape, shape, SMALL), plan.memory_plan(shape, shape, SMALL, gpus, sharers)
    for what in ("policy: weights", "value model: weights", "reference: weights", "reward model: weights"):
        assert total(many, what) == total(one, what) / gpus
    with torch.device("meta"):
        model = GPT(shape)
    copy = 0
    for parameter_name, p in model.named_parameters():
        is_cut = p.dim() == 2 and ".h." in parameter_name or parameter_name.endswith(("c_attn.bias", "c_fc.bias"))
        copy += 2 * p.numel() / (sharers if is_cut else 1)
    assert total(many, "copy that samples", "its embeddings") == pytest.approx(copy, rel=0.01)
    cache = KVCache(shape, 8, 16, "meta", torch.bfloat16, shape.n_head // sharers)  # of the rows of all sharers
    rows_of_sharers = 8 / gpus * sharers
    if gpus <= 8:
        assert total(many, "keys and values") == size_of([cache.k, cache.v]) / 8 * rows_of_sharers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", [GPTConfig(4, 2, 64, 64, 300), GPTConfig(2, 4, 128, 64, 300)])
def test_kept_for_the_backward_pass_is_what_autograd_keeps(dtype, recompute, shape):
    cfg = plan.Config(dtype=dtype, recompute=recompute)
    model, kept = configure_model(ScalarModel(shape), cfg), {}
    weights = {p.data_ptr() for p in model.parameters()}

    def pack(x):
        if x.data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(torch.randint(300, (16, 64)))
    terms = plan.kept("x", shape, 16 * 64, recompute, 2 if dtype == "bfloat16" else 4)
    inside = total(terms, "inside one block") + recompute * total(terms, "weights in bfloat16")  # in the backward pass
    assert sum(t.bytes for t in terms) - inside == pytest.approx(sum(kept.values()), rel=0.03)


@pytest.mark.parametrize("dtype, recompute", [("float32", False), ("bfloat16", True)])
def test_a_whole_iteration_needs_about_what_is_planned(dtype, recompute, capsys):
    """By the profiler's count, on the CPU."""
    shape = GPTConfig(2, 2, 64, 64, 1000)
    cfg = dict(device="cpu", threads=1, dtype=dtype, recompute=recompute, repeat=1)
    cfg |= dict(batch_size=16, minibatch_size=8, prompt_tokens=24, new_tokens=24, ptx_per_episode=2, ptx_window=48)
    cfg = benchmark.Config(**cfg)
    models = [configure_model(kind(shape), cfg) for kind in (GPT, ScalarModel)]
    prompts = [[i] * 24 for i in range(16)]
    itemsize, device = 4 if dtype == "float32" else 2, torch.device("cpu")
    benchmark.time_ppo(*models, prompts, itemsize, benchmark.Rates(1e10, 1e9), cfg, device)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "peak memory" in line]
    measured, planned = (float(word) for word in line.replace("its tensors", "").split()[2:6:2])
    print(measured, planned)
    assert 0.8 < measured / planned < 1.2


def test_the_fewest_gpus_are_the_fewest(capsys):
    """One divisor of the batch less does not fit."""
    cfg = plan.Config()
    for name in ("gpt2-xl", "gpt3-6.7b", "gpt3-175b"):
        policy, critic = SIZES[name], SIZES[plan.critic_of(cfg, name)]
        gpus, does = plan.least_gpus(policy, critic, cfg)
        assert does and plan.peak(plan.planned(policy, critic, cfg, gpus)) < 72
        assert gpus == 1 or plan.peak(plan.planned(policy, critic, cfg, gpus // 2)) >= 72
    whole = plan.memory_plan(SIZES["gpt3-175b"], SIZES["gpt3-6.7b"], cfg, 512, sharers=1)
    assert plan.peak(whole) > 2 * 175, "a whole copy for sampling would fit nowhere"


def test_all_sizes_are_printed(capsys):
    plan.main(plan.Config())
    lines = capsys.readouterr().out.splitlines()
    sizes = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-1.3b", "gpt3-1.3b", "gpt3-6.7b", "gpt3-175b"]
    assert [line.split()[0] for line in lines[3:]] == sizes
    for line in lines[3:]:
        models, rollout, scoring, policy_update, value_update, most = map(float, line.split()[4:])
        assert most == pytest.approx(models + max(rollout, scoring, policy_update, value_update), abs=0.11)
    plan.main(plan.Config(gpu_gb=8))
    assert "gpt3-175b" in (line := capsys.readouterr().out.splitlines()[-1]) and line.endswith("does not fit")


def test_every_term_is_its_arithmetic(capsys):
    """The printed products, worked out again, are the printed figures."""
    plan.main(plan.Config(policy="gpt3-1.3b", critic="gpt3-6.7b", gpus=4))
    printed, words = capsys.readouterr().out, {"billion": 1e9, "million": 1e6}
    terms = [line.split(" = ") for line in printed.splitlines() if " = " in line]
    assert len(terms) > 15 and printed.endswith("fits\n")
    for left, right in terms:
        product, _, spread = right.partition(" / ")
        value = 1.0
        for factor in product.split(" x "):
            number, *unit = factor.split()
            value *= float(number.replace(",", "")) * words.get(unit[0], 1)
        value /= float(spread.split()[0]) if spread else 1
        assert float(left.split()[-1]) == pytest.approx(value / 1e9, abs=0.006, rel=0.02), left


BAD = [
    (dict(gpus=3, policy="gpt2"), "--batch_size 512: must be a multiple of 3 GPUs"),
    (dict(gpus=8, policy="gpt2", tensor_parallel=8), "--tensor_parallel 8: must divide the 8 GPUs and the 12 heads"),
    (dict(gpus=8), "--gpus is for one size"),
    (dict(policy="gpt5"), "--policy gpt5: choose from"),
    (dict(gpu_gb=0), "--gpu_gb"),
]


@pytest.mark.parametrize("wrong, text", BAD)
def test_what_is_refused(wrong, text):
    with pytest.raises(BadInput, match=text):
        plan.main(plan.Config(**wrong))
