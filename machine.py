"""Where it runs: a CPU, a GPU or many. Precision, sharding, shares of a batch; saving a training run and resuming it.

Nothing here is the lesson: with one process in float32 most of it does nothing. For several GPUs, also on several nodes,

    torchrun --nproc_per_node=8 ppo.py --data out/oasst --init gpt2-xl ...

starts one process per GPU. Every process reads the same data and draws the same random numbers; each works on its share
of every batch; PyTorch's FSDP2 keeps the weights in shards and adds up the gradients. Episodes are gathered on every
process after sampling, so whatever is computed from a batch (whitening, logs) is about the whole of it, and the results
are those of one process up to the order of additions. (Dropout masks differ: a process only draws those of its rows.)
Several nodes need the same data folder and run folder, on a disk that they share.
"""

import atexit
import os
import re
import sys
import zlib
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from plumbing import BadInput, MetricsLog, keep_memory, require, write_torch


@dataclass
class Device:
    """Settings of every script: where and how precisely."""

    device: str = "auto"  # auto, cpu, cuda
    threads: int = 0  # CPU threads; 0 = all cores
    dtype: str = "auto"  # of matrix products: float32, bfloat16; auto = bfloat16 on CUDA. Weights stay float32


@dataclass
class Training(Device):
    """Settings of every script that trains: memory, saving, resuming. None of them changes what is learned."""

    micro_batch_size: int = 0  # windows, demonstrations, rankings or episodes per pass, to save memory; 0 = all at once
    recompute: bool = False  # keep no activations inside a block, compute them again in the backward pass
    compile: bool = False  # torch.compile every block; pays on a GPU with long runs
    save_every: int = 0  # save the training state every so many steps (ppo.py: iterations); 0 = never
    keep: int = 1  # training states to keep, the newest ones
    resume: bool = False  # go on from the newest saved training state, if there is one


# ---------------------------------------------------------------------------------------------------- processes


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def set_up(cfg):
    """Seed, choose threads and device, meet the other processes if torchrun started several. -> torch.device

    Reads cfg.seed, cfg.threads, cfg.device, cfg.dtype, and checks the settings of Training.
    """
    keep_memory()
    least = {"micro_batch_size": 0, "save_every": 0, "keep": 1}
    for field, lowest in least.items():
        require(getattr(cfg, field, lowest) >= lowest, f"--{field} {getattr(cfg, field, 0)}: must be at least {lowest}")
    require(cfg.threads >= 0, f"--threads {cfg.threads}: use 0 for all cores or a positive number")
    require(cfg.dtype in ("auto", "float32", "bfloat16"), f"--dtype {cfg.dtype}: use auto, float32 or bfloat16")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    here = int(os.environ.get("LOCAL_RANK", 0))
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    try:
        device = torch.device("cuda", here) if name == "cuda" and "LOCAL_RANK" in os.environ else torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise BadInput(f"--device {cfg.device}: {str(problem).splitlines()[0]}; try --device cpu") from None
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # the first process may collect and download alone while the others wait
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
        atexit.register(dist.destroy_process_group)
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")  # one voice
    torch.manual_seed(cfg.seed)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cfg.threads or max(1, min(cores // neighbours, 8)))  # tiny tensors do not gain from more
    torch.set_float32_matmul_precision("highest" if device.type == "cpu" or cfg.dtype == "float32" else "high")
    return device


def wait_for_all():
    if world() > 1:
        dist.barrier()


def first_process_only(work):
    """Call work() on the first process while the others wait."""
    if rank() == 0:
        work()
    wait_for_all()


def matmul_dtype(cfg, device):
    """The dtype of matrix products that cfg.dtype asks for."""
    auto = "bfloat16" if torch.device(device).type == "cuda" else "float32"
    return getattr(torch, auto if cfg.dtype == "auto" else cfg.dtype)


def prepare(model, cfg, shard=True):
    """Make a loaded model ready: precision, recomputation, compilation, and its shards where there are processes.

    shard=False: for work that one process does alone.
    """
    body, device = model.transformer, model.transformer.wte.weight.device
    dtype = matmul_dtype(cfg, device)
    body.bfloat16 = dtype == torch.bfloat16
    body.recompute = getattr(cfg, "recompute", False)
    if getattr(cfg, "compile", False):
        for block in body.h:
            block.compile(dynamic=True)
    if world() > 1 and shard:
        torch.manual_seed(torch.initial_seed() + rank())  # dropout; all else is drawn from generators with equal seeds
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # weights travel as float32; autocast casts them
        mesh = dist.device_mesh.init_device_mesh(device.type, (world(),))
        for part in (*body.h, model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        if hasattr(model, "score"):
            register_fsdp_forward_method(model, "score")
    return model


def portions(batch, cfg):
    """What this process does of a minibatch: yields (rows, weight), its share in micro-batches.

    batch: a list, a range or a tensor of rows. FSDP takes the mean of the processes' gradients, so a loss that is already divided
    by the size of the WHOLE minibatch has to be multiplied by weight = number of processes. All processes get equally
    many portions; where a batch does not come out even, somebody's last one is a stand-in of weight 0.
    """
    own, largest = batch[rank() :: world()], -(-len(batch) // world())
    size = cfg.micro_batch_size or largest
    for start in range(0, largest, size):
        rows = own[start : start + size]
        yield (rows, float(world())) if len(rows) else (batch[:1], 0.0)


def add_up(values):
    """Sum over processes of a dict of numbers, each process having added its portions."""
    if world() == 1:
        return values
    total = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values.values()])
    device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
    total = total.to(device)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist()))


