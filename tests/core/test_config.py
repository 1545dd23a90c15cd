"""The command line: flags, ranges, errors in one line; every setting is read and explained; who imports whom."""

import ast
import errno
import functools
import importlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import core.config
from core.config import (
    RANGES,
    BadInput,
    Fraction,
    PositiveFloat,
    PositiveInt,
    Real,
    Seed,
    Training,
    check,
    command_line,
    comments_of,
    one_line,
    require,
)

ROOT = Path(core.config.__file__).parent.parent
FOLDERS = ("core", "data", "alternatives", "tools")
SOURCES = sorted(
    p for p in [*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))] if p.stat().st_size
)
SCRIPTS = [p for p in SOURCES if "\nclass Config" in p.read_text(encoding="utf-8")]


@dataclass
class Base:
    shared: int = 1  # what others have, too


@dataclass
class Config(Base):
    size: PositiveInt = 3  # how many
    count: int = 0  # none or some
    rate: PositiveFloat = 1e-3  # how fast, 50% or so
    decay: float = 0.0  # how slow
    share: Fraction = 0.5  # of all
    score: Real = -3.0  # any
    seed: Seed = 0  # of chance
    name: str = ""  # what it is called
    kind: Literal["", "red", "blue"] = "red"  # which colour
    whiten: bool = True  # white or not


def call(monkeypatch, *flags, main=None):
    """Run command_line with these flags. Returns the Config that main got."""
    got = []
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    command_line(Config, main or got.append, "What it does.")
    return got[0] if got else None


