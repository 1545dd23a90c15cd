"""Saving a training run and resuming it, so that a killed run goes on as if nothing had happened.

What comes when is a function of the seed and the step (core/batches.py), so a run consists of its models, optimizers,
averages, the step, and the state of PyTorch's random numbers (dropout). Logs are cut back to where they were.
"""

import re
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map

from core.config import BadInput, require
from core.distributed import full_tensor, load_full_state_dict, rank, sharded_like, world_size
from core.log import JsonLines
from core.output import write_torch

# Settings that may change between save and resume: none of them changes what is learned.
MAY_DIFFER = ("device", "threads", "micro_batch_size", "recompute", "compile", "tensor_parallel")
MAY_DIFFER += ("save_every", "keep", "resume")


class TrainingState:
    """The files OUT/NAME.state-STEP.pt of one run.

    inputs: files and folders that the run reads; parts: models, optimizers, logs and dicts of tensors.
    """

    def __init__(self, out, name, cfg, inputs, **parts):
        self.out, self.name, self.cfg, self.parts = Path(out), name, cfg, parts
        self.inputs = fingerprints(*inputs)

    def resume(self):
        """With --resume put the newest state back into the parts. -> the step it was saved after, 0 for a new run.

        Refuses a state that other settings or other inputs made: it would be neither the old run nor the new one.
        """
        states = saved_states(self.out, self.name)
        if not (self.cfg.resume and states):
            if self.cfg.resume:
                print(f"--resume: no {self.out}/{self.name}.state-*.pt, so this starts at the beginning")
            for part in self.parts.values():
                if isinstance(part, JsonLines):
                    part.clear()
            return 0
        path = states[max(states)]
        state = self.read(path)
        for key, value in asdict(self.cfg).items():
            before = state["config"].get(key)
            same = key in MAY_DIFFER or before == value
            require(same, f"{path}: was saved with --{key} {before}, not {value}; use the same, or another --out")
        for file in self.inputs:
            same = file in state["inputs"]
            require(same, f"{path}: {file[0]} has changed since it was saved; run without --resume")
        if len(state["random"]) == world_size():  # with another number of processes: other dropout masks
            cpu, *cuda = state["random"][rank()]
            torch.set_rng_state(cpu)
            if cuda and torch.cuda.is_available():
                torch.cuda.set_rng_state(cuda[0])
        for key, part in self.parts.items():
            restore(part, state["parts"][key])
        print(f"resuming after step {state['step']} from {path}")
        return state["step"]

    def read(self, path):
        try:
            require(zipfile.is_zipfile(path), "cut short")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # processes share what they read
            require(set(self.parts) == set(state["parts"]), "of another version")
        except Exception as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0][:80]
            raise BadInput(f"{path}: damaged ({reason}); delete it, --resume then takes the one before") from None
        return state

    def save_if_due(self, step):
        """Every --save_every steps, write the state after `step`, whole or not at all, and keep the newest --keep."""
        if not (self.cfg.save_every and step % self.cfg.save_every == 0):
            return
        random = [torch.get_rng_state()]
        if torch.cuda.is_available():
            random.append(torch.cuda.get_rng_state())
        random_by_process = [random]
        if world_size() > 1:
            random_by_process = [None] * world_size()
            dist.all_gather_object(random_by_process, random)
        parts = {key: whole_state(part) for key, part in self.parts.items()}
        state = {"step": step, "config": asdict(self.cfg), "random": random_by_process, "inputs": self.inputs}
        for later, path in saved_states(self.out, self.name).items():
            if later > step and rank() == 0:
                path.unlink(missing_ok=True)  # of an earlier run that this one did not resume
        write_torch(self.out / f"{self.name}.state-{step}.pt", state | {"parts": parts})
        drop_states(self.out, self.name, self.cfg.keep)

    def finish(self):
        """Remove the states: a run that has ended needs none."""
        drop_states(self.out, self.name)

    def already_finished(self):
        """With --resume: is OUT/NAME.pt there already, made with these settings and inputs? Says so."""
        path = self.out / f"{self.name}.pt"
        if not self.cfg.resume or saved_states(self.out, self.name) or not path.exists():
            return False
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            before, inputs = checkpoint["config"], checkpoint["inputs"]
        except Exception:
            return False  # half a file, or somebody else's: make it again
        for key, value in asdict(self.cfg).items():
            if key not in MAY_DIFFER and before.get(key) != value:
                return False
        if inputs != self.inputs:
            return False
        print(f"--resume: {path} is there, made with these settings; nothing is left to do")
        return True


def fingerprints(*paths):
    """[file, bytes, check sum of its first million] of each file, folders whole: enough to notice that one changed."""
    found = []
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with open(file, "rb") as opened:
                    found.append([str(file), file.stat().st_size, zlib.crc32(opened.read(2**20))])
    return found


def saved_states(out, name):
    """{step: path} of the training states of one run."""
    states = {}
    for path in Path(out).glob("*.state-*.pt"):
        match = re.fullmatch(re.escape(name) + r"\.state-(\d+)\.pt", path.name)
        if match:
            states[int(match[1])] = path
    return states


def drop_states(out, name, keep=0):
    """Remove the training states of a run but the newest `keep`, and what a killed process left half-written."""
    states = saved_states(out, name)
    if rank() == 0:
        for step in sorted(states, reverse=True)[keep:]:
            states[step].unlink(missing_ok=True)
        for half_written in Path(out).glob(f".{name}.*.tmp"):
            half_written.unlink(missing_ok=True)


def whole_state(part):
    """What has to be saved of a part: whole tensors, on the first process, off the GPU."""
    if hasattr(part, "state_dict"):
        part = part.state_dict()

    def whole(value):
        value = full_tensor(value)  # all processes have to take part
        if rank() > 0:
            return None
        return value.cpu() if isinstance(value, torch.Tensor) else value

    return tree_map(whole, part)


def restore(part, saved):
    """Put what was saved back into a part, in place."""
    if isinstance(part, torch.nn.Module):
        load_full_state_dict(part, saved)
    elif isinstance(part, torch.optim.Optimizer):
        parameters = [p for group in part.param_groups for p in group["params"]]
        for i, state in saved["state"].items():
            for name, value in state.items():
                if value.shape == parameters[i].shape:
                    state[name] = sharded_like(value, parameters[i])
        part.load_state_dict(saved)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(saved)
    else:
        assert isinstance(part, dict), (
            f"a training state consists of modules, optimizers, logs, dicts; not {type(part)}"
        )
        for name, value in saved.items():
            part[name] = sharded_like(value, part[name])