def gather_rows(batch):
    """Every process's rows on every process: {name: (b, …)} -> {name: (B, …)}, row i from process i modulo world().

    Rows are padded with zeros to the longest of all. What a process has to begin with is rows[rank() :: world()].
    """
    if world() == 1:
        return batch
    everybody = [None] * world()
    dist.all_gather_object(everybody, {k: v.cpu() for k, v in batch.items()})
    device, result = next(iter(batch.values())).device, {}
    for name in batch:
        parts = [theirs[name] for theirs in everybody]
        if parts[0].dim() > 1:
            longest = max(p.size(1) for p in parts)
            parts = [F.pad(p, (0, longest - p.size(1))) for p in parts]
        result[name] = torch.stack(parts, dim=1).flatten(0, 1).to(device)
    return result


# ---------------------------------------------------------------------------------------------------- whole and sharded


def full(value):
    """A sharded tensor as a whole one, anything else as it is. All processes have to ask at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value, target):
    """A whole tensor where `target` is, and cut as it is."""
    value = value.to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value


def whole_state(module):
    """state_dict with whole tensors, on the first process; the others help to put them together and keep nothing."""
    whole = {}
    for name, value in module.state_dict().items():
        value = full(value)
        if rank() == 0:
            whole[name] = value if world() == 1 else value.cpu()
    return whole


def load_whole(module, state):
    """Load a state_dict of whole tensors into a module that may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(value, own[name]) for name, value in state.items()})


def for_sampling(model, cfg):
    """The model as `generate` wants it: whole on this process, weights in the precision of the products.

    The model itself where it is so already; otherwise a copy, to be asked for again after every update. (In bfloat16 the
    copy's sums are bfloat16 too, so it samples from very nearly, not exactly, the policy whose log-probs are taken.)
    """
    device = model.transformer.wte.weight.device
    dtype = matmul_dtype(cfg, device)
    sharded = any(isinstance(p, DTensor) for p in model.parameters())
    sampler = model
    if sharded or dtype != torch.float32 or getattr(cfg, "compile", False):
        if "sampler" not in model.__dict__:  # not a submodule: it is no part of the checkpoint
            with torch.device("meta"):
                model.__dict__["sampler"] = type(model)(model.config)
            model.sampler.to_empty(device=device).to(dtype).eval().requires_grad_(False)
        sampler = model.sampler
        own = sampler.state_dict()
        for name, value in model.state_dict().items():
            own[name].copy_(full(value))
    if getattr(cfg, "capture", False) and device.type == "cuda" and sampler.replay is None:
        sampler.replay = Replay()
    return sampler


class Replay:
    """Steps of decoding on a GPU as CUDA graphs: each kind of step is recorded once, with all its kernels, then started by
    one call. It reads and writes at fixed addresses, so the sampler's weights and the cache stay where they are."""

    def __init__(self):
        self.graphs, self.pool, self.cache = {}, None, None

    def cache_for(self, B, S, make):
        """The cache that the graphs know, if it has room for B rows and S slots; otherwise a new one, and new graphs."""
        if self.cache is None or self.cache.k.size(1) < B or self.cache.k.size(3) < S:
            self.graphs.clear()
            self.pool = self.cache = None
            self.cache = make()
        return self.cache

    def __call__(self, key, work, *inputs):
        """work(*inputs), tensors that change nothing but their values between calls of one key. The result is overwritten
        by the next call."""
        if key not in self.graphs:
            fixed, beside = [x.clone() for x in inputs], torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                work(*fixed)  # libraries set themselves up at the first call, which must not be recorded
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                result = work(*fixed)
            self.pool = graph.pool()
            self.graphs[key] = graph, fixed, result
        graph, fixed, result = self.graphs[key]
        for place, value in zip(fixed, inputs):
            place.copy_(value)
        graph.replay()
        return result


# ---------------------------------------------------------------------------------------------------- training state

FREE = ("device", "threads", "save_every", "keep", "resume")  # may differ between saving and resuming


def _pack(part):
    if isinstance(part, torch.Generator):
        return part.get_state()
    if hasattr(part, "state_dict"):
        part = part.state_dict()

    def whole(value):  # on the first process, off the GPU
        value = full(value)
        return value.cpu() if isinstance(value, torch.Tensor) and rank() == 0 else value if rank() == 0 else None

    return tree_map(whole, part)


