"""What is not the lesson: the command line, errors in one line, whole-or-nothing files, the metrics log, the optimizer.

Every script's last line is `command_line(Config, main, __doc__)`: one flag per field of its Config, whose comment is
the flag's help. A test or a notebook skips all of this and calls `main(Config(...))`. machine.py is about devices.
"""

import argparse
import ctypes
import errno
import inspect
import json
import math
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch


class BadInput(Exception):
    """Something the user can mend: one line that names the file, the line and the fix. Exit code 2."""


def command_line(Config, main, doc):
    """Build one flag per field of the dataclass `Config`, parse, run `main(Config)`, and report errors in one line."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
            raise SystemExit(2)

    parser = Parser(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = "".join(inspect.getsource(c) for c in Config.__mro__ if is_dataclass(c))
    comments = dict(re.findall(r"^\s+(\w+): \w+ = .*?#\s*(.+)$", source, flags=re.M))
    for f in sorted(fields(Config), key=lambda f: f.name not in Config.__annotations__):  # its own before the inherited
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type, "metavar": ""}
        text = f"{comments.get(f.name, '')} (default: {f.default})".replace("%", "%%")
        parser.add_argument(f"--{f.name}", default=f.default, help=text, **kind)
    try:
        main(Config(**vars(parser.parse_args())))
    except BadInput as problem:
        if first_process():
            print(f"{parser.prog}: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as problem:  # a full disk, a read-only folder, a file that vanished
        hint = {
            errno.ENOSPC: "free some space",
            errno.EACCES: "check its permissions",
            errno.EROFS: "choose another --out",
        }
        fix = hint.get(problem.errno, "check the path")
        print(f"{parser.prog}: {problem.filename or 'output'}: {problem.strerror or problem}; {fix}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; what was finished is kept, run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


def first_process():
    """Of several that torchrun started, one writes the files and prints."""
    return os.environ.get("RANK", "0") == "0"


def require(condition, message):
    """Raise BadInput(message) unless `condition` holds."""
    if not condition:
        raise BadInput(message)


@contextmanager
def whole_file(path, mode="w"):
    """Open a temporary file beside `path`; it becomes `path` only when the block ends well. Nothing is half-written."""
    path = Path(path)
    if not first_process():
        with open(os.devnull, mode) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        problem.filename = problem.filename or str(path)  # a write error does not say which file it was
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_torch(path, content):
    """torch.save, whole or not at all."""
    with whole_file(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as problem:  # torch hides a full disk behind an error of its own
            if isinstance(problem.__context__, OSError):
                raise problem.__context__ from None
            raise


def output_folder(path):
    """Create the output folder and make sure, before hours of work, that it can be written to."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / ".writable"):
        pass
    (folder / ".writable").unlink(missing_ok=True)
    return folder


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
