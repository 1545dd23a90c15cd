"""The command line, errors in one line, files that are whole or absent, and no setting that nobody reads."""

import ast
import errno
import functools
import importlib
import inspect
import json
import os
import re
import resource
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import machine
import plumbing
from machine import set_up
from model import GPT, GPTConfig, save_checkpoint
from plumbing import BadInput, MetricsLog, command_line, output_folder, require, whole_file

ROOT = Path(plumbing.__file__).parent
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py"), *(ROOT / "alternatives").glob("*.py")]
SOURCES = [p for p in SOURCES if p.name != "__init__.py"]
SCRIPTS = sorted(p for p in SOURCES if "\nclass Config" in p.read_text(encoding="utf-8"))


@dataclass
class Config:
    size: int = 3  # how many
    rate: float = 1e-3  # how fast, 50% or so
    name: str = ""  # what it is called
    whiten: bool = True  # white or not


def call(monkeypatch, *flags, main=None):
    """Run command_line with these flags. Returns the Config that main got."""
    got = []
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    command_line(Config, main or got.append, "What it does.")
    return got[0] if got else None


# ---------------------------------------------------------------------------------------------------- the command line


def test_flags_come_from_the_config(monkeypatch):
    assert call(monkeypatch) == Config()
    got = call(monkeypatch, "--size", "5", "--rate", "2e-4", "--name=x", "--no-whiten")
    assert got == Config(5, 2e-4, "x", False) and type(got.size) is int and type(got.rate) is float
    assert call(monkeypatch, "--whiten").whiten is True


@pytest.mark.parametrize("flags", [["--sise", "5"], ["--siz", "5"], ["--size", "many"], ["--size"], ["stray"]])
def test_wrong_flags_are_one_line_and_exit_code_2(monkeypatch, capsys, flags):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *flags)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and "script.py: " in printed.err and "--help" in printed.err


def test_help_shows_comments_and_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in ("What it does.", "how many (default: 3)", "how fast, 50% or so (default: 0.001)", "--no-whiten"):
        assert part in text


def failing(problem):
    def main(cfg):
        raise problem

    return main


PROBLEMS = [
    (BadInput("prompts.jsonl:3: mend it"), 2, "prompts.jsonl:3: mend it"),
    (
        OSError(errno.ENOSPC, "No space left on device", "out/x.pt"),
        2,
        "out/x.pt: No space left on device; free some space",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "out"), 2, "out: Permission denied; check its permissions"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize("problem, code, text", PROBLEMS)
def test_problems_are_one_line(monkeypatch, capsys, problem, code, text):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, main=failing(problem))
    error = capsys.readouterr().err
    assert stop.value.code == code and error.count("\n") == 1 and error.startswith("script.py: ") and text in error


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, main=failing(ZeroDivisionError()))