def refused(monkeypatch, capsys, *flags, main=None):
    """The one line that the script ends with, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *flags, main=main)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("script.py: ")
    return printed.err


# ---------------------------------------------------------------------------------------------------- the command line


def test_flags_come_from_the_config(monkeypatch):
    assert call(monkeypatch) == Config()
    flags = [
        "--size",
        "5",
        "--rate",
        "2e-4",
        "--name=x",
        "--no-whiten",
        "--kind",
        "blue",
        "--score",
        "-7.5",
        "--shared=0",
    ]
    got = call(monkeypatch, *flags)
    assert got == Config(shared=0, size=5, rate=2e-4, name="x", kind="blue", score=-7.5, whiten=False)
    assert type(got.size) is int and type(got.rate) is type(got.score) is float
    assert call(monkeypatch, "--whiten").whiten is True


WRONG_FLAGS = [
    ["--sise", "5"],
    ["--siz", "5"],
    ["--size", "many"],
    ["--size", "2.5"],
    ["--size"],
    ["stray"],
    ["--rate", "x"],
]


@pytest.mark.parametrize("flags", WRONG_FLAGS)
def test_wrong_flags_are_one_line_and_exit_code_2(monkeypatch, capsys, flags):
    assert "--help" in refused(monkeypatch, capsys, *flags)


ALLOWED = {  # field -> the ends of its range, and what lies just beyond them
    "size": (["1", str(2**63 - 1)], ["0", "-1", str(2**63), str(10**40)]),
    "count": (["0", "7"], ["-1", str(2**63)]),
    "rate": (["1e-300", "3"], ["0", "-1e-9", "nan", "inf"]),
    "decay": (["0", "3"], ["-1e-9", "nan", "inf", "-inf"]),
    "share": (["0", "1", "0.3"], ["-1e-9", "1.0001", "nan", "inf"]),
    "score": (["-3", "0", "1e30"], ["nan", "inf", "-inf"]),
    "seed": (["0", str(2**63 - 1)], ["-1", str(2**63), str(2**64 + 1)]),
    "kind": (["", "red", "blue"], ["green", "Red"]),
    "shared": (["0"], ["-1"]),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_ranges(monkeypatch, capsys, name):
    inside, outside = ALLOWED[name]
    for value in inside:
        got = getattr(call(monkeypatch, f"--{name}={value}"), name)
        assert str(got) == value or float(got) == float(value)
    for value in outside:
        line = refused(monkeypatch, capsys, f"--{name}={value}")
        assert line.startswith(f"script.py: --{name} ") and ("must be" in line or "choose from" in line)


def test_every_range_is_tested_and_says_no_to_nan():
    assert {f.type for f in fields(Config) if f.name in ALLOWED and f.type in RANGES} == set(RANGES)
    for kind, (allowed, _) in RANGES.items():
        assert issubclass(kind, int) or not allowed(float("nan"))


def test_a_config_made_in_python_is_checked_too():
    check(Config())
    with pytest.raises(BadInput, match="^--size 0: must be a whole number from 1 on$"):
        check(Config(size=0))
    with pytest.raises(BadInput, match="--kind green: choose from nothing, red, blue"):
        check(Config(kind="green"))


def help_of(monkeypatch, capsys, argv, show):
    monkeypatch.setattr(sys, "argv", [*argv, "--help"])
    with pytest.raises(SystemExit) as stop:
        show()
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_comments_and_defaults_and_own_flags_first(monkeypatch, capsys):
    text = help_of(monkeypatch, capsys, ["script.py"], lambda: command_line(Config, None, "What it does.\n\n  100 %"))
    for part in (
        "What it does.",
        "  100 %",
        "how many (default: 3)",
        "how fast, 50% or so (default: 0.001)",
        "--no-whiten",
    ):
        assert part in text
    assert text.index("how many") < text.index("white or not") < text.index("what others have, too (default: 1)")


def failing(problem):
    def main(cfg):
        raise problem

    return main


PROBLEMS = [
    (BadInput("prompts.jsonl:3: mend it"), "prompts.jsonl:3: mend it"),
    (
        OSError(errno.ENOSPC, "No space left on device", "out/x.pt"),
        "out/x.pt: No space left on device; free some space",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied; check its permissions"),
    (OSError(errno.EROFS, "Read-only file system", "out"), "out: Read-only file system; choose another --out"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "a: No such file or directory; check the path"),
]


@pytest.mark.parametrize("problem, text", PROBLEMS)
def test_problems_are_one_line(monkeypatch, capsys, problem, text):
    assert refused(monkeypatch, capsys, main=failing(problem)) == f"script.py: {text}\n"


def test_an_error_without_a_file_name_is_a_line_too():
    assert one_line(OSError("strange")) == "output: strange; check the path"


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, main=failing(KeyboardInterrupt()))
    error = capsys.readouterr().err
    assert stop.value.code == 130 and error.count("\n") == 1 and "interrupted" in error


def test_of_several_processes_one_complains(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--size", "0")
    assert stop.value.code == 2 and capsys.readouterr().err == ""


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, main=failing(ZeroDivisionError()))


def test_require():
    require(True, "fine")
    with pytest.raises(BadInput, match="^not fine$"):
        require([], "not fine")


# ---------------------------------------------------------------------------------------------------- every script


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path, whole=True):
    """Files of the project that a file imports; whole=False: only when it is itself imported, not inside functions."""
    found, nodes = set(), ast.walk(tree_of(path)) if whole else tree_of(path).body
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return frozenset(found & set(SOURCES))


def strings_in(node):
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@functools.cache
def settings_read(path):
    """Names X that a file reads as `cfg.X`, or as getattr(cfg, …) in a function where "X" stands."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", getattr(node.value, "id", "")) == "cfg":
            found.add(node.attr)  # of cfg, run.cfg, self.cfg
        if isinstance(node, ast.FunctionDef):
            calls = [ast.unparse(n.args[0]) for n in ast.walk(node) if isinstance(n, ast.Call) and is_getattr(n)]
            if {"cfg", "run.cfg", "self.cfg"} & set(calls):
                found |= strings_in(node)
    return found


def is_getattr(node):
    return isinstance(node.func, ast.Name) and node.func.id == "getattr"


HANDED_ON = ("core", "data/files.py", "alternatives/common.py")  # whom a script may hand its cfg to


@functools.cache
def handed_on(path):
    """Files that a script hands its Config to: those of HANDED_ON that it imports, and what these import of them."""
    found, todo = set(), [path]
    while todo:
        for file in imports_of(todo.pop()) - found:
            if str(file.relative_to(ROOT)).startswith(HANDED_ON):
                found.add(file)
                todo.append(file)
    return found


