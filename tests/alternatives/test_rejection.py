"""Rejection sampling: the pool, the best of N, the rankings of a round, and the script from end to end."""

import json
import math
import random
import sys
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

import ppo
from alternatives import common, rejection
from alternatives.common import Run
from core.checkpoint import load_checkpoint
from core.config import BadInput, check
from core.ranking_metrics import accuracy
from core.text import score_answers
from data.folder import read_comparisons, read_demonstrations, read_prompts
from reward import encode_rankings, score_differences


def config(data="", out="", **changes):
    small = dict(data=str(data), out=str(out), rounds=3, prompts=5, samples=4, ranked=3, valid_prompts=4, batch_size=8)
    small |= dict(ppo_iterations=0, max_new_tokens=6, device="cpu", threads=1)
    return rejection.Config(**small | changes)


def records_of(run, name="rejection"):
    return [json.loads(line) for line in open(run / f"{name}.jsonl")]


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def labelers(monkeypatch):
    """Three people who like short answers, in the place of the village's."""
    asked = []

    def rank(name, prompt, texts):
        asked.append((name, prompt, texts))
        return [1 + sum(len(other) < len(text) for other in texts) for text in texts]

    def load(folder, group):
        assert group == "training"
        names = [f"{group}-{i}" for i in range(3)]
        return [SimpleNamespace(name=n, rank=lambda *page, n=n: rank(n, *page)) for n in names]

    monkeypatch.setattr(rejection, "load_labelers", load)
    return asked


# ---------------------------------------------------------------------------------------------------- the mathematics


def test_best_of_by_brute_force():
    rng = random.Random(0)
    items = [(rng.choice("abcdef"), f"text {i}", rng.random() < 0.5) for i in range(50)]
    scores = [float(rng.randint(-9, 9)) for _ in items]  # with ties
    scores[7] = float("nan")  # too long for the context
    best = rejection.best_of(items, scores)
    assert sorted(p for p, *_ in best) == sorted({p for p, *_ in items}), "one answer per prompt"
    for item in best:
        own = [(s, -i) for i, s in enumerate(scores) if items[i][0] == item[0] and not math.isnan(s)]
        assert item == items[-max(own)[1]], "the highest, the first of equals"
    assert rejection.best_of([("a", "x", True)], [float("nan")]) == []


@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_max_of_n_by_brute_force(K):
    rng = random.Random(K)
    scores = [rng.choice([rng.gauss(0, 1), 0.5]) for _ in range(K)]
    for n in range(1, K + 1):
        tops = [max(draw) for draw in combinations(scores, n)]
        assert rejection.max_of_n(scores, n) == pytest.approx(sum(tops) / len(tops))


def test_curve():
    rng = random.Random(3)
    scores = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(6)]
    got = rejection.best_of_n_curve(sum(scores, []), 4)
    assert got[0] == pytest.approx(sum(map(sum, scores)) / 24) and got[3] == pytest.approx(sum(map(max, scores)) / 6)
    pairs = [max(pair) for some in scores for pair in combinations(some, 2)]
    assert got[1] == pytest.approx(sum(pairs) / 36) and got == sorted(got)
    nan = [0.0, float("nan"), 9.0, 9.0]
    assert rejection.best_of_n_curve(sum(scores, nan), 4) == pytest.approx(got), (
        "without prompts that have an answer too long"
    )


# ---------------------------------------------------------------------------------------------------- rankings


def test_what_labelers_are_shown(labelers):
    people = rejection.load_labelers("", "training")
    prompts = [f"prompt {i}" for i in range(30)]
    answers = [[("b", True), ("aaa", False), ("b", True), ("", True), (" ", True), ("cc", True)] for _ in prompts]
    answers[4] = [("only", True)] * 3 + [("", False)]
    records = rejection.collect_rankings(people, prompts, answers, random.Random(0))
    assert [r["prompt"] for r in records] == [p for i, p in enumerate(prompts) if i != 4] == [p for _, p, _ in labelers]
    assert {who for who, *_ in labelers} == {"training-0", "training-1", "training-2"}
    for record in records:
        assert sorted(record["completions"]) == ["aaa", "b", "cc"]
        by_text = dict(zip(record["completions"], zip(record["ranks"], record["ended"])))
        assert by_text == {"b": (1, True), "cc": (2, True), "aaa": (3, False)}
    assert len({tuple(r["completions"]) for r in records}) == 6, "in any order"


