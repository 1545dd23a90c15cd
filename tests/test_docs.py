"""README and docs/ say what is there: every file, function, command, flag, link and metric that they name exists."""

import ast
import importlib
import re
import shlex
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from runs import records_of

import ppo
import pretrain
import reward
import sft
from core import watch
from core.config import command_line

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORD = r"[A-Za-z_]\w*"


# ---------------------------------------------------------------------------------------------------- reading markdown


def fenced_blocks(text):
    """The contents of ``` blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)


def prose(text):
    """The text without ``` blocks."""
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)


def code_spans(text):
    """What stands between backticks in the prose, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text):
    """Command lines in blocks and in backticks, without comments: lists of words that begin with python or torchrun."""
    lines = [line for block in fenced_blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *code_spans(text)]:
        if re.match(r"(python|torchrun) \S", line):
            found.append(shlex.split(line, comments=True))
    return found


def references(text):
    """`path.py: name, Class.method` in the prose. -> [(path, name)]"""
    found = []
    for span in code_spans(text):
        match = re.fullmatch(rf"([\w/]+\.py): ({WORD}(?:\.{WORD})?(?:, {WORD}(?:\.{WORD})?)*)", span)
        if match:
            found += [(match[1], name) for name in match[2].split(", ")]
    return found


def anchors(text):
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---------------------------------------------------------------------------------------------------- what is wrong


@cache
def names_in(path):
    """Functions, classes, Class.method and constants at the top of a Python file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def missing_names(text):
    missing = []
    for path, name in references(text):
        if not (ROOT / path).is_file() or name not in names_in(ROOT / path):
            missing.append(f"{path}: {name}")
    return missing


def missing_files(text):
    """Python files that are named with their folder, or as a script, and are not there."""
    named = {match for span in code_spans(text) for match in re.findall(r"^[\w/]+\.py\b", span)}
    return sorted(path for path in named if not (ROOT / path).is_file())


def broken_links(page, text):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def module_of(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def problem_with(words, monkeypatch):
    """Give a script's own command line these words, with a main that does nothing. -> what is wrong, "" if nothing"""
    if words[:3] == ["python", "-m", "pytest"]:
        return " ".join(word for word in words[3:] if not (ROOT / word).exists())
    script = next((word for word in words if word.endswith(".py")), None)
    if script is None or not (ROOT / script).is_file():
        return f"no such script: {script}"
    monkeypatch.setattr(sys, "argv", words[words.index(script) :])
    try:
        command_line(module_of(script).Config, lambda cfg: None, "")
    except SystemExit as stop:
        return "" if stop.code in (0, None) else "refused"
    return ""


FOLDERS = [
    ROOT,
    *(ROOT / name for name in ("core", "data", "data/village", "ablations", "alternatives", "baselines", "tools")),
]
SOURCES = sorted(path for folder in FOLDERS for path in folder.glob("*.py") if path.name != "__init__.py")
SCRIPTS = [
    path for path in SOURCES if "\n    command_line(Config, main, __doc__)\n" in path.read_text(encoding="utf-8")
]
SCRIPTS = [path.relative_to(ROOT).as_posix() for path in SCRIPTS if path.parent.name != "core"]


def flags():
    """Every flag of every script."""
    found = {"--help", "--nproc_per_node"}
    for script in SCRIPTS:
        for field in fields(module_of(script).Config):
            found.add(f"--{field.name}")
            if field.type is bool:
                found.add(f"--no-{field.name}")
    return found


# ---------------------------------------------------------------------------------------------------- the checks

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_fits_a_few_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


@each_page
def test_functions_exist(page):
    assert missing_names(page.read_text(encoding="utf-8")) == []


@each_page
def test_files_exist(page):
    assert missing_files(page.read_text(encoding="utf-8")) == []


@each_page
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@each_page
def test_commands_are_accepted(page, monkeypatch, capsys):
    wrong = {}
    for words in commands(page.read_text(encoding="utf-8")):
        problem = problem_with(words, monkeypatch)
        if problem:
            wrong[" ".join(words)] = problem + capsys.readouterr().err
    assert wrong == {}


@each_page
def test_flags_exist(page):
    named = {flag for span in code_spans(page.read_text("utf-8")) for flag in re.findall(r"(?<![\w-])--[\w-]+", span)}
    assert named - flags() == set()


def test_the_checks_find_what_is_wrong(monkeypatch, capsys):
    text = "`ppo.py: gae, gea` and `pp.py: gae`, see [here](nowhere.md), [there](#no-such-heading).\n## A `heading`!\n"
    assert missing_names(text) == ["ppo.py: gea", "pp.py: gae"]
    assert missing_files(text) == ["pp.py"]
    assert broken_links(PAGES[0], text) == ["nowhere.md", "#no-such-heading"]
    assert anchors(text) == {"a-heading"}
    text = (
        "```\npython ppo.py --kl_coef 0.1 \\\n  --no-whiten  # none\n```\n"
        "`torchrun --nproc_per_node=2 sft.py --epochs x`"
    )
    right, wrong = commands(text)
    assert right == ["python", "ppo.py", "--kl_coef", "0.1", "--no-whiten"]
    assert problem_with(right, monkeypatch) == ""
    assert problem_with(wrong, monkeypatch) == "refused"
    assert problem_with(["python", "ppo.py", "--kl_coeff", "1"], monkeypatch) == "refused"
    assert problem_with(["python", "p.py"], monkeypatch) == "no such script: p.py"
    assert "whole number" in capsys.readouterr().err


