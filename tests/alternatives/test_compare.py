"""The table of all methods: what each of them cost, best of n, what is trained for it. (tests/test_run.py runs it.)"""

import json
from types import SimpleNamespace

import pytest
import torch

from alternatives import compare, llama2
from core import report
from core.checkpoint import read_checkpoint, save_checkpoint
from core.config import BadInput
from core.output import write_torch
from core.training_state import fingerprints
from data.folder import read_comparisons
from model import GPT

LETTERS = SimpleNamespace(encode_ordinary=list)


@pytest.fixture
def finished(run, tokenizer_spec, tiny):
    """A run folder as run.py leaves it: rankings, logs and seconds of all stages."""
    line = '{"prompt": "?", "split": "%s", "completions": ["ab", "c"], "ranks": [1, 2]}\n'
    rankings = run / "comparisons.jsonl"
    rankings.write_text(line % "train" + line % "valid" + line % "train")
    inputs = fingerprints(run / "ppo_init.pt", rankings)
    write_torch(run / "reward.pt", read_checkpoint(run / "reward.pt") | {"inputs": inputs})
    for name, batch_size in (("ppo", 10), ("ppo_ptx", 100)):
        (run / f"{name}.jsonl").write_text('{"length": 10.0}\n{"length": 5.5}\n')
        save_checkpoint(run / f"{name}.pt", GPT(tiny), tokenizer_spec, {"batch_size": batch_size}, 2)
    (run / "round1").mkdir()
    (run / "round1" / "ppo.jsonl").write_text('{"length": 3.0}\n')
    save_checkpoint(run / "round1" / "ppo.pt", GPT(tiny), tokenizer_spec, {"batch_size": 4}, 2)
    stages = {"collect_1": 1, "reward_init": 1.5, "reward_1": 0.25, "ppo_1": 0.5, "collect": 0.25}
    stages |= {"reward": 7, "ppo": 2, "ppo_ptx": 4}
    (run / "stages.json").write_text(json.dumps({name: {"seconds": seconds} for name, seconds in stages.items()}))
    return run


def test_costs_of_run_come_from_its_logs(finished):
    costs = compare.costs_of_run(finished, LETTERS)
    ranked = 6 + 12  # of the training split; and 3 tokens for each of 4 episodes of the first round
    assert costs["rankings"] == {"labels": 2, "tokens": ranked, "seconds": 3.5}, "both rounds"
    assert costs["reward"] == costs["best_of_n"] == {"labels": 2, "tokens": ranked, "seconds": 10.5}
    assert costs["ppo"] == {"labels": 2, "tokens": ranked + 155, "seconds": 12.5}, "15.5 tokens, 10 episodes"
    assert costs["ppo_ptx"] == {"labels": 2, "tokens": ranked + 1550, "seconds": 14.5}
    assert costs["sft"] == costs["ppo_init"] == {"labels": 0, "tokens": 0, "seconds": 0}


def test_costs_are_of_the_rankings_that_reward_pt_was_trained_on(finished):
    with open(finished / "comparisons.jsonl", "a") as file:
        file.write('{"prompt": "?", "split": "train", "completions": ["ab", "c"], "ranks": [1, 2]}\n')
    with pytest.raises(BadInput, match="comparisons.jsonl: has changed"):
        compare.costs_of_run(finished, LETTERS)


BUILT = {"dpo": 3.5, "rest": 10.5, "rejection_ppo": 10.5, "llama2": 3.5, "rlaif": 31.5, "helpful": 0, "cai_sl": 30}
BUILT |= {"cai": 33.5, "hir": 3.5}


@pytest.mark.parametrize("name, more", BUILT.items())
def test_seconds_of_what_a_method_builds_on_are_added(finished, name, more):
    costs, own = compare.costs_of_run(finished, LETTERS), {"labels": 5, "tokens": 7, "seconds": 100.0}
    got = compare.cost_of(name, {"cost": own}, costs, {"pages": 10, "reader": 20, "dpo": 1000})
    assert got == {"labels": 5, "tokens": 7, "seconds": 100 + more} and own["seconds"] == 100
    assert compare.cost_of("ppo", {}, costs, {}) == costs["ppo"]


