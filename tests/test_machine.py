"""Micro-batches, precision, recomputation, several processes, and runs that are killed and resumed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import machine
import model as model_file
import ppo
import pretrain
import reward
import sft
from machine import Training, for_sampling, load_state, portions, prepare, read_from, save_state
from model import GPT, GPTConfig, ScalarModel, generate, load_checkpoint, logprobs_of, token_logprobs
from plumbing import BadInput, MetricsLog, adamw, generator, optimizer_step, write_torch

ROOT = Path(machine.__file__).parent
CFG = GPTConfig(2, 2, 16, 64, 300)


def make(kind=GPT, seed=0, **more):
    torch.manual_seed(seed)
    return kind(replace(CFG, **more))


def some(seed=0):
    draw = generator(seed)
    tokens = torch.randint(300, (4, 12), generator=draw)
    mask = (torch.rand(4, 12, generator=draw) < 0.6).float()
    mask[:, 0] = 0
    return tokens, mask


# ---------------------------------------------------------------------------------------------------- logits in chunks


def test_logits_in_chunks_are_the_same_and_never_whole(monkeypatch):
    """Values, entropies and gradients; and the largest float32 tensor that comes up has a chunk's size."""
    model, (tokens, mask) = make(), some()
    n = int(mask.sum())

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.dim() == 2 and x.size(1) == 300 and x.size(0) not in (300, 16):
                    self.seen = max(self.seen, x.size(0))
            return out

    results = []
    for chunk, largest in ((2**26, n), (5 * 300, 5)):
        monkeypatch.setattr(model_file, "CHUNK", chunk)
        watch = Largest()
        with watch:
            logprobs, entropy = token_logprobs(model, tokens, mask, entropy=True)
            gradients = torch.autograd.grad((logprobs * mask).sum(), list(model.parameters()))
        assert watch.seen == largest
        results.append((logprobs, entropy, *gradients))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        again = logprobs_of(model, model(tokens).flatten(0, 1), tokens.flatten(), True)
        monkeypatch.setattr(model_file, "CHUNK", 2**26)
        whole = logprobs_of(model, model(tokens).flatten(0, 1), tokens.flatten(), True)
    for a, b in zip(again, whole):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- preparing a model


@pytest.mark.parametrize("kind", [GPT, ScalarModel])
def test_recomputing_changes_no_gradient_and_keeps_less(kind):
    tokens, mask = some()
    results = []
    for recompute in (False, True):
        model = prepare(make(kind, dropout=0.3).train(), Training(recompute=recompute))
        torch.manual_seed(5)  # the same dropout masks, in the recomputation too
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            out = token_logprobs(model, tokens, mask) if kind is GPT else model(tokens)
        out.sum().backward()
        results.append((sum(kept), [p.grad for p in model.parameters() if p.grad is not None]))
    assert results[1][0] < results[0][0] / 2
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_bfloat16_is_close_and_leaves_the_weights_alone():
    tokens, mask = some()
    plain, half = make(), prepare(make(), Training(dtype="bfloat16"))
    a, b = token_logprobs(plain, tokens, mask), token_logprobs(half, tokens, mask)
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)
    b.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.parameters())
    # sampling takes a copy in bfloat16, and the model itself can be sampled from too
    copy = for_sampling(half, Training(dtype="bfloat16"))
    assert copy is not half and all(p.dtype == torch.bfloat16 for p in copy.parameters())
    for network in (copy, half):
        tokens, lengths, _ = generate(network, [[1, 2, 3], [4]], 8, 299, generator=generator(0))
        assert tokens.shape[0] == 2 and int(lengths.max()) <= 11
    assert for_sampling(plain, Training()) is plain
    scalar = prepare(make(ScalarModel), Training(dtype="bfloat16"))
    assert scalar.score(some()[0], torch.tensor([3, 4, 5, 12])).dtype == torch.float32


def test_a_copy_for_sampling_is_independent():
    model = make()
    copy = for_sampling(model, Training(dtype="bfloat16"))
    before = copy.transformer.wte.weight.clone()
    with torch.no_grad():
        model.transformer.wte.weight.add_(1)
    assert torch.equal(before, copy.transformer.wte.weight)


