"""Two processes give the results of one: gradients of every kind, rows, checkpoints, and the four scripts, end to end.

One torchrun does everything that needs two processes (`in_every_process`, gloo on the CPU); the tests look at its
results.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_models import CFG, PROMPTS, make, shaken, uniforms
from torch.distributed.tensor import DTensor

import core.distributed
import ppo
import pretrain
import reward
import sft
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import BadInput, Seed, Training
from core.device import configure_model, sampling_copy, set_up
from core.distributed import (
    all_reduce_sum,
    first_process_only,
    full_state_dict,
    full_tensor,
    gather_rows,
    load_full_state_dict,
    micro_batches,
    own_rows,
    rank,
    world_size,
)
from core.log import JsonLines
from core.optim import adamw, optimizer_step
from core.sampling import generate
from core.training_state import TrainingState
from data.folder import load_tokenizer
from model import GPT, GPTConfig, ScalarModel, lm_loss, pad, token_logprobs, token_values
from sft import pad_responses
from tools.benchmark import peak_memory
from tools.plan import Config as PlanConfig
from tools.plan import memory_plan

ROOT = Path(core.distributed.__file__).parent.parent
TESTS = ROOT / "tests"


@dataclass
class Config(Training):
    seed: Seed = 0


# ---------------------------------------------------------------------------------------------------- shares of a batch


@pytest.mark.parametrize(
    "rows, processes, micro", [(8, 1, 0), (8, 1, 3), (8, 2, 0), (7, 2, 2), (5, 4, 1), (2, 3, 0), (1, 2, 5)]
)
def test_micro_batches_hold_every_row_once_and_are_as_many_for_everybody(monkeypatch, rows, processes, micro):
    batch, seen, counts = list(range(rows)), [], set()
    for process in range(processes):
        monkeypatch.setattr(core.distributed, "rank", lambda process=process: process)
        monkeypatch.setattr(core.distributed, "world_size", lambda: processes)
        parts = list(micro_batches(batch, SimpleNamespace(micro_batch_size=micro)))
        of_a_tensor = list(micro_batches(torch.tensor(batch), SimpleNamespace(micro_batch_size=micro)))
        assert [part.tolist() for part in of_a_tensor] == parts
        assert all(len(part) <= (micro or rows) for part in parts)
        counts.add(len(parts))
        seen += sum(parts, [])
    assert sorted(seen) == batch and len(counts) == 1
    largest_share = math.ceil(rows / processes)
    assert counts == {math.ceil(largest_share / (micro or rows))}, "no more passes than needed"


def test_one_process_alone():
    batch, work = {"x": torch.rand(3, 2)}, []
    assert (rank(), world_size()) == (0, 1) and gather_rows(batch) is batch
    assert all_reduce_sum({"a": 1, "b": torch.tensor(2.5)}) == {"a": 1.0, "b": 2.5} and all_reduce_sum({}) == {}
    first_process_only(lambda: work.append(1))
    assert work == [1]


# ---------------------------------------------------------------------------------------------------- gradients

DRAW = torch.Generator().manual_seed(7)
LENGTHS = [(9, 3), (4, 1), (12, 7), (5, 4), (6, 2), (10, 1), (3, 2)]  # (prompt and response, prompt)
ROWS = [(torch.randint(299, (n,), generator=DRAW).tolist(), prompt) for n, prompt in LENGTHS]
WINDOWS = torch.randint(299, (7, 10), generator=DRAW)


def garbage(tokens, lengths):
    """Random ids in the padding."""
    padding = torch.arange(tokens.size(1)) >= lengths[:, None]
    return tokens.where(~padding, torch.randint(299, tokens.shape))


def scores(model, rows):
    tokens, lengths = pad([ids for ids, _ in rows])
    return model.score(garbage(tokens, lengths), lengths)


def logprobs(model, rows):
    tokens, mask = pad_responses(rows, "cpu")
    lengths = torch.tensor([len(ids) for ids, _ in rows], dtype=torch.long)
    return token_logprobs(model, garbage(tokens, lengths), mask)


def values(model, rows):
    tokens, mask = pad_responses(rows, "cpu")
    return token_values(model, tokens, mask) ** 2


KINDS = {  # name -> kind of model, its losses per row or token, what of
    "lm_loss": (GPT, lm_loss, WINDOWS),
    "logprobs": (GPT, logprobs, ROWS),
    "scores": (ScalarModel, scores, ROWS),
    "values": (ScalarModel, values, ROWS),
}
# Rows and micro-batch size: two processes share 7 rows as 4 and 3, so with parts of 3 the last part of the second one
# is empty; of 1 row the second one gets nothing at all.
SHARES = [(7, 0, ""), (7, 3, ""), (1, 0, ""), (7, 1, "recompute")]
CASES = [(name, *share) for name in KINDS for share in SHARES]
ROUNDED = [(name, 7, 3, "bfloat16") for name in KINDS]


def gradients_of(name, n_rows, micro, how):
    """Gradients of the sum of all losses, whole; the weights after one step, and the norm of the gradient."""
    kind, losses, rows = KINDS[name]
    dtype = "bfloat16" if how == "bfloat16" else "float32"
    cfg = Training(micro_batch_size=micro, recompute=how == "recompute", dtype=dtype)
    model = configure_model(shaken(make(kind)), cfg)
    optimizer = adamw(model, 1e-2)
    for part in micro_batches(rows[:n_rows], cfg):
        (losses(model, part).sum() / n_rows).backward()
    found = {n: full_tensor(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
    norm = optimizer_step(optimizer, model, 1e-2, max_grad_norm=0.5)
    return found, norm, {n: full_tensor(p.detach()).clone() for n, p in model.named_parameters()}


# ---------------------------------------------------------------------------------------------------- both processes

RAGGED = {"tokens": torch.arange(1, 43).view(6, 7), "lengths": torch.tensor([7, 3, 2, 3, 5, 1])}


def in_every_process(data, out):
    """What torchrun runs: each part leaves its results in OUT, by the number of the process."""
    set_up(Config(device="cpu", threads=1))
    out, results = Path(out), {}
    results["world"] = (rank(), world_size())
    results["gradients"] = {str(case): gradients_of(*case) for case in CASES + ROUNDED}
    results["sum"] = all_reduce_sum({"a": rank() + 1, "b": torch.tensor(0.5)})
    work = []
    first_process_only(lambda: work.append(1))
    results["worked"] = len(work)

    own = {name: own_rows(rows) for name, rows in RAGGED.items()}
    longest = int(own["lengths"].max())  # each process has padded to the longest of its own
    results["gathered"] = gather_rows(own | {"tokens": own["tokens"][:, :longest]})

    model = configure_model(shaken(make(dropout=0.1)), Training())
    results["seed"] = torch.initial_seed()
    results["kept"] = sum(p.to_local().numel() for p in model.parameters())
    results["state"] = full_state_dict(model)
    spec, _ = load_tokenizer(data)
    save_checkpoint(out / "sharded.pt", model, spec, CFG, 3)
    load_full_state_dict(model, shaken(make(), seed=9).state_dict())
    results["loaded"] = {name: full_tensor(value) for name, value in model.state_dict().items()}
    copy = sampling_copy(model, Training())
    results["text"] = generate(copy, PROMPTS, 6, 299, uniforms=uniforms(6, len(PROMPTS)))
    results |= sampled_together() | {"travelling": {dtype: travelling(dtype) for dtype in ("bfloat16", "float32")}}

    parts = trained_parts(out, seed=1, steps=3)
    TrainingState(out, "x", Config(save_every=3), [], **parts).save_if_due(3)
    resumed = trained_parts(out, seed=2, steps=1)
    results["resumed after"] = TrainingState(out, "x", Config(resume=True), [], **resumed).resume()
    results["resumed"] = whole_parts(resumed)
    torch.save(results, out / f"results-{rank()}.pt")
    all_scripts(data, out, micro_batch_size=2, of_ppo={"tensor_parallel": 2})
    reward.main(
        settings("reward", data, out, dtype="bfloat16", out=str(out / "bfloat16"), init=str(out / "base.pt"))[1]
    )


TOGETHER = ppo.Config(tensor_parallel=2, dtype="float32")


def sampled_together():
    """Two processes that have one copy of a policy together: what they sample, twice, and how much of it each holds."""
    model = configure_model(shaken(make(vocab_size=12, n_head=4, spread=5)), TOGETHER)
    found, u = {}, uniforms(20, len(PROMPTS))
    copy = sampling_copy(model, TOGETHER)
    found["same prompts"] = generate(copy, PROMPTS, 20, 11, uniforms=u)
    load_full_state_dict(model, shaken(make(vocab_size=12, n_head=4, spread=5), seed=9).state_dict())
    assert sampling_copy(model, TOGETHER) is copy
    found["own prompts"] = generate(copy, own_rows(PROMPTS), 20, 11, uniforms=own_rows(u.T).T)
    weights = [*copy.transformer.h.parameters()]
    found["held"] = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in weights)
    found["of"] = sum(p.numel() for p in weights)
    return found


def travelling(dtype):
    """Bytes at the peak of a forward pass, without what stays whole all the time. The least of four: a slow gloo holds
    on to a buffer for longer."""
    shape = GPTConfig(6, 4, 128, 16, 30)
    model, windows = configure_model(GPT(shape), Training(dtype=dtype)), torch.randint(30, (1, 4))

    @torch.no_grad()
    def forward():
        lm_loss(model, windows)

    outside = 4 * (sum(p.numel() for p in model.parameters()) - 12 * 128**2 * 6)
    return min(peak_memory(forward, torch.device("cpu"), 0) for _ in range(4)) - outside


def trained_parts(out, seed, steps):
    """Model, optimizer, average and log after some steps, sharded where there are processes."""
    model = configure_model(shaken(make(), seed), Training())
    optimizer = adamw(model, 1e-2)
    for _ in range(steps):
        for part in micro_batches(WINDOWS, Training()):
            lm_loss(model, part).sum().backward()
        optimizer_step(optimizer, model, 1e-2, 1.0)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    return {"model": model, "optimizer": optimizer, "average": average, "log": JsonLines(out / "x.jsonl")}


def whole_parts(parts):
    """Weights, averages and both of Adam's moments as whole tensors."""
    whole = {f"model {name}": full_tensor(value) for name, value in parts["model"].state_dict().items()}
    whole |= {f"average {name}": full_tensor(value) for name, value in parts["average"].items()}
    for i, moments in parts["optimizer"].state_dict()["state"].items():
        whole |= {f"{name} {i}": full_tensor(value) for name, value in moments.items()}
    return {name: value.detach().clone() for name, value in whole.items()}


