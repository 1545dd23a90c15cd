"""What is not the lesson: the command line, errors in one line, whole-or-nothing files, the metrics log, the optimizer.

Every script's last line is `command_line(Config, main, __doc__)`: one flag per field of its Config, whose comment is
the flag's help. A test or a notebook skips all of this and calls `main(Config(...))`. machine.py is about devices.
"""

import ctypes
import json
import math
import os
import time
from pathlib import Path

import torch

from core.config import BadInput, command_line, first_process, require  # noqa: F401
from core.output import output_folder, whole_file, write_torch  # noqa: F401


def keep_memory():
    """Ask glibc to keep freed blocks: handing each activation back to the kernel cost 10-25 % of a training step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30), libc.mallopt(-1, 1 << 30)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # not Linux, or another C library: slower, not wrong


def generator(seed):
    """A random stream of its own, so that e.g. evaluating more often cannot change training.

    It is the CPU's, so that a run on a GPU draws the same numbers.
    """
    return torch.Generator().manual_seed(seed)


def check_finite(value, what, where, fix):
    """Stop at the first NaN or infinity and say what to try; never train on in silence."""
    if not math.isfinite(value):
        raise BadInput(f"{what} became {value} at {where}; {fix}")


class MetricsLog:
    """One JSON record per line in `path`; the printed lines are the caller's. Starts empty, unless a run is resumed."""

    def __init__(self, path, resume=False):
        self.path, self.start, self.before = Path(path), time.time(), 0.0
        if not (resume and self.path.exists()):
            self.clear()

    def clear(self):
        if first_process():
            self.path.write_text("")

    def write(self, **record):
        record = {k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}
        if first_process():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def left(self, done, total):
        """'m:ss' that remain if the rest goes at the pace so far."""
        seconds = round((self.before + time.time() - self.start) / max(done, 1) * (total - done))
        return f"{seconds // 60}:{seconds % 60:02d}"

    def state_dict(self):
        return {"bytes": self.path.stat().st_size, "seconds": self.before + time.time() - self.start}

    def load_state_dict(self, state):
        """Forget what was written after the state was saved."""
        self.before, self.start = state["seconds"], time.time()
        if first_process():
            os.truncate(self.path, state["bytes"])


def batches_by_length(lengths, batch_size, order):
    """Random batches of indices whose rows have similar lengths, so that little of a padded batch is padding.

    Shuffles, sorts within stretches of 16 batches, then shuffles the batches. Every index comes exactly once.
    """
    shuffled = torch.randperm(len(lengths), generator=order).tolist()
    batches = []
    for i in range(0, len(shuffled), 16 * batch_size):
        stretch = sorted(shuffled[i : i + 16 * batch_size], key=lambda j: lengths[j])
        batches += [stretch[j : j + batch_size] for j in range(0, len(stretch), batch_size)]
    return [batches[j] for j in torch.randperm(len(batches), generator=order).tolist()]


def cosine_to_tenth(step, total, peak):
    """Learning rate at `step` of `total`: cosine from `peak` down to 10 % of it, no warm-up (paper App. C.1, C.2)."""
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * min(step / max(total, 1), 1))))


def adamw(model, learning_rate, weight_decay=0.0):
    """Adam with the paper's β = (0.9, 0.95); ε and weight decay are ours (App. C is silent). Decay only on matrices."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def optimizer_step(optimizer, model, learning_rate, max_grad_norm):
    """Clip the accumulated gradient to `max_grad_norm`, step, clear it. Returns the norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
