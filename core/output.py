"""Files that are written whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch

from core.config import first_process


@contextmanager
def whole_file(path, mode="w"):
    """Open a temporary file that becomes `path` only when the block ends well, so that nothing is half-written.

    A symbolic link is written through: the file it points to is replaced, the link stays. Of several processes only the
    first writes.
    """
    if not first_process():
        with open(os.devnull, mode) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
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


def results_folder(cfg):
    """The folder --out, or quick/ in it with --quick, so that nothing real is written over."""
    return Path(cfg.out) / "quick" if cfg.quick else Path(cfg.out)