@pytest.fixture(scope="module")
def folders(data, tokenizer_spec, tiny, tmp_path_factory):
    """The run folders of one and of two processes, and what each of the two found."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for i, (name, kind) in enumerate({"base": GPT, "ppo_init": GPT, "reward": ScalarModel}.items()):
        model = make(kind, seed=i, vocab_size=tiny.vocab_size)
        for folder in (one, two):
            save_checkpoint(folder / f"{name}.pt", model, tokenizer_spec, tiny, step=0)
    path = [str(ROOT), str(TESTS), str(TESTS / "core")]
    main = (
        f"import sys\nsys.path[:0] = {path!r}\nimport test_distributed\n"
        "test_distributed.in_every_process(*sys.argv[1:])\n"
    )
    (two / "main.py").write_text(main)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(two / "main.py"), str(data), str(two)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [torch.load(two / f"results-{process}.pt", weights_only=True) for process in range(2)]
    return SimpleNamespace(one=one, two=two, results=results, printed=done.stdout)


@pytest.fixture(scope="module")
def results(folders):
    assert [r["world"] for r in folders.results] == [(0, 2), (1, 2)]
    return folders.results


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_gradients_of_two_processes_are_those_of_the_whole_minibatch(results, case):
    """Also where one of them has no row in a micro-batch; on both, and so is the step that they take."""
    name, n_rows, _, _ = case
    want, norm, weights = gradients_of(name, n_rows, 0, "")
    assert norm > 0.5, "the test needs a gradient that is clipped"
    for result in results:
        found, their_norm, their_weights = result["gradients"][str(case)]
        assert found.keys() == want.keys()
        assert their_norm == pytest.approx(norm, rel=1e-5)
        for parameter in want:
            scale = max(1, want[parameter].abs().max().item())
            torch.testing.assert_close(found[parameter], want[parameter], atol=1e-6 * scale, rtol=0, msg=parameter)
        for parameter, gradient in want.items():
            firm = gradient.abs() > 1e-5  # where it is nearly 0, Adam's first step is a coin's toss
            after, theirs = weights[parameter][firm], their_weights[parameter][firm]
            torch.testing.assert_close(after, theirs, atol=1e-4, rtol=0, msg=parameter)


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: case[0])
def test_in_bfloat16_two_processes_are_near_one(results, case):
    """Weights are rounded before they travel instead of after; sums come in another order."""
    exact, rounded = (gradients_of(case[0], 7, 0, how)[0] for how in ("", "bfloat16"))
    for result in results:
        found = result["gradients"][str(case)][0]
        off = sum((found[name] - rounded[name]).square().sum() for name in rounded).sqrt()
        off_exact = sum((exact[name] - rounded[name]).square().sum() for name in rounded).sqrt()
        assert 0 < off_exact and off < 0.5 * off_exact, "nearer to one process in bfloat16 than that is to float32"
        assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_a_process_without_rows_gives_gradients_of_zero_by_itself():
    """And with one process the same is true of a minibatch of no rows."""
    for name, (kind, losses, rows) in KINDS.items():
        model = configure_model(shaken(make(kind)), Training())
        losses(model, rows[:0]).sum().backward()
        reached = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(reached) > 20 and not any(gradient.any() for gradient in reached), name


def test_numbers_are_summed_and_work_is_done_once(results):
    assert [r["sum"] for r in results] == [{"a": 3.0, "b": 1.0}] * 2
    assert [r["worked"] for r in results] == [1, 0]
    assert results[0]["seed"] != results[1]["seed"], "dropout masks differ"


def test_gathered_rows_are_all_rows_in_order(results):
    for result in results:
        assert torch.equal(result["gathered"]["lengths"], RAGGED["lengths"])
        tokens = result["gathered"]["tokens"]
        assert tokens.shape == (6, 7)
        for i, row in enumerate(RAGGED["tokens"]):
            known = 7 if i % 2 == 0 else 3  # the longest of the odd rows
            assert tokens[i, :known].equal(row[:known]) and not tokens[i, known:].any()


def test_each_keeps_a_share_of_the_weights_and_the_whole_can_be_had(results, folders):
    whole = shaken(make(dropout=0.1)).state_dict()
    assert sum(r["kept"] for r in results) == sum(w.numel() for w in whole.values())
    assert all(r["kept"] < 0.6 * sum(w.numel() for w in whole.values()) for r in results)
    assert results[1]["state"] == {}, "the first process has them"
    saved = load_checkpoint(folders.two / "sharded.pt", "policy")[0].state_dict()
    for state in (results[0]["state"], saved):
        assert state.keys() == whole.keys() and all(torch.equal(state[name], whole[name]) for name in whole)
    other = shaken(make(), seed=9)
    text = generate(other, PROMPTS, 6, 299, uniforms=uniforms(6, len(PROMPTS)))
    for result in results:
        assert all(torch.equal(value, result["loaded"][name]) for name, value in other.state_dict().items())
        assert all(torch.equal(a, b) for a, b in zip(text, result["text"])), "each samples from the whole model"


def test_two_processes_sample_together_what_one_samples(results):
    """Each holds half of every block; prompts of both; and after the policy has changed, too."""
    u, texts = uniforms(20, len(PROMPTS)), []
    for seed in (1, 9):
        model = shaken(make(vocab_size=12, n_head=4, spread=5), seed)
        texts.append(generate(model, PROMPTS, 20, 11, uniforms=u))
    assert len(set(texts[1][1].tolist())) > 3, "they end at different times"
    for process, result in enumerate(results):
        assert all(torch.equal(a, b) for a, b in zip(texts[0], result["same prompts"], strict=True))
        tokens, lengths, mask = result["own prompts"]
        assert torch.equal(lengths, texts[1][1][process::2]) and tokens.size(1) == lengths.max()
        for i, n in enumerate(lengths.tolist()):
            assert torch.equal(tokens[i, :n], texts[1][0][process + 2 * i, :n])
            assert torch.equal(mask[i, :n], texts[1][2][process + 2 * i, :n])
        assert result["held"] < 0.53 * result["of"], "layer norms and one kind of bias are whole"


def test_what_is_on_its_way_between_processes_is_what_the_plan_says(results):
    shape = GPTConfig(6, 4, 128, 16, 30)
    for dtype, itemsize in (("bfloat16", 2), ("float32", 4)):
        terms = memory_plan(shape, shape, PlanConfig(), gpus=2, itemsize=itemsize)
        (planned,) = [t.bytes for t in terms if t.when == "scoring" and "on their way" in t.what]
        # Two blocks of six; when what was used is freed depends a little on which process is ahead.
        assert 0.75 < results[0]["travelling"][dtype] / planned < 1.3


@pytest.mark.parametrize("sharers", [2, 3])
def test_sharers_have_to_divide_processes_and_heads(sharers):
    with pytest.raises(BadInput, match=f"--tensor_parallel {sharers}"):
        sampling_copy(make(), ppo.Config(tensor_parallel=sharers))


def test_a_training_state_of_two_processes_is_one_of_one(results, folders):
    """Saved by two, resumed by two and by one; and the parts are what one process trains."""
    by_one = trained_parts(folders.one, seed=2, steps=1)
    by_one["log"] = JsonLines(folders.one / "x.jsonl")
    assert TrainingState(folders.two, "x", Config(resume=True), [], **by_one).resume() == 3
    resumed = whole_parts(by_one)
    for result in results:
        assert result["resumed after"] == 3 and result["resumed"].keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in result["resumed"].items())
    trained = whole_parts(trained_parts(folders.one, seed=1, steps=3))
    for name, value in trained.items():
        torch.testing.assert_close(resumed[name], value, atol=2e-3, rtol=1e-3, msg=name)


# ---------------------------------------------------------------------------------------------------- the scripts

SETTINGS = {  # script -> its module, how to call it, the file of its metrics and of its weights; odd numbers of rows
    "pretrain": (pretrain, dict(n_layer=2, n_head=2, n_embd=16, block_size=64, steps=4, batch_size=5, eval_every=2),
                 "pretrain", "base"),
    "sft": (sft, dict(epochs=2, batch_size=5, max_new_tokens=8, dropout=0.0, pretrain_mix=0.2), "sft", "sft"),
    "reward": (reward, dict(epochs=2, batch_size=3, eval_every=3), "reward", "reward"),
    "ppo": (ppo, dict(iterations=3, batch_size=6, minibatch_size=3, max_new_tokens=8, sample_every=2, sample_prompts=2,
                      value_only_iterations=1, ptx_coef=0.5, ptx_window=8), "ppo_ptx", "ppo_ptx"),
}  # fmt: skip


def settings(name, data, run, **more):
    module, changed, *_ = SETTINGS[name]
    changed = {"data": str(data), "out": str(run), "device": "cpu", "threads": 1, **changed, **more}
    return module, module.Config(**changed)


class Recorder:
    """Stands in for optimizer_step: keeps the gradient of each model's first step, whole."""

    def __init__(self):
        self.first = {}

    def __call__(self, optimizer, model, *rest):
        gradients = {n: full_tensor(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
        self.first.setdefault(model.kind, gradients)
        return optimizer_step(optimizer, model, *rest)


def all_scripts(data, run, of_ppo=None, **more):
    """All four, one after the other. The gradients of the first step of each model go to a file."""
    found = {}
    for name in SETTINGS:
        module, cfg = settings(name, data, run, **more | (of_ppo or {} if name == "ppo" else {}))
        module.optimizer_step = recorder = Recorder()
        module.main(cfg)
        module.optimizer_step = optimizer_step
        found[name] = recorder.first
    if rank() == 0:
        torch.save(found, Path(run) / "gradients.pt")


@pytest.fixture(scope="module")
def scripts(data, folders):
    all_scripts(data, folders.one)
    return folders


@pytest.mark.parametrize("name", SETTINGS)
def test_scripts_give_the_results_of_one_process(scripts, name):
    """One process and whole minibatches; two processes and micro-batches of two rows, uneven ones among them."""
    one, two = (torch.load(f / "gradients.pt", weights_only=True)[name] for f in (scripts.one, scripts.two))
    assert one.keys() == two.keys() and one
    for kind in one:
        assert one[kind].keys() == two[kind].keys()
        for parameter, gradient in one[kind].items():
            # PPO's value model starts from the reward.pt that each of the two has trained, equal up to rounding
            atol, rtol = (3e-4, 1e-2) if (name, kind) == ("ppo", "scalar") else (2e-6, 1e-3)
            torch.testing.assert_close(gradient, two[kind][parameter], atol=atol, rtol=rtol, msg=f"{kind} {parameter}")
    _, _, log, checkpoint = SETTINGS[name]
    logs = [
        [json.loads(line) for line in (f / f"{log}.jsonl").read_text().splitlines()] for f in (scripts.one, scripts.two)
    ]
    assert len(logs[0]) == len(logs[1]) >= 3
    for ours, theirs in zip(*logs):
        assert ours.keys() == theirs.keys()
        for key in ours:
            if "seconds" not in key:
                assert ours[key] == pytest.approx(theirs[key], abs=5e-3, rel=5e-3, nan_ok=True), (ours["step"], key)
    kind = "scalar" if name == "reward" else "policy"
    first, second = (load_checkpoint(f / f"{checkpoint}.pt", kind)[0] for f in (scripts.one, scripts.two))
    for (parameter, a), b in zip(first.named_parameters(), second.parameters()):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02, msg=parameter)


def test_one_voice(folders):
    """Two processes print once, and with bfloat16 they work too."""
    assert folders.printed.count("\nwrote ") + folders.printed.startswith("wrote ") == len(SETTINGS) + 1
    assert load_checkpoint(folders.two / "bfloat16" / "reward.pt", "scalar")
