"""What tools/benchmark.py holds speeds against: counted operations and bytes, and the script from end to end."""

import sys

import pytest
import torch
from runs import command
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.batches import generator
from core.config import BadInput
from model import GPT, SIZES, GPTConfig, generate
from tools import benchmark, plan

CFG = GPTConfig(2, 2, 16, 64, 300)
SMALL = dict(device="cpu", threads=1, batch_size=8, prompt_tokens=8, new_tokens=8, mean_length=4, minibatch_size=4)
SMALL |= dict(repeat=1)


def test_operations_are_those_that_torch_counts():
    model, tokens = GPT(CFG), torch.randint(300, (3, 20))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.unembed(model(tokens)[:, -2:])
    counted = counter.get_total_flops()
    assert benchmark.forward_flops(CFG, 60, 20, 6) == pytest.approx(counted, rel=0.01)


def test_rooflines_add_up_and_grow():
    cfg, rates = benchmark.Config(**SMALL), benchmark.Rates(1e12, 1e11)
    rollout, scoring, update, ptx = benchmark.ppo_roofline(SIZES["gpt2"], cfg, 2, rates)
    assert update == pytest.approx(3 * scoring / 2, rel=0.2) and min(rollout, scoring, update, ptx) > 0
    twice = benchmark.ppo_roofline(SIZES["gpt2"], cfg, 2, benchmark.Rates(2e12, 2e11))
    assert twice == pytest.approx([rollout / 2, scoring / 2, update / 2, ptx / 2])
    # one row, much bandwidth needed: every token costs a reading of all weights
    weights = plan.parameters(SIZES["gpt2"]) * 2
    least = benchmark.sampling_roofline(SIZES["gpt2"], 1, 1, 10, 2, benchmark.Rates(1e18, 1e11))
    assert least == pytest.approx(10 * weights / 1e11, rel=0.02)


def test_responses_end_when_they_should():
    torch.manual_seed(0)
    model = GPT(CFG).eval()
    benchmark.set_mean_length(model, 299, 6)
    uniforms = torch.rand(40, 400, generator=generator(0))
    _, _, mask = generate(model, [[1, 2, 3]] * 400, 40, 299, uniforms=uniforms)
    assert 5 < mask.sum(1).mean() < 7


def test_works_are_timed_in_turn():
    done = []
    times = benchmark.interleaved((lambda: done.append("a"), lambda: done.append("b")), torch.device("cpu"), 2)
    assert done == ["a", "b"] * 3, "one round to warm up"
    assert len(times) == 2 and all(0 < seconds < 1 for seconds in times)


@pytest.mark.parametrize("ptx_per_episode", [8, 0])
def test_the_table(capsys, monkeypatch, ptx_per_episode):
    monkeypatch.setitem(benchmark.SIZES, "village", CFG)
    monkeypatch.setattr(benchmark, "measure_rates", lambda device, dtype: benchmark.Rates(1e10, 1e9))
    benchmark.main(benchmark.Config(**SMALL, ptx_per_episode=ptx_per_episode))
    printed = capsys.readouterr().out
    for what in (
        "sampling 8 x 8 + 8",
        "without a cache",
        "responses that end",
        "K = 9 (36 pairs",
        "training, 4 x 16",
        "PPO-ptx iteration" if ptx_per_episode else "PPO iteration",
        "peak memory",
    ):
        assert what in printed


def test_rates_are_those_of_this_machine():
    rates = benchmark.measure_rates(torch.device("cpu"), torch.float32)
    assert 1e8 < rates.flops < 1e15 and 1e7 < rates.bandwidth < 1e14


@pytest.mark.parametrize("versus, name", [("transformers", "transformers"), ("trl", "TRL")])
def test_a_comparison_with_what_is_not_installed_says_so(versus, name, capsys, monkeypatch):
    for module in ("transformers", "tokenizers", "datasets", "trl"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    policy, cfg = GPT(CFG), benchmark.Config(**SMALL, versus=versus)
    if versus == "transformers":
        benchmark.against_transformers(policy, [[1]], cfg, torch.device("cpu"), None, None, 0)
    else:
        benchmark.against_trl(policy, [[1]], cfg, torch.device("cpu"), None)
    printed = capsys.readouterr().out
    assert name in printed and "not installed" in printed


def test_from_any_folder_it_finds_the_model_and_refuses_in_one_line(monkeypatch, capsys):
    code, _, errors = command("tools/benchmark.py", ["--ptx_per_episode", "-1"], monkeypatch, capsys)
    assert code == 2 and errors == "benchmark.py: --ptx_per_episode -1: must be a whole number from 0 on\n"


BAD = [
    (dict(size="huge"), "--size"),
    (dict(repeat=0), "--repeat"),
    (dict(mean_length=1), "--mean_length"),
    (dict(versus="x"), "--versus"),
    (dict(new_tokens=400), "context"),
    (dict(minibatch_size=3), "--batch_size 128 must be a multiple"),
]


@pytest.mark.parametrize("wrong, text", BAD)
def test_what_is_refused(wrong, text):
    with pytest.raises(BadInput, match=text):
        benchmark.main(benchmark.Config(device="cpu", **wrong))
