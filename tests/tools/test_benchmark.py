"""What benchmark.py holds speeds against: counted operations and bytes, and the script from end to end."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import benchmark
from model import GPT, SIZES, GPTConfig, KVCache, ScalarModel, generate
from plumbing import BadInput, adamw, generator

CFG = GPTConfig(2, 2, 16, 64, 300)
SMALL = dict(device="cpu", threads=1, batch_size=8, prompt_tokens=8, new_tokens=8, ending=4, minibatch_size=4, repeat=1)


def test_operations_are_those_that_torch_counts():
    model, tokens = GPT(CFG), torch.randint(300, (3, 20))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.unembed(model(tokens)[:, -2:])
    counted = counter.get_total_flops()
    assert benchmark.forward_flops(CFG, 60, 20, 6) == pytest.approx(counted, rel=0.01)


def test_bytes_are_those_of_the_tensors():
    """Weights, gradients, Adam's moments, average and cache of the plan against tensors that exist."""
    c = benchmark.Config(**SMALL)
    plan = benchmark.memory_plan(CFG, CFG, c, 1, 4)

    def held(model, average):
        optimizer = adamw(model, 1e-3)
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
        tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *(model.parameters() if average else ())]
        tensors += [v for state in optimizer.state.values() for v in state.values() if v.dim()]
        return sum(t.numel() * t.element_size() for t in tensors)

    assert plan["policy: weights, gradient, Adam, average"] == pytest.approx(held(GPT(CFG), True), rel=0.01)
    assert plan["value model: weights, gradient, Adam"] == pytest.approx(held(ScalarModel(CFG), False), rel=0.01)
    cache = KVCache(CFG, 8, 16, "cpu", torch.float32)
    assert plan["cache while sampling"] == cache.k.numel() * 2 * 4
    two = benchmark.memory_plan(CFG, CFG, c, 2, 2)
    for what in ("policy: weights, gradient, Adam, average", "reference and reward model"):
        assert two[what] == plan[what] / 2
    assert two["copy of the policy for sampling"] == 2 * benchmark.parameters(CFG), "whole on every process"


def test_activations_of_the_plan_are_about_those_that_autograd_keeps():
    c = benchmark.Config(**SMALL | {"minibatch_size": 16, "prompt_tokens": 32, "new_tokens": 32, "ptx_per_episode": 0})
    cfg = GPTConfig(4, 2, 64, 64, 300)
    model, kept = ScalarModel(cfg), {}

    def pack(x):
        if not any(x.data_ptr() == p.data_ptr() for p in model.parameters()):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(torch.randint(300, (16, 64)))
    plan = benchmark.memory_plan(cfg, cfg, c, 1, 4)["activations and logits"]
    logits = min(16 * 32, 2**26 // 300) * 300 * 12
    assert 0.7 < (plan - logits) / sum(kept.values()) < 1.4


def test_floors_add_up_and_grow():
    c, rates = benchmark.Config(**SMALL), (1e12, 1e11)
    rollout, scoring, update, ptx = benchmark.ppo_floor(SIZES["gpt2"], c, 2, rates)
    assert update == pytest.approx(3 * scoring / 2, rel=0.2) and min(rollout, scoring, update, ptx) > 0
    # one row, much bandwidth needed: every token costs a reading of all weights
    weights = benchmark.parameters(SIZES["gpt2"]) * 2
    assert benchmark.decode_floor(SIZES["gpt2"], 1, 1, 10, 2, (1e18, 1e11)) == pytest.approx(
        10 * weights / 1e11, rel=0.02
    )


def test_responses_end_when_they_should():
    torch.manual_seed(0)
    model = GPT(CFG).eval()
    benchmark.let_it_end(model, 299, 6)
    _, _, mask = generate(model, [[1, 2, 3]] * 400, 40, 299, generator=generator(0))
    assert 5 < mask.sum(1).mean() < 7


def test_the_table_and_the_plan(capsys):
    benchmark.main(benchmark.Config(**SMALL))
    printed = capsys.readouterr().out
    for what in (
        "sampling 8 x 8 + 8",
        "without a cache",
        "that end",
        "K = 9 (36 pairs",
        "training",
        "ptx",
        "peak memory",
    ):
        assert what in printed
    benchmark.main(benchmark.Config(device="cpu", plan=8))
    printed = capsys.readouterr().out
    assert "policy gpt3-175b" in printed and "fits" in printed and "does not fit" in printed
    for wrong, text in (
        (dict(size="huge"), "--size"),
        (dict(repeat=0), "--repeat"),
        (dict(ending=1), "--ending"),
        (dict(versus="x"), "--versus"),
        (dict(new_tokens=400), "context"),
    ):
        with pytest.raises(BadInput, match=text):
            benchmark.main(benchmark.Config(device="cpu", **wrong))
