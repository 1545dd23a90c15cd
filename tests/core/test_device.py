"""Where a script runs: seeds, threads, precision, recomputation, compilation, and the copy that is sampled from."""

import gc
from dataclasses import dataclass

import pytest
import torch
from small_models import PROMPTS, batch, make, shaken, uniforms

import core.device
from core.config import BadInput, Device, Seed, Training
from core.device import choose_device, compute_dtype, configure_model, sampling_copy, set_up
from core.sampling import generate
from model import GPT, GPTConfig, ScalarModel, lm_loss, pad, token_logprobs, token_values
from tools.benchmark import peak_memory


@dataclass
class Config(Device):
    seed: Seed = 5
    threads: int = 1
    device: str = "cpu"


def test_set_up_seeds_and_refuses():
    set_up(Config())
    a = torch.rand(3)
    assert set_up(Config()) == torch.device("cpu") and torch.equal(a, torch.rand(3))
    set_up(Config(seed=6))
    assert not torch.equal(a, torch.rand(3))
    assert torch.get_num_threads() == 1
    wrong = {"--device gpu": Config(device="gpu"), "--threads -1": Config(threads=-1)}
    wrong |= {"--dtype int8": Config(dtype="int8"), "--seed -1": Config(seed=-1)}
    for match, cfg in wrong.items():
        with pytest.raises(BadInput, match=match):
            set_up(cfg)
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="--device cuda: .*try --device cpu"):
            set_up(Config(device="cuda"))


@pytest.mark.parametrize(
    "cores, processes, asked, threads", [(2, 1, 0, 2), (64, 1, 0, 8), (8, 4, 0, 2), (2, 4, 0, 1), (2, 1, 3, 3)]
)
def test_threads_are_shared_by_the_processes_of_a_machine(monkeypatch, cores, processes, asked, threads):
    monkeypatch.setattr(core.device.os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    set_up(Config(threads=asked))
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    tried = []
    monkeypatch.setattr(core.device.torch, "zeros", lambda n, device: tried.append(device))
    monkeypatch.setattr(core.device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name, chosen in (("auto", "cuda:3"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        assert choose_device(Config(device=name)) == torch.device(chosen) == tried[-1]


def test_auto_is_bfloat16_on_a_gpu_only():
    assert compute_dtype(Config(), "cpu") == torch.float32
    assert compute_dtype(Config(), "cuda") == torch.bfloat16
    assert compute_dtype(Config(dtype="float32"), "cuda") == torch.float32
    assert compute_dtype(Config(dtype="bfloat16"), "cpu") == torch.bfloat16


# ---------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", [GPT, ScalarModel])
def test_recomputing_changes_no_gradient_and_keeps_less(kind):
    tokens, _, _, mask = batch()
    results = []
    for recompute in (False, True):
        model = configure_model(make(kind, dropout=0.3).train(), Training(recompute=recompute))
        torch.manual_seed(5)  # the same dropout masks, in the recomputation too
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            out = token_logprobs(model, tokens, mask) if kind is GPT else model(tokens)
        out.sum().backward()
        results.append((sum(kept), [p.grad for p in model.parameters() if p.grad is not None]))
    assert results[1][0] < results[0][0] / 2
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_recomputing_model_can_be_sampled_from():
    plain, model = shaken(make()), configure_model(shaken(make()), Training(recompute=True))
    u = uniforms(6, len(PROMPTS))
    for a, b in zip(generate(plain, PROMPTS, 6, 299, uniforms=u), generate(model, PROMPTS, 6, 299, uniforms=u)):
        assert torch.equal(a, b)


def test_bfloat16_is_close_and_leaves_the_weights_alone():
    tokens, _, _, mask = batch()
    plain, half = make(), configure_model(make(), Training(dtype="bfloat16"))
    a, b = token_logprobs(plain, tokens, mask), token_logprobs(half, tokens, mask)
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)
    b.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.parameters())
    plain, half = make(ScalarModel), configure_model(make(ScalarModel), Training(dtype="bfloat16"))
    scores = [model.score(tokens, torch.tensor([3, 4, 9])) for model in (plain, half)]
    assert scores[1].dtype == torch.float32 and not torch.equal(*scores)
    torch.testing.assert_close(*scores, atol=0.1, rtol=0.1)


def test_recomputing_in_bfloat16_holds_the_rounded_weights_of_one_block_at_a_time():
    """Bytes per weight at the peak of a pass over a few tokens: all of them would be 2."""
    shape = GPTConfig(12, 4, 128, 16, 30)
    model, windows = configure_model(GPT(shape), Training(dtype="bfloat16", recompute=True)), torch.randint(30, (1, 4))

    def train():
        lm_loss(model, windows).sum().backward()

    @torch.no_grad()
    def look():
        lm_loss(model, windows)

    train()
    model.zero_grad(set_to_none=False)
    peaks = [peak_memory(work, torch.device("cpu"), 0) for work in (train, look)]
    of_one_block = 2 / 12
    assert [peak / sum(p.numel() for p in model.parameters()) < 3 * of_one_block for peak in peaks] == [True, True]


def aot_eager(monkeypatch):
    """torch.compile with the backend that traces forward and backward but makes no machine code: that takes long."""
    compile_ = torch.compile
    monkeypatch.setattr(core.device.torch, "compile", lambda f, **how: compile_(f, backend="aot_eager", **how))


def test_compiled_blocks_give_the_same_loss(monkeypatch):
    aot_eager(monkeypatch)
    windows, losses, gradients = torch.randint(300, (3, 13)), [], []
    for compiled in (False, True):
        model = configure_model(make(), Training(compile=compiled))
        loss = lm_loss(model, windows).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))


