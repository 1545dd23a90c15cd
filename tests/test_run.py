"""The whole paper in small: run.py, its interruption by kill -9, and the evaluation's arithmetic."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate
from alternatives import compare
from plumbing import BadInput
from run import Config, main

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("helpful", "truthful", "harmless", "length", "corpus_loss")


def run(out, *more, **kwargs):
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "run.py", "--quick", "--threads", "2", "--out", str(out), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, **kwargs)


def without_times(report):
    return {k: v for k, v in report.items() if k not in ("seconds", "config")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was killed in the middle of PPO-ptx, and then continued."""
    out = tmp_path_factory.mktemp("run") / "whole"
    command = [sys.executable, "run.py", "--quick", "--threads", "2", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    ptx = False
    for line in process.stdout:
        ptx = ptx or "ppo_ptx ·" in line
        if ptx and line.startswith("   1 "):  # its second iteration
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = run(out, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already there") == 7  # all but PPO-ptx and evaluate
    return out, done.stdout, json.loads((out / "report.json").read_text())


def test_run_writes_the_whole_report(finished):
    out, printed, report = finished
    assert set(report["models"]) == {"gpt", "gpt_prompted", "sft", "ppo_init", "ppo", "ppo_ptx"}
    for model in report["models"].values():
        assert all(math.isfinite(model[k]) for k in KEYS)
        for group in ("training", "held_out"):
            rate = model["win_rate"][group]
            assert 0 <= rate["mean"] <= 1 and rate["low"] <= rate["mean"] <= rate["high"] and rate["n"] > 0
    assert {"pretrain", "sft", "reward", "ppo", "ppo_ptx", "evaluate"} <= set(report["seconds"])
    assert report["over_optimisation"]["ppo"] and report["over_optimisation"]["best_of_n"][0]["sqrt_kl"] == 0
    assert (out / "report.md").read_text().startswith("# Report") and "minutes:" in printed


def test_a_second_run_skips_everything(finished, capsys):
    out, *_ = finished
    before = (out / "report.json").read_bytes()
    main(Config(quick=True, threads=2, out=str(out)))
    assert capsys.readouterr().out.count("already there") == 9 and (out / "report.json").read_bytes() == before


def test_a_changed_setting_redoes_what_depends_on_it_and_killed_and_continued_is_uninterrupted(finished, capsys):
    """Another γ, and back to the first: PPO-ptx in one go gives what it gave when it was killed on the way."""
    out, _, first = finished
    main(Config(quick=True, threads=2, out=str(out), ptx_coef=0.7))
    assert capsys.readouterr().out.count("already there") == 7
    second = json.loads((out / "report.json").read_text())
    assert (
        first["models"]["ppo"] == second["models"]["ppo"] and first["models"]["ppo_ptx"] != second["models"]["ppo_ptx"]
    )
    main(Config(quick=True, threads=2, out=str(out)))
    assert without_times(json.loads((out / "report.json").read_text())) == without_times(first)


def test_readme_commands_exist_and_their_flags_are_known():
    """Every `python x.py --flags` in the README names a script that is there and flags that it has."""
    commands = re.findall(r"python ((?:\w+/)?\w+\.py[^\n#`&]*)", (ROOT / "README.md").read_text())
    assert any(c.startswith("run.py") for c in commands) and len(commands) >= 8
    for command in commands:
        script, *flags = shlex.split(command.strip())
        text = (ROOT / script).read_text()
        if script.startswith("alternatives/"):
            text += (ROOT / "alternatives" / "common.py").read_text()
        for flag in (f for f in flags if f.startswith("--")):
            name = flag.split("=")[0].removeprefix("--").removeprefix("no-")
            assert name == "help" or re.search(rf"^    {name}: ", text, flags=re.M), f"{script} has no --{name}"


def test_preference_counts_both_orders_and_ties_half():
    class FirstWins:
        def rank(self, prompt, completions):
            return [1, 2]

    class Likes:
        def rank(self, prompt, completions):
            return [2 - ("good" in c) for c in completions]

    assert (
        evaluate.preference(FirstWins(), "x", "a", "b") == 0.5
    )  # a labeler who always takes the first place says nothing
    assert evaluate.preference(Likes(), "x", "good", "b") == 1.0
    assert evaluate.preference(Likes(), "x", "a", "good") == 0.0
    assert evaluate.preference(Likes(), "x", "a", "b") == 0.5


def test_interval_is_over_prompts():
    r = evaluate.mean_and_interval([0.0, 1.0, 0.5, 0.5])
    deviation = math.sqrt(sum((x - 0.5) ** 2 for x in (0, 1, 0.5, 0.5)) / 3)
    assert r["mean"] == 0.5 and r["n"] == 4 and r["high"] - 0.5 == pytest.approx(1.96 * deviation / 2)


def test_run_refuses_a_missing_data_folder(tmp_path):
    with pytest.raises(BadInput, match="no such data folder"):
        main(Config(out=str(tmp_path / "x"), data=str(tmp_path / "nothing")))


def test_the_alternatives_on_one_table(finished, capsys):
    """The run's models, then a method of each script that has no such test of its own, in small: a row for each."""
    out, wanted = finished[0], ["llama2", "rlaif", "rlaif_direct", "helpful", "cai_sl", "cai"]
    cfg = compare.Config(runs=str(out), methods=",".join(wanted), quick=True, prompts=8, labelers=1, best_of=2)
    compare.main(replace(cfg, max_new_tokens=16, threads=2))
    rows, printed = json.loads((out / "alternatives.json").read_text()), capsys.readouterr().out
    assert set(rows) == {*compare.FROM_RUN, *wanted}
    for row in rows.values():
        assert all(math.isfinite(row[k]) for k in ("helpful", "truthful", "harmless", "red_team", "corpus_loss", "kl"))
        assert all(0 <= row[k]["mean"] <= 1 for k in ("training", "held_out", "against_ppo_ptx"))
        assert f"| {row['title']} " in (out / "alternatives.md").read_text() and f"| {row['title']} " in printed
    assert all(rows[name]["cost"]["tokens"] > 0 for name in wanted if name != "helpful")
    assert "significantly better" in printed
    compare.train_missing(cfg, out, 0, wanted)
    assert "===" not in capsys.readouterr().out, "what is there is not trained again"