def module_of(path):
    return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def name_of(path):
    return str(path.relative_to(ROOT).with_suffix(""))


def test_there_are_scripts():
    names = {name_of(p) for p in SCRIPTS}
    assert {"pretrain", "sft", "reward", "ppo", "evaluate", "run", "tools/benchmark", "data/collect"} <= names
    assert any(name.startswith("data/village") for name in names) and any(n.startswith("alternatives") for n in names)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_setting_is_read_and_has_a_range(path):
    Config = module_of(path).Config
    read = settings_read(path).union(*map(settings_read, handed_on(path)))
    assert {f.name for f in fields(Config)} - read == set(), "settings that nobody reads"
    for f in fields(Config):
        if get_origin(f.type) is Literal:
            assert f.default in get_args(f.type), f.name
        else:
            assert f.type in (*RANGES, str, bool), f.name
            plain = next(plain for plain in (bool, int, float, str) if issubclass(f.type, plain))
            assert type(f.default) is plain, f.name
    check(Config())


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_flag_has_help(path, monkeypatch, capsys):
    module = module_of(path)
    monkeypatch.setenv("COLUMNS", "10000")
    text = help_of(monkeypatch, capsys, [path.name], lambda: command_line(module.Config, module.main, module.__doc__))
    text, comments = " ".join(text.split()), comments_of(module.Config)
    assert " ".join(module.__doc__.split()) in text
    for f in fields(module.Config):
        assert comments.get(f.name), f"--{f.name} is not explained"
        words = " ".join(f"{comments[f.name]} (default: {f.default})".split())
        assert words in text[text.index(f" --{f.name}") :], f.name


def test_what_all_training_scripts_share_is_read():
    """The range types and the fields of Training are core's; each has a reader there."""
    read = set().union(*(settings_read(p) for p in (ROOT / "core").glob("*.py")))
    assert {f.name for f in fields(Training)} | {"seed"} <= read
    for script in ("pretrain.py", "sft.py", "reward.py", "ppo.py"):
        assert issubclass(module_of(ROOT / script).Config, Training)
        assert {ROOT / "core/training_state.py", ROOT / "core/device.py"} <= handed_on(ROOT / script)


# ---------------------------------------------------------------------------------------------------- every file


def layer_of(path):
    """A file may import files of lower layers, and of its own folder or layer as long as there is no circle."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] in ("core", "data"):
        return 1
    if relative.parts[0] == "alternatives":
        return 4 if relative.stem == "compare" else 3
    layers = {"model": 0, "pretrain": 2, "sft": 2, "reward": 2, "ppo": 2, "evaluate": 3}
    return layers.get(relative.stem, 5)  # run, tools


def test_the_network_needs_nothing_of_the_project():
    assert imports_of(ROOT / "model.py") == set()
    assert imports_of(ROOT / "core" / "config.py") == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_downwards(path):
    above = {name_of(p) for p in imports_of(path) if layer_of(p) > layer_of(path)}
    assert above == set()


def test_no_file_needs_itself():
    """Following the imports at the top of files never leads back to where one came from."""
    finished = set()

    def visit(path, way):
        assert path not in way, " -> ".join(name_of(p) for p in (*way, path))
        if path not in finished:
            for other in imports_of(path, whole=False):
                visit(other, (*way, path))
            finished.add(path)

    for path in SOURCES:
        visit(path, ())
    assert finished == set(SOURCES)


def test_imports_are_seen():
    """So that the tests above can fail."""
    assert {ROOT / "model.py", ROOT / "core/sampling.py", ROOT / "pretrain.py"} <= imports_of(ROOT / "ppo.py")
    assert ROOT / "core/config.py" in imports_of(ROOT / "core/output.py")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_loaded_as_weights_only(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True"


def test_there_is_a_load_to_check():
    assert sum("torch.load(" in p.read_text(encoding="utf-8") for p in SOURCES) >= 2