def test_require():
    require(True, "fine")
    with pytest.raises(BadInput, match="^not fine$"):
        require([], "not fine")


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("mode, old, new", [("w", "old", "né"), ("wb", b"old", b"\x00new")])
def test_whole_file(tmp_path, mode, old, new):
    path = tmp_path / "deep" / "x"
    with whole_file(path, mode) as file:
        file.write(old)
    with pytest.raises(RuntimeError), whole_file(path, mode) as file:
        file.write(new)
        file.flush()
        raise RuntimeError("half-way")
    read = (lambda: path.read_bytes()) if "b" in mode else (lambda: path.read_text(encoding="utf-8"))
    assert read() == old and os.listdir(path.parent) == ["x"]
    with whole_file(path, mode) as file:
        file.write(new)
        file.flush()
        assert read() == old, "the old file stays until the new one is whole"
    assert read() == new and os.listdir(path.parent) == ["x"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, tokenizer):
    path, shape = tmp_path / "x.pt", GPTConfig(1, 1, 8, 16, 300)
    save_checkpoint(path, GPT(shape), tokenizer, shape, 1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # files cannot grow beyond this
        with pytest.raises(OSError) as problem:
            save_checkpoint(path, GPT(shape), tokenizer, shape, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert problem.value.filename == str(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pt"]


def test_output_folder(tmp_path):
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "a" / "file").write_text("")
    for path in (tmp_path / "a" / "file", tmp_path / "a" / "file" / "below"):
        with pytest.raises(OSError) as problem:
            output_folder(path)
        assert "file" in str(problem.value.filename)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc, where nobody can make a folder")
def test_output_folder_that_cannot_be_made(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, main=lambda cfg: output_folder("/proc/self/no/such"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "/proc/self/no" in error


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_is_read_only(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    for path in (folder, folder / "below"):
        with pytest.raises(OSError):
            output_folder(path)


def test_metrics_log(tmp_path):
    (tmp_path / "log.jsonl").write_text("of an earlier run\n")
    log = MetricsLog(tmp_path / "log.jsonl")
    log.write(step=1, loss=0.12345678, note="é", table=[1.23456789])
    log.write(step=2)
    records = [json.loads(line) for line in open(tmp_path / "log.jsonl", encoding="utf-8")]
    assert records == [{"step": 1, "loss": 0.123457, "note": "é", "table": [1.23456789]}, {"step": 2}]
    log.start -= 60  # a minute for a third of the way
    assert log.left(1, 3) in ("2:00", "2:01") and log.left(3, 3) == "0:00"


# ---------------------------------------------------------------------------------------------------- set-up, optimizer


@dataclass
class Machine:
    seed: int = 5
    threads: int = 1
    device: str = "cpu"
    dtype: str = "auto"


def test_set_up_seeds_and_refuses():
    set_up(Machine())
    a = torch.rand(3)
    assert set_up(Machine()) == torch.device("cpu") and torch.equal(a, torch.rand(3))
    set_up(Machine(seed=6))
    assert not torch.equal(a, torch.rand(3))
    assert torch.get_num_threads() == 1
    for wrong, match in (
        (Machine(device="gpu"), "--device gpu"),
        (Machine(threads=-1), "--threads -1"),
        (Machine(dtype="int8"), "--dtype int8"),
    ):
        with pytest.raises(BadInput, match=match):
            set_up(wrong)
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="--device cuda"):
            set_up(Machine(device="cuda"))


def test_only_matrices_decay():
    optimizer = plumbing.adamw(GPT(GPTConfig(1, 1, 8, 16, 300)), 1e-3, 0.1)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert all((p.dim() >= 2) == (group["weight_decay"] == 0.1) for p in group["params"])


def test_optimizer_step_clips_steps_and_clears():
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    (3 * model.weight[0, 0] + 4 * model.weight[0, 1]).backward()
    assert plumbing.optimizer_step(optimizer, model, 0.5, max_grad_norm=1.0) == pytest.approx(5)  # before clipping
    torch.testing.assert_close(before - model.weight, 0.5 * torch.tensor([[0.6, 0.8]]))
    assert model.weight.grad is None


# ---------------------------------------------------------------------------------------------------- every script

PASSED_ON = {
    f"data/{name}.py": ["data/files.py"] for name in ("oasst", "hh", "summarize")
}  # a script that hands its Config to functions of another file


@functools.cache
def settings_read(path):
    """Names X that a file reads as `cfg.X`, or as getattr(cfg, …) from a list in which "X" stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", getattr(node.value, "id", "")) == "cfg":
            found.add(node.attr)  # of cfg, run.cfg, self.cfg
        if isinstance(node, ast.FunctionDef) and re.search(r"getattr\((run\.)?cfg", ast.unparse(node)):
            found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return found


def test_there_are_scripts():
    names = {str(p.relative_to(ROOT)) for p in SCRIPTS}
    assert {"pretrain.py", "sft.py", "reward.py", "ppo.py", "data/village.py"} <= names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_setting_is_read_and_explained(path):
    name = str(path.relative_to(ROOT))
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    read = settings_read(path)
    if "set_up(cfg)" in path.read_text(encoding="utf-8"):
        read |= settings_read(ROOT / "machine.py")
    if "Run(cfg" in path.read_text(encoding="utf-8"):
        read |= settings_read(ROOT / "alternatives" / "common.py") | settings_read(ROOT / "machine.py")
    for other in PASSED_ON.get(name, []):
        read |= settings_read(ROOT / other)
    names = {f.name for f in fields(module.Config)}
    assert names - read == set(), "settings that nobody reads"
    sources = "\n".join(inspect.getsource(c) for c in module.Config.__mro__[:-1])
    for f in fields(module.Config):
        line = next(x for x in sources.splitlines() if x.strip().startswith(f"{f.name}:"))
        assert f.type in (int, float, str, bool) and type(f.default) is f.type and "  # " in line, line


def test_set_up_reads_what_it_is_credited_with():
    assert {f.name for f in fields(machine.Training)} | {"seed"} <= settings_read(ROOT / "machine.py") | {"save_every"}
    for script in ("pretrain.py", "sft.py", "reward.py", "ppo.py"):
        assert "save_every" in settings_read(ROOT / script)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_checkpoints_are_loaded_as_weights_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True"


def test_there_is_a_load_to_check():
    assert any("torch.load(" in p.read_text(encoding="utf-8") for p in SOURCES)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_flag_has_help(path, monkeypatch, capsys):
    name = str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit):
        command_line(module.Config, module.main, module.__doc__)
    text = " ".join(capsys.readouterr().out.split())
    assert " ".join(module.__doc__.split()) in text
    for f in fields(module.Config):
        assert f"--{f.name}" in text
    assert " (default:" in text and "  (default" not in text