# ---------------------------------------------------------------------------------------------------- shares of a batch


@pytest.mark.parametrize("rows, processes, micro", [(8, 1, 0), (8, 1, 3), (8, 2, 0), (7, 2, 2), (5, 4, 1), (2, 3, 0)])
def test_portions_hold_every_row_once_and_as_many_for_everybody(monkeypatch, rows, processes, micro):
    batch, seen, counts = list(range(rows)), [], set()
    for rank in range(processes):
        monkeypatch.setattr(machine, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(machine, "world", lambda: processes)
        parts = list(portions(batch, SimpleNamespace(micro_batch_size=micro)))
        counts.add(len(parts))
        assert all(0 < len(part) <= (micro or rows) and weight in (0, processes) for part, weight in parts)
        seen += [row for part, weight in parts if weight for row in part]
    assert sorted(seen) == batch and len(counts) == 1


SETTINGS = {  # script -> its module, how to call it, the file of its metrics, the weights it writes
    "pretrain": (pretrain, dict(n_layer=2, n_head=2, n_embd=16, block_size=64, steps=5, batch_size=4, eval_every=1), "pretrain", "base"),
    "sft": (sft, dict(epochs=2, batch_size=6, max_new_tokens=8, dropout=0.0, pretrain_mix=0.2), "sft", "sft"),
    "reward": (reward, dict(epochs=2, batch_size=4, max_new_tokens=8, eval_every=1, supervised="base.pt"), "reward", "reward"),
    "ppo": (ppo, dict(iterations=3, batch_size=8, minibatch_size=4, max_new_tokens=8, look_every=2, look_prompts=2, value_only_iterations=1, ptx_coef=0.5, ptx_window=8), "ppo_ptx", "ppo_ptx"),
}  # fmt: skip


def settings(name, data, run, **more):
    module, kwargs, *_ = SETTINGS[name]
    kwargs = {k: str(run / v) if k == "supervised" else v for k, v in kwargs.items()}
    return module, module.Config(
        **{"data": str(data), "out": str(run), "device": "cpu", "threads": 1, **kwargs, **more}
    )


def outcome(name, run):
    """Metrics without what the clock says (seconds, tokens per second), and the weights."""
    _, _, log, weights = SETTINGS[name]
    records = [json.loads(line) for line in (run / f"{log}.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in r.items() if "second" not in k and k != "final"} for r in records]
    state = load_checkpoint(run / f"{weights}.pt", "scalar" if name == "reward" else "policy")[0].state_dict()
    return records, state


def close(a, b, tolerance):
    """Nested records with numbers that are nearly the same."""
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for key in x:
            assert x[key] == pytest.approx(y[key], abs=tolerance, rel=tolerance, nan_ok=True), key


def twin(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("twin")
    shutil.copytree(run, other, dirs_exist_ok=True)
    return other


class Recorder:
    """Stands in for optimizer_step: keeps the gradient of each model's first step, whole."""

    def __init__(self):
        self.first = {}

    def __call__(self, optimizer, model, *rest):
        gradients = {n: machine.full(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
        self.first.setdefault(model.kind, gradients)
        return optimizer_step(optimizer, model, *rest)


def same_gradients(one, other):
    assert one.keys() == other.keys() and one
    for kind in one:
        assert one[kind].keys() == other[kind].keys()
        for name, gradient in one[kind].items():
            torch.testing.assert_close(gradient, other[kind][name], atol=2e-6, rtol=1e-3, msg=f"{kind} {name}")


@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_give_the_gradients_of_the_whole(data, run, tmp_path_factory, monkeypatch, name):
    other, recorders = twin(run, tmp_path_factory), []
    for folder, micro in ((run, 0), (other, 3)):
        module, cfg = settings(name, data, folder, micro_batch_size=micro)
        recorders.append(Recorder())
        monkeypatch.setattr(module, "optimizer_step", recorders[-1])
        module.main(cfg)
    same_gradients(*(r.first for r in recorders))
    (a, _), (b, _) = outcome(name, run), outcome(name, other)
    close(a, b, 2e-3)


# ---------------------------------------------------------------------------------------------------- training state


def test_a_state_comes_back_whole_and_refuses_other_settings(tmp_path):
    def parts(seed):
        model = make(seed=seed)
        optimizer = adamw(model, 1e-3)
        for _ in range(seed):
            token_logprobs(model, *some()).sum().backward()
            optimizer.step()
        log = MetricsLog(tmp_path / "log.jsonl", resume=True)
        average = {k: v.clone() + seed for k, v in model.state_dict().items()}
        return dict(
            model=model,
            optimizer=optimizer,
            average=average,
            draw=generator(seed),
            log=log,
            queue=[seed, 2],
            at={"todo": [[1], [seed]], "n": None},
        )

    cfg = pretrain.Config(save_every=1, keep=2, resume=True)
    (tmp_path / "data").mkdir()
    page = tmp_path / "data" / "page.txt"
    page.write_text("hello")
    old = parts(3) | {"read_from": read_from(page.parent, "gpt2")}  # a name, not a file, is none of ours
    old["log"].write(step=1)
    torch.manual_seed(8)
    torch.rand(3)
    for step in (1, 2, 3):
        save_state(tmp_path, "x", step, cfg, **old)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["x.state-2.pt", "x.state-3.pt"]
    for step in range(1, 6):
        (tmp_path / f"y.state-{step}.pt").touch()
        machine.drop_states(tmp_path, "y", 3)
    assert sorted(p.name[8] for p in tmp_path.glob("y.*")) == ["3", "4", "5"]
    machine.drop_states(tmp_path, "y")
    assert not list(tmp_path.glob("y.*"))
    for step in (9, 2):  # a run that was killed after step 9, then one that begins anew
        save_state(tmp_path, "z", step, cfg, **old)
    assert [p.name for p in tmp_path.glob("z.*")] == ["z.state-2.pt"], "its own state is not what is dropped"
    machine.drop_states(tmp_path, "z")
    after = torch.rand(5), torch.rand(5, generator=old["draw"])
    old["log"].write(step=2)

    new = parts(1)
    assert load_state(tmp_path, "x", cfg, **new) == 3
    assert torch.equal(torch.rand(5), after[0]) and torch.equal(torch.rand(5, generator=new["draw"]), after[1])
    assert new["queue"] == [3, 2] and new["at"] == {"todo": [[1], [3]], "n": None}
    for key in old["average"]:
        assert torch.equal(new["average"][key], old["average"][key])
    for a, b in zip(old["model"].parameters(), new["model"].parameters()):
        assert torch.equal(a, b)
        for what in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(old["optimizer"].state[a][what], new["optimizer"].state[b][what])
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n', "what came after the state is forgotten"

    with pytest.raises(BadInput, match="x.state-3.pt.*--steps"):
        load_state(tmp_path, "x", replace(cfg, steps=7), **new)
    assert load_state(tmp_path, "x", replace(cfg, resume=False), **new) == 0
    assert load_state(tmp_path, "x", replace(cfg, threads=2, keep=5), **new) == 3, "these change nothing"
    page.write_text("hallo")
    with pytest.raises(BadInput, match="page.txt has changed"):
        load_state(tmp_path, "x", cfg, **new | {"read_from": read_from(page.parent)})
    (tmp_path / "x.state-3.pt").write_bytes(b"half")
    with pytest.raises(BadInput, match="damaged"):
        load_state(tmp_path, "x", cfg, **new)
    assert load_state(tmp_path, "y", cfg, **new) == 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward"])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(data, run, tmp_path_factory, monkeypatch, capsys, name):
    """Interrupted right after each saved state, and resumed in the same process."""
    other, saved, more = twin(run, tmp_path_factory), [], {"dropout": 0.3} if name == "sft" else {}
    module, cfg = settings(name, data, run, **more)
    module.main(cfg)

    def save_and_die(*args, **parts):
        save_state(*args, **parts)
        saved.append(args[2])
        raise Killed

    monkeypatch.setattr(module, "save_state", save_and_die)
    module, cfg = settings(name, data, other, save_every=2, resume=True, **more)
    for _ in range(20):
        try:
            torch.rand(7)  # whatever else the process does
            module.main(cfg)
            break
        except Killed:
            pass
    assert saved == sorted(set(saved)) and len(saved) >= 2
    capsys.readouterr()
    module.main(cfg)
    assert "nothing is left to do" in capsys.readouterr().out
    (a, weights), (b, others) = outcome(name, run), outcome(name, other)
    assert a == b and all(torch.equal(value, others[key]) for key, value in weights.items())


def test_killed_at_random_and_resumed_is_uninterrupted_bit_for_bit(data, run, tmp_path_factory, name="ppo"):
    """A process of its own, kill -9 at some moment after a saved state, and once more to its end."""
    other = twin(run, tmp_path_factory)
    module, cfg = settings(name, data, run)
    module.main(cfg)
    dice = random.Random(name)
    flags = ["--save_every", "1", "--resume"]
    for key, value in {**SETTINGS[name][1], "data": data, "out": other, "device": "cpu", "threads": 1}.items():
        flags += [f"--{key}", str(value)]
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, f"{name}.py", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if attempt == 0:
            seen = set(other.glob("*.state-*.pt"))
            while process.poll() is None and set(other.glob("*.state-*.pt")) == seen:
                time.sleep(0.005)
            time.sleep(dice.random() * 0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        printed = process.communicate()[0]
        if process.returncode == 0:
            break
    assert process.returncode == 0 and "resuming after step" in printed
    assert not list(other.glob(".*.tmp")), "what the killed ones were writing is gone"
    assert not list(other.glob("*.state-*.pt")), "a run that has ended keeps no state"
    (a, weights), (b, others) = outcome(name, run), outcome(name, other)
    assert a == b
    assert all(torch.equal(value, others[key]) for key, value in weights.items())


# ---------------------------------------------------------------------------------------------------- many processes


def test_two_processes_give_the_losses_of_one(data, run, tmp_path_factory):
    """torchrun, gloo, FSDP2 on the CPU: pretraining, SFT, reward model and PPO-ptx, one after the other."""
    other = twin(run, tmp_path_factory)
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]"
    (other / "main.py").write_text(f"{path}\nimport test_machine\ntest_machine.all_scripts(*sys.argv[1:])\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(other / "main.py"), str(data), str(other)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    all_scripts(data, run)
    assert done.stdout.count("wrote ") == len(SETTINGS) + 1, "one voice"
    theirs = torch.load(other / "gradients.pt", weights_only=True)
    for name, gradients in torch.load(run / "gradients.pt", weights_only=True).items():
        same_gradients(gradients, theirs[name])
        (a, _), (b, _) = outcome(name, run), outcome(name, other)
        close(a, b, 5e-3)


def all_scripts(data, run):
    """All four, from what the fixture made: each alone starts from the same weights. Their first gradients go to a file.

    Then the reward model once more in bfloat16: the one whose head is not under autocast.
    """
    found = {}
    for name in SETTINGS:
        module, cfg = settings(name, Path(data), Path(run))
        recorder, old = Recorder(), module.optimizer_step
        module.optimizer_step = recorder
        module.main(cfg)
        module.optimizer_step = old
        found[name] = recorder.first
    write_torch(Path(run) / "gradients.pt", found)
    reward.main(settings("reward", Path(data), Path(run), dtype="bfloat16", out=str(Path(run) / "bfloat16"))[1])


def test_compiled_blocks_give_the_same_loss(monkeypatch):
    """--compile, with the backend that traces forward and backward but makes no machine code: that takes half a minute."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_(self, backend="aot_eager", **how))
    windows, losses, gradients = torch.randint(300, (3, 13), generator=generator(0)), [], []
    for compiled in (False, True):
        model = prepare(make(), Training(compile=compiled))
        loss = pretrain.lm_loss(model, windows)
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))
