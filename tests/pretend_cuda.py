"""A GPU that is none: tensors that say they are on "cuda", and are computed on the CPU all the same.

    with PretendCuda() as gpu:
        model = GPT(cfg).to("cuda")
        ...                          # a tensor on the CPU that meets one on "cuda" raises DeviceMismatch
    gpu.waits                        # what would have made the CPU wait for the GPU, in order: ["tolist", "nonzero", …]
    gpu.backward_on                  # where there was something to learn: {"cuda"}

PyTorch's own fake tensors (FakeTensorMode) have no values, and a build without CUDA moves none of them to "cuda"; but
sampling and masks look at values. So this mode stands between Python and PyTorch, runs every function with the real
values, and keeps a list of the tensors that are "on the GPU": what is made there, moved there, or computed from what is
there. `tensor.device` says so. (The rules are held against FakeTensorMode's in test_pretend_cuda.py.)
"""

from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")

MOVES = {"to", "cpu", "cuda", "as_tensor", "tensor"}
# They give the CPU a value, or a tensor whose shape depends on values: it has to wait until the GPU has come so far.
READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__format__", "__repr__"}
READS |= {"equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}
NO_SCALARS = {"stack", "cat", "embedding", "linear", "gather"}  # no number on the CPU may be among these


class DeviceMismatch(RuntimeError):
    """Tensors on the CPU and on the GPU, where PyTorch wants them on one device."""


class PretendCuda(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.on_gpu, self.waits, self.backward_on = WeakIdKeyDictionary(), [], set()

    def __enter__(self):
        """Also in the two places where PyTorch looks at tensors past this mode."""
        make, group = torch.nn.Parameter.__new__, clip_grad._group_tensors_by_device_and_dtype

        def new_parameter(cls, data=None, requires_grad=True):
            return self.put(make(cls, data, requires_grad), data is not None and data in self.on_gpu)

        def grouped(lists, *rest):
            groups = group(lists, *rest).items()
            return {(self.device_of(found[0][0][0]), dtype): found for (_, dtype), found in groups}

        self.patches = ExitStack()
        self.patches.enter_context(patch.object(torch.nn.Parameter, "__new__", new_parameter))
        self.patches.enter_context(patch.object(clip_grad, "_group_tensors_by_device_and_dtype", grouped))
        return super().__enter__()

    def __exit__(self, *exception):
        self.patches.close()
        return super().__exit__(*exception)

    def put(self, tensor, on_gpu):
        if on_gpu and tensor.device.type != "meta":
            self.on_gpu[tensor] = True
        return tensor

    def device_of(self, tensor):
        return GPU if tensor in self.on_gpu else tensor.device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.__name__
        if name in ("__get__", "__set__"):
            name = f"{func.__self__.__name__}.{name}"
        if name == "device.__get__":
            return self.device_of(args[0])
        if name == "is_cuda.__get__":
            return args[0] in self.on_gpu
        if name == "data.__set__":
            func(*args)
            self.on_gpu.pop(args[0], None)
            self.put(args[0], args[1] in self.on_gpu)
            return None
        if name in MOVES:
            return self.move(func, name, args, kwargs)
        if name in ("__getitem__", "__setitem__"):
            self.check_index(name, *args)
        elif name not in ("copy_", "_has_compatible_shallow_copy_type"):
            self.check_same_device(name, args, kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = any(tensor in self.on_gpu for tensor in tensors)
        if name == "backward":
            self.backward_on.add("cuda" if on_gpu else "cpu")
        if name == "copy_" and self.device_of(args[0]) != self.device_of(args[1]):
            self.waits.append("copy_")
        of_unknown_length = name == "repeat_interleave" and "output_size" not in kwargs
        if on_gpu and (name in READS or of_unknown_length or (name == "where" and len(args) + len(kwargs) == 1)):
            self.waits.append(name)
        if name == "numpy" and on_gpu:
            raise DeviceMismatch("numpy() of a tensor on the GPU")
        asked = kwargs.get("device")
        if asked is not None:
            on_gpu = torch.device(asked).type == "cuda"
            kwargs["device"] = CPU if on_gpu else asked
        if on_gpu and kwargs.get("generator") is not None:
            raise DeviceMismatch(f"{name} on the GPU with a generator on the CPU")
        result = func(*args, **kwargs)
        known = {id(tensor) for tensor in tensors}  # what was changed in place stays where it is
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and id(x) not in known:
                self.put(x, on_gpu)
        return result

    def move(self, func, name, args, kwargs):
        """to, cpu, cuda, and a tensor from Python's numbers."""
        values = [x for x in tree_leaves(args[0]) if isinstance(x, torch.Tensor)]
        before = GPU if any(x in self.on_gpu for x in values) else CPU
        target = {"cpu": CPU, "cuda": GPU}.get(name, CPU if name == "tensor" else before)
        for x in (*args[1:], kwargs.get("device"), kwargs.get("other")):
            if isinstance(x, torch.Tensor):
                target = self.device_of(x)
            elif isinstance(x, (str, torch.device)):
                target = torch.device(x)
        if "meta" in (target.type, *(x.device.type for x in values)):
            return func(*args, **kwargs)
        if target.type != before.type:
            self.waits.append(f"to {target.type}")

        def real(x):
            return CPU if isinstance(x, (str, torch.device)) and name != "cuda" else x

        result = func(args[0], *map(real, args[1:]), **{key: real(x) for key, x in kwargs.items()})
        if result is args[0] and target.type != before.type:
            result = result.clone()
        return self.put(result, target.type == "cuda")

    def check_index(self, name, x, index, value=None):
        """x[index], x[index] = value: an index on the CPU is copied to the GPU; one on the GPU cannot reach the CPU."""
        parts = index if isinstance(index, tuple) else (index,)
        bounds = [bound for part in parts if isinstance(part, slice) for bound in (part.start, part.stop, part.step)]
        for bound in bounds:
            if isinstance(bound, torch.Tensor) and bound in self.on_gpu:
                self.waits.append("a slice")
        indices = [part for part in parts if isinstance(part, torch.Tensor)]
        for part in indices:
            if part.dim() == 0 and part.dtype != torch.bool:
                self.waits += ["an index of one number"] * (part in self.on_gpu)
                continue
            if self.device_of(part) != self.device_of(x):
                if part in self.on_gpu:
                    raise DeviceMismatch(f"{name}: an index on the GPU into a tensor on the CPU")
                self.waits.append("an index on the CPU")
            elif part.dtype == torch.bool and x in self.on_gpu:
                self.waits.append("a mask as index")
        if isinstance(value, torch.Tensor) and self.device_of(value) != self.device_of(x):
            if indices and value.dim() > 0:
                raise DeviceMismatch(f"{name}: values on {self.device_of(value)} into a tensor on {self.device_of(x)}")
            self.waits.append("values of a slice")

    def check_same_device(self, name, args, kwargs):
        """All on one device, but for single numbers on the CPU, which go along with the GPU's tensors."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if name not in NO_SCALARS:
            tensors = [x for x in tensors if x.dim() > 0 or x in self.on_gpu]
        found = {self.device_of(x).type for x in tensors}
        if {"cpu", "cuda"} <= found:
            shapes = ", ".join(f"{tuple(x.shape)} on {self.device_of(x)}" for x in tensors)
            raise DeviceMismatch(f"{name}: {shapes}")