def test_best_answers_are_the_highest(monkeypatch):
    """Two of two prompts; one answer is longer than the context."""
    scores = {"a": 0.1, "b": float("nan"), "c": -2.0, "d": -1.0}
    asked = []

    def answer(policy, prompts, purpose):
        asked.extend(prompts)
        return [(text, True) for text in "abcd"]

    monkeypatch.setattr("core.text.score_answers", lambda m, t, prompts, answers: [scores[text] for text, _ in answers])
    got = compare.best_answers(SimpleNamespace(best_of=2), None, None, None, ["x", "y"], answer)
    assert got == [("a", True), ("d", True)] and asked == ["x", "x", "y", "y"]


def test_a_kl_that_is_a_bound_is_printed_as_one():
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    row = dict.fromkeys(("helpful", "truthful", "harmless", "red_team", "corpus_loss"), 1.0)
    row |= {"title": "x", "training": rate, "held_out": rate, "against_ppo_ptx": rate, "kl": 1.834, "cost": {}}
    cells = [report.comparison_cells([row | more]) for more in ({}, {"kl_is_upper_bound": True}, {"kl": None})]
    kl = report.COMPARISON_HEAD.index("KL")
    assert [line[kl] for line in cells] == ["1.83", "≤ 1.83", "-"]


def test_what_is_there_is_not_trained_again(tmp_path, monkeypatch):
    calls = []
    for method in compare.METHODS.values():
        monkeypatch.setattr(method.script, "main", lambda cfg: calls.append(cfg))
    for script in (compare.feedback, compare.sft):
        monkeypatch.setattr(script, "main", lambda cfg: calls.append(cfg))
    cfg, everything = compare.Config(quick=True), list(compare.METHODS)
    seconds = compare.train_missing(cfg, tmp_path, 7, everything)
    trained = ["pages", "reader", "margins", "dpo", "rest", "rejection_ppo", "llama2", "llama2_linear", "rlaif"]
    assert list(seconds) == [*trained, "rlaif_direct", "helpful", "hir"], "one run of constitutional.py writes three"
    assert all(call.seed == 7 for call in calls) and len(calls) == len(seconds)
    margins, usual, linear = [call for call in calls if isinstance(call, llama2.Config)]
    assert margins.compare_margins and not usual.compare_margins and usual.safety_pairs == 32, "small, with --quick"
    assert (usual.linear, linear.linear, linear.name) == (0.0, 0.5, "llama2_linear")
    for name in (*everything, "reader", "reward_small", "reward_large"):
        (tmp_path / f"{name}.pt").write_text("")
    again = len(calls)
    assert compare.train_missing(cfg, tmp_path, 7, everything) == seconds and len(calls) == again
    (tmp_path / "cai.pt").unlink()
    compare.train_missing(cfg, tmp_path, 7, ["dpo", "cai"])
    assert len(calls) == again + 1 and isinstance(calls[-1], compare.constitutional.Config)


def test_the_table_of_margins(data, run, monkeypatch):
    """The same as llama2.py prints; none where the reward models with margins are not there."""
    assert compare.margins_table(compare.Config(threads=1), run, "cpu") == ""
    records = [r | {"ratings": [3, 6, 2]} for r in read_comparisons(data / "comparisons.jsonl")]
    (run / "data").symlink_to(data)
    rated = run / "rated.jsonl"
    rated.write_text("".join(json.dumps(record) + "\n" for record in records))
    checkpoint = read_checkpoint(run / "reward.pt")
    write_torch(run / "reward.pt", checkpoint | {"inputs": fingerprints(rated)})
    for i, margin in enumerate(("small", "large")):
        state = {name: weight + 0.1 * i * torch.ones_like(weight) for name, weight in checkpoint["model"].items()}
        write_torch(run / f"reward_{margin}.pt", checkpoint | {"model": state})
    lines = compare.margins_table(compare.Config(threads=1), run, "cpu").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["none", "small", "large"]
    assert lines[2].split("|")[2:] == lines[3].split("|")[2:], "the same weights"


@pytest.mark.parametrize("wrong", [{"methods": "dpo,nothing"}, {"prompts": 0}, {"best_of": 0}, {"runs": ","}])
def test_it_refuses(tmp_path, wrong):
    with pytest.raises(BadInput, match=f"--{next(iter(wrong))}"):
        compare.main(compare.Config(**{"runs": str(tmp_path), "threads": 1} | wrong))


def test_it_says_what_is_missing(tmp_path):
    with pytest.raises(BadInput, match="village.json: not found; make it first with: python run.py --out"):
        compare.main(compare.Config(runs=str(tmp_path), threads=1))
