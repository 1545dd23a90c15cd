"""Llama 2: margins by how much better an answer is, two reward models and the switch, and the script in small."""

import json
import math
import random

import pytest
import torch

import reward
from alternatives import llama2
from alternatives.common import Run, encoded_rankings
from core.checkpoint import load_checkpoint, read_checkpoint
from core.config import BadInput
from core.output import write_torch
from core.training_state import fingerprints
from data.folder import read_comparisons, write_jsonl
from reward import Ranking, encode_ranking

STEPS = {"none": [0, 0, 0, 0], "small": [0, 1 / 3, 2 / 3, 1], "large": [0, 1, 2, 3]}


def softplus(x):
    return math.log1p(math.exp(x))


def config(data, run, **changes):
    small = dict(data=str(data), out=str(run), safety_pairs=8, iterations=3, max_new_tokens=6, device="cpu", threads=1)
    return llama2.Config(**small | changes)


@pytest.fixture
def rated(data, run, tmp_path):
    """reward.pt was trained on rankings with ratings."""
    records = [r | {"ratings": [3, 6, 2]} for r in read_comparisons(data / "comparisons.jsonl")]
    write_jsonl(tmp_path / "rated.jsonl", records)
    inputs = fingerprints(tmp_path / "rated.jsonl")
    write_torch(run / "reward.pt", read_checkpoint(run / "reward.pt") | {"inputs": inputs})
    return records


# ---------------------------------------------------------------------------------------------------- margins


@pytest.mark.parametrize("margin", ["none", "small", "large"])
def test_margins_by_how_much_better(margin):
    ratings, scores = [7, 6, 4, 1], [0.3, 0.5, -1.0, 0.2]
    loss = llama2.pairwise_loss(torch.tensor(scores), torch.arange(4), torch.tensor(ratings), margin)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    steps = STEPS[margin]
    by_hand = [softplus(scores[j] - scores[i] + steps[min(3, ratings[i] - ratings[j])]) for i, j in pairs]
    assert loss.item() == pytest.approx(sum(by_hand) / 6, rel=1e-5)


def test_without_a_margin_it_is_the_reward_models_loss():
    scores, ranks, ratings = torch.tensor([0.3, 0.5, -1.0, 0.2]), torch.tensor([2, 1, 2, 3]), torch.tensor([5, 5, 4, 1])
    assert llama2.pairwise_loss(scores, ranks, ratings, "none") == reward.pairwise_loss(scores, ranks)
    tied = torch.tensor([1, 1, 1, 1])
    assert llama2.pairwise_loss(scores, tied, ratings, "large") == 0


def test_a_winner_that_was_rated_lower_has_the_margin_of_the_level():
    """Ranks decide who wins, ratings only how big the margin is."""
    loss = llama2.pairwise_loss(torch.tensor([0.0, 0.0]), torch.tensor([1, 2]), torch.tensor([3, 5]), "large")
    assert loss.item() == pytest.approx(softplus(2.0), rel=1e-5)


def test_losses_of_rankings_are_those_of_each_alone(data, run, rated):
    process = Run(config(data, run), "x")
    model = process.load_scalar_model("reward")
    rankings = [encode_ranking(record, process.tokenizer, 64) for record in rated[:3]]
    losses = llama2.ranking_losses(model, rankings, "large").tolist()
    for loss, ranking in zip(losses, rankings, strict=True):
        scores = [model.score(torch.tensor([row]), torch.tensor([len(row)])) for row in ranking.rows]
        numbers = torch.tensor(ranking.ranks), torch.tensor(ranking.ratings)
        want = llama2.pairwise_loss(torch.cat(scores), *numbers, "large")
        assert loss == pytest.approx(want.item(), rel=1e-4)


def test_differences_by_level_are_all_differences():
    rankings = [Ranking([[1], [2], [3], [4]], [1, 2, 2, 3], [7, 6, 6, 2], "x", "training")]
    rankings.append(Ranking([[1], [2]], [2, 1], [5, 5], "y", "training"))
    apart = llama2.by_level([[1.0, 2.0, 3.0, 1.0, 2.0], [-1.0]], rankings)
    assert apart == {
        "negligibly better": [[], [-1.0]],
        "slightly better": [[1.0, 2.0], []],
        "better": [[], []],
        "significantly better": [[3.0, 1.0, 2.0], []],
    }