def test_the_pages_name_enough_to_be_checked():
    """The patterns above find nothing in a page that is written another way."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(references(PAGES[0].read_text(encoding="utf-8"))) >= 40
    assert len(commands(text)) >= 40
    named = {word for words in commands(text) for word in words if word.endswith(".py")}
    assert {script for script in SCRIPTS if f"`{script}`" not in text and script not in named} == set()


def test_the_file_tree_is_the_projects():
    blocks = fenced_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    (tree,) = [block for block in blocks if block.startswith("model.py")]
    named = set(re.findall(r"\w+\.py\b", tree)) - {"__init__.py", "test_docs.py"}
    assert named == {path.name for path in SOURCES}
    for folder in re.findall(r"^\s*([\w/]+)/ ", tree, flags=re.M):
        assert any((base / folder).is_dir() for base in (ROOT, ROOT / "data"))


# ---------------------------------------------------------------------------------------------------- metrics


def metrics_section(heading):
    """The words between backticks of one section of docs/reading_the_log.md."""
    text = (ROOT / "docs" / "reading_the_log.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)[1]
    return set(code_spans(section))


def keys_of(path):
    return {key for record in records_of(path) for key in record}


def test_every_metric_is_explained(data, run):
    """What the scripts really write, after a few steps of untrained models."""
    shared = {"data": str(data), "out": str(run), "device": "cpu", "threads": 1}
    sft.main(sft.Config(**shared, name="tuned", epochs=1, max_new_tokens=4))
    assert keys_of(run / "tuned.jsonl") - metrics_section("sft.py") == set()
    reward.main(reward.Config(**shared, name="rm"))
    assert keys_of(run / "rm.jsonl") - metrics_section("reward.py") == set()
    small = {"iterations": 2, "value_only_iterations": 1, "batch_size": 4, "minibatch_size": 2, "sample_prompts": 2}
    ppo.main(ppo.Config(**shared, **small, name="rl", ptx_coef=1.0, ptx_window=4, max_new_tokens=4))
    assert keys_of(run / "rl.jsonl") - metrics_section("ppo.py") == set()
    assert set(watch.PPO_COLUMNS.split()) - keys_of(run / "rl.jsonl") == set()  # no column stays empty
    assert keys_of(run / "rl.samples.jsonl") - metrics_section("ppo.py") == set()
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16}
    pretrain.main(pretrain.Config(**shared, **shape, name="new", steps=2, batch_size=2, window=8))
    assert keys_of(run / "new.jsonl") - metrics_section("pretrain.py") == set()


def test_every_metric_of_the_alternatives_is_explained():
    """The columns of their tables, as they stand in the calls of run.log."""
    above = set.union(*(metrics_section(f"{name}.py") for name in ("ppo", "pretrain", "sft", "reward")))
    explained = above | metrics_section("The alternatives")
    for path in sorted((ROOT / "alternatives").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_log = isinstance(node, ast.Call) and ast.unparse(node.func) == "run.log"
            for constant in ast.walk(node.args[1]) if is_log else ():
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    assert set(constant.value.split()) - explained == set(), path.name
