"""The command line: one flag per field of a script's Config, ranges checked, every error one line and exit code 2.

Every script ends with `command_line(Config, main, __doc__)`. A test or a notebook calls `main(Config(...))` instead;
`check(cfg)` (which core.device.set_up calls) looks at the ranges in both cases.

The range of a field is its type:

    batch_size: PositiveInt = 32  # demonstrations per step
    dropout: Fraction = 0.2  # residual dropout

and a plain `int` or `float` is any number from 0 on. The comment behind a field is its text in --help.
"""

import argparse
import errno
import inspect
import math
import os
import re
import sys
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal, get_args, get_origin


class BadInput(Exception):
    """Something the user can mend: one line that names the file, the line and the fix. Exit code 2."""


def require(condition, message):
    """Raise BadInput(message) unless `condition` holds."""
    if not condition:
        raise BadInput(message)


def first_process():
    """Of several processes that torchrun started, one writes the files and prints."""
    return os.environ.get("RANK", "0") == "0"


# ---------------------------------------------------------------------------------------------------- ranges


class PositiveInt(int):
    """A whole number from 1 on."""


class PositiveFloat(float):
    """A number greater than 0."""


class Fraction(float):
    """A number from 0 to 1."""


class Real(float):
    """Any number, negative ones too."""


class Seed(int):
    """A whole number that PyTorch takes for a seed: from 0 to 2**63 - 1."""


RANGES = {  # type of a field -> (is this value allowed?, how a message says it)
    int: (lambda x: 0 <= x < 2**63, "must be a whole number from 0 on"),
    float: (lambda x: 0 <= x < math.inf, "must be a number from 0 on"),
    PositiveInt: (lambda x: 1 <= x < 2**63, "must be a whole number from 1 on"),
    PositiveFloat: (lambda x: 0 < x < math.inf, "must be a number greater than 0"),
    Fraction: (lambda x: 0 <= x <= 1, "must be a number from 0 to 1"),
    Real: (math.isfinite, "must be a finite number"),
    Seed: (lambda x: 0 <= x < 2**63, "must be a whole number from 0 to 2**63 - 1"),
}


def check(cfg):
    """Refuse the first field of a Config whose value is outside the range that its type stands for (BadInput)."""
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if field.type in RANGES:
            allowed, words = RANGES[field.type]
            require(allowed(value), f"--{field.name} {value}: {words}")
        elif get_origin(field.type) is Literal:
            choices = get_args(field.type)
            named = ", ".join(choice or "nothing" for choice in choices)
            require(value in choices, f"--{field.name} {value}: choose from {named}")


# --------------------------------------------------------------------------------------------- settings of every script


@dataclass
class Device:
    """Where a script runs, and how precisely."""

    device: str = "auto"  # auto, cpu, cuda
    threads: int = 0  # CPU threads; 0 = all cores, at most 8
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto = bfloat16 on CUDA


@dataclass
class Training(Device):
    """Settings of every script that trains: memory, saving, resuming. None of them changes what is learned."""

    micro_batch_size: int = 0  # examples, rankings or episodes per forward pass, to save memory; 0 = a whole minibatch
    recompute: bool = False  # keep no activations inside a block, compute them again in the backward pass
    compile: bool = False  # torch.compile every block; pays on a GPU with long runs
    save_every: int = 0  # save the training state every so many steps (ppo.py: iterations); 0 = never
    keep: PositiveInt = 1  # training states to keep, the newest ones
    resume: bool = False  # go on from the newest saved training state, if there is one


# ---------------------------------------------------------------------------------------------------- the command line


def command_line(Config, main, doc):
    """Build one flag per field of the dataclass `Config`, parse, run `main(Config)`, and report errors in one line."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
            raise SystemExit(2)

    parser = Parser(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    comments = comments_of(Config)
    own_first = sorted(fields(Config), key=lambda field: field.name not in Config.__annotations__)
    for field in own_first:
        help_text = f"{comments.get(field.name, '')} (default: {field.default})".replace("%", "%%")
        parser.add_argument(f"--{field.name}", default=field.default, help=help_text, **flag_of(field.type))
    try:
        cfg = Config(**vars(parser.parse_args()))
        check(cfg)
        main(cfg)
    except BadInput as problem:
        if first_process():
            print(f"{parser.prog}: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as problem:  # a full disk, a read-only folder, a file that vanished
        print(f"{parser.prog}: {one_line(problem)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; what was finished is kept, run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


def comments_of(Config):
    """{field: the comment behind it}, of a dataclass and of those it inherits from."""
    source = "".join(inspect.getsource(c) for c in reversed(Config.__mro__) if is_dataclass(c))  # its own come last
    return dict(re.findall(r"^\s+(\w+): [^=\n]+ = .*?#\s*(.+)$", source, flags=re.M))


def flag_of(kind):
    """What argparse has to know about a field of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"type": str, "metavar": ""}

    def parse(text):
        plain = next(plain for plain in (int, float, str) if issubclass(kind, plain))
        return plain(text)

    parse.__name__ = "whole number" if issubclass(kind, int) else "number" if issubclass(kind, float) else "text"
    return {"type": parse, "metavar": ""}


def one_line(problem):
    """An OSError as one line: the file, what happened, what to do."""
    hints = {
        errno.ENOSPC: "free some space",
        errno.EACCES: "check its permissions",
        errno.EROFS: "choose another --out",
    }
    fix = hints.get(problem.errno, "check the path")
    return f"{problem.filename or 'output'}: {problem.strerror or problem}; {fix}"
