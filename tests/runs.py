"""What the tests of whole runs share: reading what a run wrote, killing a run, watching its gradients."""

import json
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from core.optim import optimizer_step
from core.training_state import saved_states

ROOT = Path(__file__).resolve().parent.parent


def records_of(path):
    """The records of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def metrics_of(path):
    """The records of a log without what the clock says."""
    return [{key: value for key, value in r.items() if "seconds" not in key} for r in records_of(path)]


def weights_of(path):
    """{name: tensor} of a checkpoint."""
    return torch.load(path, weights_only=True)["model"]


def same(one, other):
    """Are two {name: tensor} equal, bit for bit?"""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copy_of(folder, tmp_path_factory):
    """A copy of a run folder, for the same run once more."""
    return shutil.copytree(folder, tmp_path_factory.mktemp("copy"), dirs_exist_ok=True)


def without_comparisons(data, folder):
    """A data folder like `data`, but nobody has ranked anything yet."""
    folder.mkdir()
    for path in data.iterdir():
        if path.name != "comparisons.jsonl":
            (folder / path.name).symlink_to(path)
    return folder


class OptimizerSteps:
    """Stands in for optimizer_step in a script: keeps every model's gradients of every step, and steps if asked to."""

    def __init__(self, monkeypatch, module, step=True):
        self.step, self.calls = step, []  # [(model, gradients, learning rate)]
        monkeypatch.setattr(module, "optimizer_step", self)

    def __call__(self, optimizer, model, learning_rate, max_grad_norm):
        self.calls.append((model, [p.grad.clone() for p in model.parameters()], learning_rate))
        if self.step:
            return optimizer_step(optimizer, model, learning_rate, max_grad_norm)
        optimizer.zero_grad(set_to_none=True)
        return 0.0

    def gradients_of(self, model):
        return [gradients for called_with, gradients, _ in self.calls if called_with is model]


def assert_gradients(got, loss, model):
    """Compare gradients with those of `loss`, one by one."""
    want = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    for (name, _), one, other in zip(model.named_parameters(), got, want, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def command(script, flags, monkeypatch, capsys):
    """Run a script from its command line, but in this process: to start Python and torch anew takes two seconds.

    It has to find the project's root by itself, as it must from any folder. -> (exit code, stdout, stderr)
    """
    path, code = ROOT / script, 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, flags)])
        tests = (ROOT, ROOT / "tests")
        patch.setattr(sys, "path", [str(path.parent), *(p for p in sys.path if Path(p).resolve() not in tests)])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        assert str(ROOT) in sys.path, "it runs only where Python happens to find the project"
    return code, *capsys.readouterr()


# ---------------------------------------------------------------------------------------------------- killed, resumed


def flags_of(cfg):
    """The settings that are not defaults, as flags of the command line."""
    flags = []
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if value != field.default:
            flag = f"--{field.name}={value}"
            if isinstance(value, bool):
                flag = f"--{field.name}" if value else f"--no-{field.name}"
            flags.append(flag)
    return flags


def kill_after_a_state(script, cfg, name, latest):
    """Run a script as its own process, and kill -9 it at a random moment after one of its first `latest` states."""
    for _ in range(3):
        command = [sys.executable, str(ROOT / script), *flags_of(cfg)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        step = random.randint(1, latest)
        while process.poll() is None and max(saved_states(cfg.out, name), default=0) < step:
            time.sleep(0.002)
        time.sleep(random.random() * 0.02)
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode != 0:  # it had not ended by itself
            assert saved_states(cfg.out, name)
            return
    raise AssertionError(f"{script} was three times at its end before it could be killed; give it more steps")


def check_resuming(module, cfg, name, log, other, monkeypatch, capsys, latest=5):
    """Killed and resumed is uninterrupted, bit for bit: weights, and the log without timings.

    cfg: a whole run, in cfg.out; other: a copy of that folder from before it. Killed twice: kill -9 of a process, and
    after that, in this process, right after each saved state.
    """
    module.main(cfg)
    interrupted = replace(cfg, out=str(other), save_every=1)
    kill_after_a_state(f"{module.__name__}.py", interrupted, name, latest)
    start = max(saved_states(other, name))
    for path in (other / log, *other.glob(f"{name}.*.jsonl")):  # killed between writing a record and saving the state
        with open(path, "a") as file:
            file.write('{"step": "after the state"}\n{"torn')
    for half_written in (f".{name}.pt.1.tmp", f".{name}.state-9.pt.1.tmp"):  # killed while writing a checkpoint
        (other / half_written).write_bytes(b"PK")
    resumed, saved = replace(interrupted, resume=True), []

    class Killed(Exception):
        pass

    class Deadly(module.TrainingState):
        def save_if_due(self, step):
            super().save_if_due(step)
            saved.append(step)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "TrainingState", Deadly)
        for _ in range(3):
            torch.rand(7)  # whatever else a process may have drawn
            with pytest.raises(Killed):
                module.main(resumed)
    assert saved == [start + 1, start + 2, start + 3]
    capsys.readouterr()
    module.main(resumed)
    assert f"resuming after step {start + 3}" in capsys.readouterr().out
    assert not saved_states(other, name), "a run that has ended keeps no state"
    assert not list(other.glob(".*.tmp")), "what the killed process was writing is gone"
    assert metrics_of(Path(cfg.out) / log) == metrics_of(other / log)
    assert same(weights_of(Path(cfg.out) / f"{name}.pt"), weights_of(other / f"{name}.pt"))
    module.main(resumed)
    assert "nothing is left to do" in capsys.readouterr().out