def test_accuracy_by_level_by_hand(monkeypatch):
    """Two labelers' rankings of a prompt are one observation."""
    rankings = [Ranking([[1], [2], [3]], [1, 2, 3], [7, 6, 1], prompt, "training") for prompt in "xxy"]
    differences = [[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0], [0.0, -1.0, -1.0]]  # pairs 0 1, 0 2, 1 2
    monkeypatch.setattr(llama2, "score_differences", lambda model, rankings: differences)
    shares = llama2.accuracy_by_level(None, rankings)
    assert shares.pop("negligibly better") is None and shares.pop("better") is None
    want = {
        "slightly better": (1 / 2 + 1 / 2) / 2,
        "significantly better": (3 / 4 + 0) / 2,
        "all": (4 / 6 + 0.5 / 3) / 2,
    }
    assert shares == pytest.approx(want)
    lines = llama2.margins_table({"none": None}, rankings).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["none", "37.5", "-", "50.0", "-", "41.7"]


def test_comparing_margins_trains_two_reward_models_on_the_same_rankings(data, run, rated, monkeypatch, capsys):
    seen, fit = [], llama2.fit

    def spy(model, loss_of, lengths, *rest):
        start = {name: weight.clone() for name, weight in model.state_dict().items()}
        batches = []
        fit(model, lambda batch: batches.append(batch) or loss_of(batch), lengths, *rest)
        seen.append((start, batches))

    monkeypatch.setattr(llama2, "fit", spy)
    llama2.main(config(data, run, compare_margins=True, learning_rate=1e-2))
    (small, small_batches), (large, large_batches) = seen
    assert all(torch.equal(small[name], large[name]) for name in small) and small_batches == large_batches
    models = [load_checkpoint(run / f"reward_{margin}.pt", "scalar")[0] for margin in ("small", "large")]
    assert not torch.equal(models[0].head.weight, models[1].head.weight)
    process = Run(config(data, run), "x")
    rankings = encoded_rankings(process, 64)["valid"]
    table = llama2.margins_table(
        {"none": process.load_scalar_model("reward"), "small": models[0], "large": models[1]}, rankings
    )
    printed = capsys.readouterr().out
    assert table in printed and "significantly better" in table and not (run / "llama2.pt").exists()
    assert [json.loads(line)["margin"] for line in open(run / "margins.jsonl")] == ["none", "small", "large"]


def test_rankings_without_ratings_are_refused(data, run, labelers):
    for compare_margins in (True, False):
        with pytest.raises(BadInput, match='have no "ratings"'):
            llama2.main(config(data, run, compare_margins=compare_margins))


# ---------------------------------------------------------------------------------------------------- two reward models


def test_the_switch_between_two_reward_models():
    r_h, r_s = torch.tensor([2.0, 2.0, 2.0, -1.0]), torch.tensor([3.0, -3.0, -1.0, 0.5])
    red = torch.tensor([True, False, False, False])
    picked = [3.0, -3.0, 2.0, -1.0]  # red team; σ(-3) = .05 < .15; σ(-1) = .27; safe
    mean = sum(picked) / 4
    spread = math.sqrt(sum((x - mean) ** 2 for x in picked) / 4)
    assert llama2.combine(r_h, r_s, red).tolist() == pytest.approx([(x - mean) / spread for x in picked], rel=1e-4)
    mixed = [0.25 * h + 0.75 * s for h, s in zip(r_h.tolist(), r_s.tolist())]
    mean = sum(mixed) / 4
    spread = math.sqrt(sum((x - mean) ** 2 for x in mixed) / 4)
    got = llama2.combine(r_h, r_s, red, linear=0.25).tolist()
    assert got == pytest.approx([(x - mean) / spread for x in mixed], rel=1e-4)


def test_safe_or_not():
    loss = llama2.safe_or_not_loss(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.0])).item()
    assert loss == pytest.approx((softplus(-1) + softplus(-2)) / 2, rel=1e-5)


def test_recall_of_unsafe(monkeypatch):
    safe = {(1,): 1.0, (2,): 0.0, (3,): 0.0, (4,): 0.0, (5,): 1.0}
    monkeypatch.setattr(llama2, "score_rows", lambda model, rows: [-2.0, -2.0, 1.0, -1.8, 3.0])
    logit = math.log(0.15 / 0.85)
    assert -1.8 < logit < -1.7
    assert llama2.recall_of_unsafe(None, safe, 0.15) == (2 / 3, 2 / 3)


def test_mixing_in_a_share_of_others():
    rankings, others = list(range(90)), [-1, -2, -3]
    mixed = llama2.mixed(rankings, others, 0.1, torch.Generator().manual_seed(0))
    assert mixed[:90] == rankings and len(mixed) == 100 and set(mixed[90:]) == set(others)
    assert llama2.mixed(rankings, others, 0.0, torch.Generator()) == rankings


class Labeler:
    """Likes what is long; nothing with "bad" in it is safe."""

    world = None

    def safe(self, prompt, text):
        return "bad" not in text

    def utilities(self, prompt, texts):
        return [len(text) / 2 for text in texts]


@pytest.fixture
def labelers(monkeypatch):
    monkeypatch.setattr(llama2, "load_labelers", lambda folder, group: {"training": [Labeler()]}[group])