def test_training_further_follows_the_new_rankings(data, run):
    process = Run(config(data, run, reward_learning_rate=1e-2), "rejection")
    judge, policy = process.load_scalar_model("reward"), process.load_policy("ppo_init")
    records = read_comparisons(data / "comparisons.jsonl")
    backwards = [r | {"ranks": [1, 2, 1]} for r in records]  # everybody dislikes the colour now
    rankings = encode_rankings(backwards, process.tokenizer, policy.config.block_size)
    for number in range(4):
        rejection.train_further(judge, rankings, process, process.generator("a", number))
    assert accuracy(score_differences(judge, rankings))[0] > 0.9 and not judge.training
    shown = read_demonstrations(data, "train")
    scores = score_answers(
        judge, process.tokenizer, [r["prompt"] for r in shown], [(r["completion"], True) for r in shown]
    )
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)


# ---------------------------------------------------------------------------------------------------- from end to end


class Watch:
    """Remembers what was sampled by which weights, what was scored by which, and what was learned from which start."""

    def __init__(self, monkeypatch):
        self.sampled, self.tuned, self.scored, self.further = [], [], [], []
        answers, fine_tune = Run.answers, rejection.fine_tune
        score, further = rejection.score_answers, rejection.train_further

        def spy_answers(process, model, prompts, rng, temperature=1.0, **more):
            texts = answers(process, model, prompts, rng, temperature, **more)
            self.sampled.append((weights(model), prompts, temperature, texts))
            return texts

        def spy_fine_tune(model, rows, *more):
            before = weights(model)
            loss = fine_tune(model, rows, *more)
            self.tuned.append((before, weights(model), rows))
            return loss

        def spy_score(model, tokenizer, prompts, texts):
            scores = score(model, tokenizer, prompts, texts)
            self.scored.append((weights(model), [(p, *a) for p, a in zip(prompts, texts)], scores))
            return scores

        def spy_further(model, rankings, process, rng):
            further(model, rankings, process, rng)
            self.further.append((weights(model), rankings))

        monkeypatch.setattr(Run, "answers", spy_answers)
        for name, spy in (("fine_tune", spy_fine_tune), ("score_answers", spy_score), ("train_further", spy_further)):
            monkeypatch.setattr(rejection, name, spy)


@pytest.mark.parametrize("pool", [True, False])
def test_the_rounds(data, run, labelers, monkeypatch, capsys, pool):
    watch = Watch(monkeypatch)
    rejection.main(config(data, run, pool=pool, temperature=1.2))
    base, start, judge = (load_checkpoint(run / f"{n}.pt", k)[0].state_dict() for n, k in KINDS.items())
    prompts = [r["prompt"] for r in read_prompts(data, "train")]
    process = Run(config(data, run / "elsewhere"), "rejection")
    shown = process.rows([(r["prompt"], r["completion"], True) for r in read_demonstrations(data, "train")])
    best = {}
    for i in range(3):
        # the newest policy answers other prompts, four times each
        asked = [prompts[j % 18] for j in range(5 * i, 5 * i + 5)]
        model, copies, temperature, texts = watch.sampled[i]
        assert copies == [p for p in asked for _ in range(4)] and temperature == 1.2
        assert same(model, start if i == 0 else watch.tuned[i - 1][1])
        # the newest reward model scores them together with the pool
        model, items, scores = watch.scored[i]
        fresh = [(p, *a) for p, a in zip(copies, texts)]
        assert same(model, watch.further[i][0]) and not same(model, judge)
        assert items[:20] == fresh and sorted(items[20:]) == sorted(best.values() if pool else [])
        best = {} if not pool else best
        for p in asked:
            own = [k for k, item in enumerate(items) if item[0] == p]
            best[p] = items[max(own, key=lambda k: (scores[k], -k))]
        # the base model learns from the demonstrations and the picks
        before, _, rows = watch.tuned[i]
        assert same(before, base) and rows[: len(shown)] == shown
        assert sorted(rows[len(shown) :]) == sorted(process.rows(list(best.values())))
    assert len(best) == (15 if pool else 5)
    saved = load_checkpoint(run / "rejection.pt", "policy")[0].state_dict()
    newest = load_checkpoint(run / "rejection_reward.pt", "scalar")[0].state_dict()
    assert same(saved, watch.tuned[2][1]) and same(newest, watch.further[2][0])
    *rounds, _ = records_of(run)
    assert [r["picks"] for r in rounds] == ([5, 10, 15] if pool else [5, 5, 5])
    assert len([line for line in capsys.readouterr().out.splitlines() if line.split()[:1] in ROUNDS]) == 3, "a row each"


