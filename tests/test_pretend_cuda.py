"""The pretended GPU refuses what PyTorch's own fake tensors refuse, and lets pass what they let pass."""

import pytest
import torch
import torch.nn.functional as F
from pretend_cuda import DeviceMismatch, PretendCuda
from torch._subclasses.fake_tensor import FakeTensorMode

# An operation of tensors x, y (3, 4), a number n and indices i (3,), each on either device.
OPERATIONS = {
    "add": lambda x, y, n, i: x + y,
    "add a number": lambda x, y, n, i: x + n,
    "multiply in place": lambda x, y, n, i: x.mul_(n),
    "matrix product": lambda x, y, n, i: x @ y.T,
    "linear": lambda x, y, n, i: F.linear(x, y),
    "cat": lambda x, y, n, i: torch.cat([x, y]),
    "stack": lambda x, y, n, i: torch.stack([x, y]),
    "where": lambda x, y, n, i: torch.where(x > 0, y, n),
    "gather": lambda x, y, n, i: x.gather(1, i[:, None]),
    "embedding": lambda x, y, n, i: F.embedding(i, x),
    "cross entropy": lambda x, y, n, i: F.cross_entropy(x, i),
    "layer norm": lambda x, y, n, i: F.layer_norm(x, (4,), y[0]),
    "index_copy": lambda x, y, n, i: x.index_copy(0, i, y),
    "copy into": lambda x, y, n, i: x.copy_(y),
    "copy into a slice": lambda x, y, n, i: x[:2].copy_(y[:2]),
    "lerp": lambda x, y, n, i: x.lerp_(y, 0.5),
    "searchsorted": lambda x, y, n, i: torch.searchsorted(x.cumsum(-1), y[:, :1].contiguous()),
    "compare": lambda x, y, n, i: x[:, 0] < i,
}
PLACES = [(x, y, n, i) for x in "cg" for y in "cg" for n in "cg" for i in "cg"]


def outcome(work, places, mode):
    """Where the result is, "refused", or "unknown" where a build without CUDA cannot say."""
    with mode:
        device = {"c": "cpu", "g": "cuda"}
        x, y = (torch.ones(3, 4, device=device[place]) for place in places[:2])
        n = torch.zeros((), device=device[places[2]])
        i = torch.zeros(3, dtype=torch.long, device=device[places[3]])
        try:
            return work(x, y, n, i).device.type
        except RuntimeError as problem:  # both kinds of mismatch are one
            return "unknown" if "not linked" in str(problem) else "refused"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_rules_are_those_of_fake_tensors(name):
    outcomes = set()
    for places in PLACES:
        ours, theirs = (outcome(OPERATIONS[name], places, mode()) for mode in (PretendCuda, FakeTensorMode))
        assert ours == theirs or theirs == "unknown", places
        outcomes.add(theirs)
    assert len(outcomes) > 1 and ("cpu" in outcomes or "refused" in outcomes)


def test_values_are_real_and_gradients_are_on_the_gpu():
    with PretendCuda() as gpu:
        layer = torch.nn.Linear(2, 1).to("cuda")
        x = torch.tensor([[1.0, 2.0]], device="cuda")
        layer(x).sum().backward()
        assert layer.weight.grad.is_cuda and str(layer.weight.device) == "cuda:0"
        assert layer.weight.grad.tolist() == [[1.0, 2.0]]
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        before = layer.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(before, layer.weight)
        moments = [value for state in optimizer.state.values() for value in state.values()]
        assert moments and all(value.is_cuda for value in moments)
    assert gpu.waits == ["to cuda", "to cuda", "to cuda", "tolist", "equal"]
    assert not layer.weight.is_cuda, "no tensor says so outside"


WAITS = {  # what makes the CPU wait -> how often
    "item": (lambda x: x[0].item(), 1),
    "bool": (lambda x: 1 if x.sum() > 0 else 0, 1),
    "int": (lambda x: int(x.sum()), 1),
    "a mask as index": (lambda x: x[x > 0], 1),
    "a mask as index, written": (lambda x: x.clone().__setitem__(x > 0, 0.0), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "a slice": (lambda x: x[: x.long().sum()], 1),
    "repeats": (lambda x: x.repeat_interleave(x.long()), 1),
    "an index on the CPU": (lambda x: x[torch.tensor([0, 1])], 1),
    "cpu": (lambda x: x.cpu(), 1),
    "nothing": (lambda x: (x + 1).softmax(0)[torch.zeros(3, dtype=torch.long, device=x.device)].sum(), 0),
    "known repeats": (lambda x: x.repeat_interleave(x.long(), output_size=2), 0),
    "the shape": (lambda x: len(x) + x.size(0) + x.numel(), 0),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_gpu_is_counted(name):
    work, count = WAITS[name]
    with PretendCuda() as gpu:
        x = torch.ones(2, device="cuda")
        work(x)
    assert len(gpu.waits) == count


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.zeros(2, device="cuda").numpy(),
        lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        lambda: torch.zeros(3)[
            torch.zeros(2, dtype=torch.long, device="cuda")
        ],  # fake tensors let this pass, and this:
        lambda: torch.stack([torch.zeros(()), torch.zeros((), device="cuda")]),
        lambda: torch.zeros(3, device="cuda").__setitem__(torch.tensor([0, 1]).to("cuda"), torch.zeros(2)),
    ],
)
def test_what_only_a_gpu_refuses(work):
    with PretendCuda(), pytest.raises(DeviceMismatch):
        work()