@pytest.mark.parametrize("how", [{"recompute": True}, {"dtype": "bfloat16"}, {"compile": True}])
def test_no_rows_give_gradients_of_zero(monkeypatch, how):
    """What a process does whose share is empty, however the model is run."""
    aot_eager(monkeypatch)
    cfg = Training(**how)
    tokens, lengths = pad([])
    policy, scalar = (configure_model(shaken(make(kind)).train(), cfg) for kind in (GPT, ScalarModel))
    results = [token_logprobs(policy, tokens, torch.zeros(0, 1)), lm_loss(policy, torch.zeros(0, 9, dtype=torch.long))]
    results += [scalar.score(tokens, lengths), token_values(scalar, tokens, torch.zeros(0, 1))]
    sum(result.sum() for result in results).backward()
    for model in (policy, scalar):
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# ---------------------------------------------------------------------------------------------------- the sampling copy


def test_a_copy_only_where_one_is_needed(monkeypatch):
    aot_eager(monkeypatch)
    model = make()
    assert sampling_copy(model, Training()) is model
    assert sampling_copy(model, Training(recompute=True)) is model
    half = sampling_copy(model, Training(dtype="bfloat16"))
    assert half is not model and all(p.dtype == torch.bfloat16 for p in half.parameters())
    assert not half.training and not any(p.requires_grad for p in half.parameters())
    compiled = configure_model(make(), Training(compile=True))
    assert sampling_copy(compiled, Training(compile=True)) is not compiled, "shapes change with every token"


def test_a_copy_stays_where_it_is_and_follows_when_it_is_asked_for_again():
    cfg = Training(dtype="bfloat16")
    model = shaken(make())
    copy = sampling_copy(model, cfg)
    before = copy.transformer.wte.weight.clone()
    assert torch.equal(before, model.transformer.wte.weight.bfloat16())
    with torch.no_grad():
        model.transformer.wte.weight.add_(1)
    assert torch.equal(before, copy.transformer.wte.weight)
    places = [p.data_ptr() for p in copy.parameters()]
    again = sampling_copy(model, cfg)
    assert again is copy and [p.data_ptr() for p in again.parameters()] == places, "CUDA graphs look at these places"
    assert torch.equal(copy.transformer.wte.weight, model.transformer.wte.weight.bfloat16())


def test_a_copy_draws_no_random_numbers_and_dies_with_its_model():
    torch.manual_seed(0)
    state, model = torch.get_rng_state(), make(seed=0)
    torch.set_rng_state(state)
    sampling_copy(model, Training(dtype="bfloat16"))
    assert torch.equal(torch.get_rng_state(), state), "or a resumed run would go on otherwise"
    copies = len(core.device._sampling_copies)
    del model
    gc.collect()
    assert len(core.device._sampling_copies) == copies - 1
