"""Where it runs and how precisely: CPU or GPU, bfloat16, recomputed activations, torch.compile."""

import atexit
import ctypes
import os
import sys
import weakref
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from core.config import BadInput, check
from core.distributed import full_tensor, heads_together, rank, shard, sharded_like, split_heads, world_size
from core.sampling import use_cuda_graphs


def set_up(cfg):
    """Check the settings, seed, choose threads and device, meet the other processes of torchrun. -> torch.device"""
    check(cfg)
    keep_freed_memory()
    device = choose_device(cfg)
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
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(cfg.threads or max(1, min(cores // processes_here, 8)))  # tiny tensors do not gain from more
    torch.set_float32_matmul_precision("highest" if device.type == "cpu" or cfg.dtype == "float32" else "high")
    return device


def choose_device(cfg):
    """cfg.device as a torch.device that exists (BadInput otherwise); under torchrun each process has its own GPU."""
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise BadInput(f"--device {cfg.device}: {str(problem).splitlines()[0]}; try --device cpu") from None
    return device


def keep_freed_memory():
    """Ask glibc to keep freed blocks: handing each activation back to the kernel cost 10-25 % of a training step."""
    M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        pass  # not Linux, or another C library: slower, not wrong


# ---------------------------------------------------------------------------------------------------- models


def compute_dtype(cfg, device):
    """The dtype of matrix products cfg.dtype asks for: bfloat16 on a GPU and float32 elsewhere, if it is "auto"."""
    if cfg.dtype == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return getattr(torch, cfg.dtype)


def configure_model(model, cfg, sharded=True, device=None):
    """Give a loaded model its precision, recomputation and compilation, and cut it into shards if there are processes.

    sharded=False: for work that one process does alone. device: where its shards go, if not where it is.
    -> the model, changed in place
    """
    device = torch.device(device or model.transformer.wte.weight.device)
    for block in model.transformer.h:
        if getattr(cfg, "compile", False):
            block.forward = torch.compile(block.forward, dynamic=True)
        if getattr(cfg, "recompute", False):
            block.forward = recomputed_in_backward(block.forward)
    if compute_dtype(cfg, device) == torch.bfloat16:  # of matrix products; weights, sums and the rest stay float32
        model.compute_dtype = torch.bfloat16
        # Rounded weights are used once per pass; autocast's cache would hold those of all blocks at the same time.
        rounded = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
        model.transformer.forward = rounded(model.transformer.forward)
        if hasattr(model, "unembed"):
            model.unembed = rounded(model.unembed)
    if world_size() > 1 and sharded:
        torch.manual_seed(torch.initial_seed() + rank())  # dropout; all else is drawn from generators with equal seeds
        shard(model, device, compute_dtype(cfg, device))
    return model


def recomputed_in_backward(forward):
    """A forward() that keeps its inputs alone, and computes everything else again in the backward pass."""

    def run(*args):
        if torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False)
        return forward(*args)

    return run


_sampling_copies = weakref.WeakKeyDictionary()  # model -> its copy


def sampling_copy(model, cfg):
    """The model as sampling wants it: whole on this process, weights in the precision of the products, not compiled.

    The model itself where it is so already; otherwise a copy, to be asked for again after every update. (In bfloat16
    the copy's sums are bfloat16 too, so it samples from very nearly, not exactly, the policy whose log-probs are
    taken.) With cfg.capture it decodes by CUDA graphs. With cfg.tensor_parallel so many processes have one copy
    together.
    """
    device = model.transformer.wte.weight.device
    dtype = compute_dtype(cfg, device)
    sharers = getattr(cfg, "tensor_parallel", 1)
    is_sharded = sharers > 1 or any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if not is_sharded and dtype == torch.float32 and not getattr(cfg, "compile", False):
        copy = model
    else:
        copy = updated_copy(model, device, dtype, sharers)
    if getattr(cfg, "capture", False):
        use_cuda_graphs(copy)
    return copy


def updated_copy(model, device, dtype, sharers=1):
    """A copy of the model in another dtype, made once and brought up to date at each call.

    It is made weight by weight, so that no process holds more than its own share and one whole weight.
    """
    if model not in _sampling_copies:
        with torch.device("meta"):
            copy = type(model)(model.config).to(dtype)
        if sharers > 1:
            split_heads(copy, sharers, device)
        _sampling_copies[model] = copy.to_empty(device=device).eval().requires_grad_(False)
    own = _sampling_copies[model].state_dict()
    for name, value in model.state_dict().items():
        value = full_tensor(value)
        own[name].copy_(sharded_like(heads_together(name, value, sharers), own[name]))
    return _sampling_copies[model]