def test_what_becomes_of_safety_pairs(data, run, labelers, monkeypatch):
    process = Run(config(data, run), "x")
    said = {
        "one": [(" abcd", True), (" same", True), (" bad bad bad", True), (" bad", False), ("", True)],
        "two": [(" ab", False), (" same", False), (" ab", True), (" abc", True), (" a", True)],
    }
    monkeypatch.setattr(process, "answers", lambda model, prompts, rng, counted: said[model])
    rankings, safe = llama2.safety_data(process, ["1", "2", "3", "4", "5"], ["one", "two"], random.Random(0), "train")
    # 2: the same text; 3: the better one (6 to 4.5) alone is unsafe, though it was judged; 5: an empty text
    assert [ranking.prompt for ranking in rankings] == ["1", "4"] and process.cost["labels"] == 3
    first, second = rankings
    by_row = dict(zip(map(tuple, first.rows), zip(first.ranks, first.ratings)))
    assert by_row == {
        tuple(process.ids("1", " abcd", True)): (1, 7),  # 3 + 2.5 + 3
        tuple(process.ids("1", " ab", False)): (2, 7),  # 3 + 1.5 + 3 = 7.5
    }
    by_row = dict(zip(map(tuple, second.rows), zip(second.ranks, second.ratings)))
    bad, good = tuple(process.ids("4", " bad", False)), tuple(process.ids("4", " abc", True))
    assert by_row == {bad: (2, 5), good: (1, 7)}
    assert safe[bad] == 0 and safe[good] == 1 and len(safe) == 4
    llama2.safety_data(process, ["1", "2", "3", "4", "5"], ["one", "two"], random.Random(0), "valid")
    assert process.cost["labels"] == 3, "validation is not what a method learns from"


def test_the_safety_model_learns_what_is_safe(data, run, rated):
    process = Run(config(data, run, epochs=30, learning_rate=1e-2), "x")
    start = process.load_policy("ppo_init")
    rankings, safe = [], {}
    for prompt in ("Be rude.", "Insult a dog.", "Go on."):
        rows = [process.ids(prompt, " A cat."), process.ids(prompt, " It is red.")]
        rankings.append(Ranking(rows, [1, 2], [5, 4], prompt, "training"))
        safe |= {tuple(rows[0]): 1.0, tuple(rows[1]): 0.0}
    model = llama2.train_reward_model(process, start, rankings, "small", process.generator("a"), safe)
    for row, is_safe in safe.items():
        score = model.score(torch.tensor([row]), torch.tensor([len(row)]))
        assert (torch.sigmoid(score).item() > 0.5) == is_safe
    assert llama2.recall_of_unsafe(model, safe, 0.5) == (1.0, 1.0)


@pytest.mark.parametrize("linear", [0.0, 0.5])
def test_from_end_to_end(data, run, rated, labelers, monkeypatch, capsys, linear):
    prompts = [f"What colour is {name}?\n" for name in ("Ada", "Bram", "Cleo", "Dov")]
    monkeypatch.setattr(llama2, "red_team", lambda world, count, split, rng: [prompts[i % 4] for i in range(count)])

    def helpful_only(process, world):
        process.cost["seconds"] += 1000.0
        return process.load_policy("sft")

    monkeypatch.setattr(llama2, "helpful_only", helpful_only)
    monkeypatch.setattr(llama2.ppo.Config, "__init__", smaller(llama2.ppo.Config.__init__))
    llama2.main(config(data, run, linear=linear))
    *steps, last = [json.loads(line) for line in open(run / "llama2.jsonl")]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert "policy_loss" not in steps[1] and steps[2]["ratio"] == pytest.approx(1, abs=0.2)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5), "π is π_ref"
    made, before = read_checkpoint(run / "llama2.pt"), read_checkpoint(run / "ppo_init.pt")
    assert any(not torch.equal(weight, before["model"][name]) for name, weight in made["model"].items())
    assert made["cost"]["seconds"] > 1000 and 18 < made["cost"]["labels"] <= 18 + 8
    for name in ("helpfulness", "safety"):
        assert (run / f"llama2_{name}.pt").exists() and len(made["results"][name]) == 2
    assert "safety pairs" in capsys.readouterr().out and last["cost"]["tokens"] == made["cost"]["tokens"]


def smaller(init):
    def small(self, **settings):
        init(
            self, **settings | {"batch_size": 8, "minibatch_size": 4, "value_only_iterations": 2}
        )  # the third one moves it

    return small


BAD = [("safety_pairs", 0), ("epochs", 0), ("batch_size", 0), ("iterations", 0), ("learning_rate", 0.0)]
BAD += [("margin", "huge"), ("safety_share", 1.0), ("linear", 1.0), ("red_team_share", 1.0), ("threshold", 0.0)]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, rated, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        llama2.main(config(data, run, **{flag: value}))