def _unpack(part, saved):
    """Put what was saved back into `part`, in place."""
    if isinstance(part, torch.Generator):
        part.set_state(saved)
    elif isinstance(part, torch.nn.Module):
        load_whole(part, saved)
    elif isinstance(part, torch.optim.Optimizer):
        parameters = [p for group in part.param_groups for p in group["params"]]
        for i, state in saved["state"].items():
            like = parameters[i]
            saved["state"][i] = {k: sharded_like(v, like) if v.shape == like.shape else v for k, v in state.items()}
        part.load_state_dict(saved)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(saved)
    elif isinstance(part, list):
        part[:] = saved
    else:  # a dict of tensors, numbers and lists
        for key, value in saved.items():
            part[key] = sharded_like(value, part[key]) if isinstance(value, torch.Tensor) else value


def _states(folder, name):
    """{step: path} of the training states of one run."""
    found = {p: re.fullmatch(re.escape(name) + r"\.state-(\d+)\.pt", p.name) for p in Path(folder).glob("*.state-*.pt")}
    return {int(match[1]): path for path, match in found.items() if match}


def has_state(folder, name):
    return bool(_states(folder, name))


def save_state(folder, name, step, cfg, **parts):
    """Write FOLDER/NAME.state-STEP.pt, whole or not at all, and drop all but the newest cfg.keep.

    What claims to be newer is of an earlier run that this one did not resume, and goes first.

    parts: models, optimizers, generators, logs, dicts of tensors, plain numbers and lists.
    """
    random = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])
    everybody = [random]
    if world() > 1:
        everybody = [None] * world()
        dist.all_gather_object(everybody, random)
    state = {"step": step, "config": asdict(cfg), "random": everybody}
    state["parts"] = {key: _pack(part) for key, part in parts.items()}
    for later, path in _states(folder, name).items():
        if later > step and rank() == 0:
            path.unlink(missing_ok=True)
    write_torch(Path(folder) / f"{name}.state-{step}.pt", state)
    drop_states(folder, name, cfg.keep)


def drop_states(folder, name, keep=0):
    """Remove the training states but the newest `keep`: a run that has ended needs none."""
    states = _states(folder, name)
    if rank() == 0:
        for step in sorted(states, reverse=True)[keep:]:
            states[step].unlink(missing_ok=True)
        for left_over in Path(folder).glob(f".{name}.state-*.tmp"):  # of a process that was killed while writing
            left_over.unlink(missing_ok=True)


def read_from(*paths):
    """What a run starts from, for `load_state` to compare: [file, bytes, check sum of its first million], folders whole."""
    files = [f for p in map(Path, paths) for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if f.is_file()]

    def start(file):
        with open(file, "rb") as opened:
            return opened.read(2**20)

    return [[str(file), file.stat().st_size, zlib.crc32(start(file))] for file in files]


def finished(folder, name, cfg):
    """With --resume: is FOLDER/NAME.pt there already, made with these settings? Says so, and there is nothing to do."""
    path = Path(folder) / f"{name}.pt"
    if not cfg.resume or _states(folder, name) or not path.exists():
        return False
    try:
        made = torch.load(path, map_location="cpu", weights_only=True)["config"]
    except Exception:
        return False  # half a file, or somebody else's: make it again
    same = all(key in FREE or made.get(key) == value for key, value in asdict(cfg).items())
    if same:
        print(f"--resume: {path} is there, made with these settings; nothing is left to do")
    return same


def load_state(folder, name, cfg, **parts):
    """With --resume, put the newest state of this run back into its parts. -> the step it was saved after, or 0.

    Refuses a state that other settings made: it would be neither the old run nor the new one.
    """
    states = _states(folder, name) if cfg.resume else {}
    if not states:
        if cfg.resume:
            print(f"--resume: no {folder}/{name}.state-*.pt, so this starts at the beginning")
        for log in (part for part in parts.values() if isinstance(part, MetricsLog)):
            log.clear()
        return 0
    path = states[max(states)]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # processes share what they read
        made, saved = state["config"], state["parts"]
    except Exception as problem:
        reason = str(problem).splitlines()[0][:80]
        raise BadInput(f"{path}: damaged ({reason}); delete it, --resume then takes the one before") from None
    for key, value in asdict(cfg).items():
        same = key in FREE or made.get(key) == value
        require(same, f"{path}: was saved with --{key} {made.get(key)}, not {value}; use the same, or another --out")
    changed = [file for file in parts.get("read_from", []) if file not in saved["read_from"]]
    require(not changed, f"{path}: {changed and changed[0][0]} has changed since it was saved; run without --resume")
    if len(state["random"]) == world():  # with another number of processes: other dropout masks
        cpu, *cuda = state["random"][rank()]
        torch.set_rng_state(cpu)
        if cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda[0])
    for key, part in parts.items():
        _unpack(part, saved[key])
    print(f"resuming after step {state['step']} from {path}")
    return state["step"]
