"""Several processes, one per GPU: who does which rows, and how their results add up.

    torchrun --nproc_per_node=8 ppo.py --data out/oasst --out out/oasst-gpt2 ...

Every process reads the same data and draws the same random numbers; each works on its share of every minibatch;
PyTorch's FSDP2 keeps the weights in shards and sums the gradients. A loss is divided by the tokens of the WHOLE
minibatch before backward(), so micro-batches and processes simply add up, and the results are those of one process up
to the order of additions. (Dropout masks differ: a process draws those of its own rows.) With one process nothing here
does anything. Several nodes need the same data folder and run folder, on a disk that they share.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from core.config import require


def rank():
    """Number of this process, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all():
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.barrier()


def first_process_only(work):
    """Call work() on the first process while the others wait."""
    if rank() == 0:
        work()
    wait_for_all()


# ---------------------------------------------------------------------------------------------------- rows


def micro_batches(minibatch, cfg):
    """Cut this process's share of a minibatch into parts of at most cfg.micro_batch_size rows (0: one part).

    minibatch: a list or tensor of rows. All processes get equally many parts, so where rows do not come out even, the
    last part of some is empty: it goes through the model all the same, because the others wait for its gradients.
    """
    own = own_rows(minibatch)
    largest_share = math.ceil(len(minibatch) / world_size())
    size = cfg.micro_batch_size or largest_share
    for start in range(0, largest_share, size):
        yield own[start : start + size]


def own_rows(rows):
    """This process's share of a list or tensor of rows."""
    return rows[rank() :: world_size()]


def all_reduce_sum(metrics):
    """Sum a dict of numbers (or tensors of one number) over the processes. -> {name: float}"""
    if not metrics:
        return {}
    device = next((value.device for value in metrics.values() if isinstance(value, torch.Tensor)), "cpu")
    total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in metrics.values()])
    if world_size() > 1:
        dist.all_reduce(total)
    return dict(zip(metrics, total.tolist()))


def gather_rows(batch):
    """Bring every process's rows to every process: {name: (b, …)} -> {name: (B, …)}, row i from process i mod N.

    Rows are padded with zeros to the longest of all. What a process has to begin with is `own_rows` of all.
    """
    if world_size() == 1:
        return batch
    by_process = [None] * world_size()
    dist.all_gather_object(by_process, {name: rows.cpu() for name, rows in batch.items()})
    device, gathered = next(iter(batch.values())).device, {}
    for name in batch:
        parts = [rows[name] for rows in by_process]
        if parts[0].dim() > 1:
            longest = max(part.size(1) for part in parts)
            parts = [F.pad(part, (0, longest - part.size(1))) for part in parts]
        gathered[name] = torch.stack(parts, dim=1).flatten(0, 1).to(device)
    return gathered


# ---------------------------------------------------------------------------------------------------- shards


def shard(model, device, dtype=torch.float32):
    """Keep only this process's shard of every weight (FSDP2); gradients of the processes are summed, not averaged.

    A model that is elsewhere goes to the device part by part, so that no GPU needs room for all of it. dtype: of matrix
    products; their weights travel in it, as autocast would have rounded them on arrival. Shards and sums stay float32.
    """
    mesh = dist.device_mesh.init_device_mesh(device.type, (world_size(),))
    rounded = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in (*(part for block in model.transformer.h for part in (block.attn, block.mlp)), model):
        fully_shard(module, mesh=mesh, mp_policy=exact if module is model else rounded)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction for such a factor
    if hasattr(model, "score"):
        register_fsdp_forward_method(model, "score")
    return model


def full_tensor(value):
    """A sharded tensor as a whole one, anything else as it is. All processes have to ask at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value, target):
    """A whole tensor, which every process has, where `target` is, and cut as it is."""
    value = value.to(target.device)
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def full_state_dict(module):
    """state_dict with whole tensors, on the first process; the others help to put them together and keep nothing."""
    state = {}
    for name, value in module.state_dict().items():
        value = full_tensor(value)
        if rank() == 0:
            state[name] = value if world_size() == 1 else value.cpu()
    return state


def load_full_state_dict(module, state):
    """Load a state_dict of whole tensors into a module that may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(value, own[name]) for name, value in state.items()})


# ---------------------------------------------------------------------------------------------------- heads


def split_heads(model, processes, device):
    """Spread a GPT over `processes` neighbouring processes: each holds a share of the heads and of the MLP's hidden
    units of every block (tensor parallelism, Shoeybi et al. 2019). Embeddings and layer norms stay whole.

    Every process computes the sum over its share, and the sums are added up: two additions over processes per block.
    """
    heads = model.config.n_head
    divides = world_size() % processes == 0 and heads % processes == 0
    require(divides, f"--tensor_parallel {processes}: must divide the {world_size()} processes and the {heads} heads")
    mesh = dist.device_mesh.init_device_mesh(
        device.type, (world_size() // processes, processes), mesh_dim_names=("copy", "share")
    )
    model.sharers = mesh["share"]
    for block in model.transformer.h:
        plan = {"attn.c_attn": ColwiseParallel(), "attn.c_proj": RowwiseParallel()}
        plan |= {"mlp.c_fc": ColwiseParallel(), "mlp.c_proj": RowwiseParallel()}
        parallelize_module(block, model.sharers, plan)
        block.attn.n_head = heads // processes


def heads_together(name, value, processes):
    """The rows of c_attn, which are all queries, all keys, all values, in the order in which they are cut: those of the
    first share, then those of the second, … Other weights as they are."""
    if "c_attn" not in name:
        return value
    return value.unflatten(0, (3, processes, -1)).transpose(0, 1).flatten(0, 2)


def rows_of_all_sharers(model, prompts, uniforms):
    """Where several processes share a model, they feed it the rows of all of them: what one computes the others need.

    prompts: of this process; uniforms: (N, B). -> prompts and uniforms of all, and a slice: the rows of this process.
    """
    sharers = getattr(model, "sharers", None)
    if sharers is None:
        return prompts, uniforms, slice(None)
    asked = [None] * sharers.size()
    dist.all_gather_object(asked, (prompts, uniforms.cpu()), sharers.get_group())
    if all(theirs == asked[0][0] and torch.equal(u, asked[0][1]) for theirs, u in asked):
        return prompts, uniforms, slice(None)  # all want the same
    rank = sharers.get_local_rank()
    first = sum(len(theirs) for theirs, _ in asked[:rank])
    uniforms = torch.cat([u for _, u in asked], dim=1).to(uniforms.device)
    return [prompt for theirs, _ in asked for prompt in theirs], uniforms, slice(first, first + len(prompts))