ROUNDS = [["1/3"], ["2/3"], ["3/3"]]
KINDS = {"base": "policy", "ppo_init": "policy", "reward": "scalar"}


def test_a_prompt_that_comes_again_keeps_the_better_answer(data, run, monkeypatch):
    """18 prompts in every round: the pool has 18 answers, the best of all rounds by the newest reward model."""
    watch = Watch(monkeypatch)
    rejection.main(config(data, run, prompts=18, ranked=0))
    rows = watch.tuned[-1][2][18:]
    process = Run(config(data, run / "elsewhere"), "rejection")
    everything = [(p, *a) for _, prompts, _, texts in watch.sampled for p, a in zip(prompts, texts)]
    judge = load_checkpoint(run / "rejection_reward.pt", "scalar")[0]
    scores = score_answers(judge, process.tokenizer, [p for p, *_ in everything], [a for _, *a in everything])
    assert len(everything) == 3 * 18 * 4 and len(rows) == 18
    for prompt in {p for p, *_ in everything}:
        top = max(s for (p, *_), s in zip(everything, scores) if p == prompt)
        tops = [process.rows([item])[0] for item, s in zip(everything, scores) if item[0] == prompt and s == top]
        assert any(row in rows for row in tops)


def test_rankings_of_the_rounds_and_what_they_cost(data, run, labelers, monkeypatch):
    watch = Watch(monkeypatch)
    rejection.main(config(data, run, ranked=5, rounds=4))
    old = sum(r["split"] == "train" for r in read_comparisons(data / "comparisons.jsonl"))
    *rounds, last = records_of(run)
    pages = [labelers[5 * i : 5 * i + 5] for i in range(4)]
    assert [r["labels"] for r in rounds] == [old + len(sum(pages[: i + 1], [])) for i in range(4)]
    assert last["cost"]["labels"] == old + len(labelers) and last["cost"]["tokens"] > 4 * 5 * 4
    for (_, prompts, _, texts), page in zip(watch.sampled, pages):
        for _, prompt, completions in page:
            assert set(completions) <= {text for p, (text, _) in zip(prompts, texts) if p == prompt}
    right = [r["rm_accuracy"] for r in rounds]
    assert [r["rm_accuracy_before"] for r in rounds[1:]] == right[:-1] and last["rm_accuracy"] == right[-1]
    # as many old rankings as new ones; those of the rounds before are old ones too
    process = Run(config(data, run / "elsewhere"), "rejection")
    known = read_comparisons(data / "comparisons.jsonl")
    known = encode_rankings([r for r in known if r["split"] == "train"], process.tokenizer, 64)
    given, again = known, 0
    for _, rankings in watch.further:
        new = rankings[: len(rankings) // 2]
        assert len(rankings) == 2 * len(new) > 0 and not any(r in known for r in new)
        assert all(r in known for r in rankings[len(new) :])
        known, again = known + new, again + sum(r not in given for r in rankings[len(new) :])
    assert again > 0


def test_without_labelers(data, run, monkeypatch):
    watch = Watch(monkeypatch)
    with pytest.raises(BadInput, match="village.json"):
        rejection.main(config(data, run))
    assert not watch.sampled, "nothing is begun"
    rejection.main(config(data, run, ranked=0))
    before, after = (load_checkpoint(run / f"{n}.pt", "scalar")[0].state_dict() for n in ("reward", "rejection_reward"))
    assert same(before, after) and watch.further == []
    *rounds, last = records_of(run)
    assert last["cost"]["labels"] == 18 and all(r["rm_accuracy_new"] is None for r in rounds)
    assert all(r["valid_reward"] == r["valid_reward_first"] for r in rounds)
    for record, (*_, scores) in zip(rounds, watch.scored):  # the figure's numbers, by brute force
        groups = [scores[i : i + 4] for i in range(0, 20, 4)]
        for n in range(1, 5):
            tops = [max(draw) for some in groups for draw in combinations(some, n)]
            assert record["best_of_n"][n - 1] == pytest.approx(sum(tops) / len(tops), abs=1e-5)
        assert record["best_of_2"] == pytest.approx(record["best_of_n"][1], abs=1e-5)


def test_ppo_on_top(data, run, labelers):
    rejection.main(config(data, run, rounds=1, ppo_iterations=1))
    made = load_checkpoint(run / "rejection_ppo.pt", "policy")[2]
    settings, cost = made["config"], made["cost"]
    assert settings["init"] == str(run / "rejection.pt")
    assert settings["reward_model"] == str(run / "rejection_reward.pt")
    assert settings["max_new_tokens"] == 6 and settings["device"] == "cpu" and settings["threads"] == 1
    assert settings["iterations"] == 1 and settings["value_only_iterations"] == 0
    lengths = [r["length"] for r in records_of(run, "rejection_ppo")]
    before = load_checkpoint(run / "rejection.pt", "policy")[2]["cost"]
    assert cost["labels"] == before["labels"] and cost["seconds"] > before["seconds"]
    assert cost["tokens"] == before["tokens"] + round(sum(lengths) * settings["batch_size"])


@pytest.mark.parametrize("iterations", [1, 2, 10, 28, 100])
def test_settings_of_ppo(run, data, monkeypatch, iterations):
    seen = []
    monkeypatch.setattr(ppo, "main", lambda cfg: seen.append(cfg) or check(cfg) or 1 / 0)
    process = Run(config(data, run, ppo_iterations=iterations, seed=7), "rejection")
    with pytest.raises(ZeroDivisionError):
        common.ppo_from(process, "rejection_ppo", "rejection", "rejection_reward", iterations)
    (cfg,), usual = seen, ppo.Config()
    assert cfg.name == "rejection_ppo" and cfg.seed == 7 and cfg.iterations == iterations
    if iterations >= usual.iterations:
        assert (cfg.ema, cfg.warmup_iterations) == (usual.ema, usual.warmup_iterations)
    else:  # what is left of the start in the average, were there one update per iteration, stays the same
        assert cfg.ema**iterations == pytest.approx(usual.ema**usual.iterations)
        assert cfg.warmup_iterations == round(iterations * usual.warmup_iterations / usual.iterations)


def test_the_figure(tmp_path, monkeypatch, capsys):
    curves = [[0.0, 0.5, 0.7], [0.2, 0.6, 0.8]]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rejection.draw_figure(curves, tmp_path / "rejection.png")
    assert not (tmp_path / "rejection.png").exists() and "not installed" in capsys.readouterr().out
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    rejection.draw_figure(curves, tmp_path / "rejection.png")
    assert (tmp_path / "rejection.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_run(data, run, labelers):
    logs = []
    for seed in (0, 0, 1):
        rejection.main(config(data, run, rounds=2, seed=seed))
        logs.append(records_of(run)[:-1])
    assert logs[0] == logs[1] != logs[2]


BAD = [("rounds", 0), ("prompts", 0), ("samples", 0), ("epochs", 0), ("batch_size", 0), ("reward_batch_size", 0)]
BAD += [("valid_prompts", 0), ("learning_rate", 0.0), ("reward_learning_rate", -1.0), ("temperature", 0.0)]
BAD += [("ranked", -1), ("ranked", 6), ("ppo_iterations", -1), ("max_new_tokens", 0)]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, labelers, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        rejection.main(config(data, run, **{flag: value}))
