"""Rankings: the pairwise loss, its batches, the normalisation, and the script from end to end."""

import itertools
import math
import random

import pytest
import torch
from runs import (
    OptimizerSteps,
    assert_gradients,
    check_resuming,
    copy_of,
    records_of,
    same,
    weights_of,
    without_comparisons,
)

import reward
from core.batches import ShuffledBatches
from core.checkpoint import load_checkpoint
from core.config import BadInput
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.ranking_metrics import accuracy
from core.text import score_rows
from data.folder import read_comparisons, read_demonstrations, write_jsonl
from model import GPT, GPTConfig, ScalarModel, pad

CFG = GPTConfig(2, 2, 16, 64, 300)


def make(seed=0, cfg=CFG):
    torch.manual_seed(seed)
    return ScalarModel(cfg)


def config(data, out, **changes):
    small = dict(data=str(data), out=str(out), epochs=2, batch_size=4, eval_every=4, device="cpu", threads=1)
    return reward.Config(**small | changes)


def some_ranks(rng, K):
    """K ranks with ties that are not all the same."""
    while True:
        ranks = [rng.randint(1, K) for _ in range(K)]
        if len(set(ranks)) > 1:
            return ranks


def ranking_of(rows, ranks):
    return reward.Ranking(rows, ranks, [], "a prompt", "training")


def some_rankings(rng, Ks):
    def row():
        return [rng.randrange(300) for _ in range(rng.randint(2, 9))]

    return [ranking_of([row() for _ in range(K)], some_ranks(rng, K)) for K in Ks]


# ---------------------------------------------------------------------------------------------------- the loss


def loss_by_hand(scores, ranks):
    """Eq. 1 with two loops: mean over the pairs that do not tie of -log σ(winner - loser); 0 where there is none."""
    losses = []
    for score, rank in zip(scores, ranks):
        for other_score, other_rank in zip(scores, ranks):
            if rank < other_rank:  # 1 is best
                losses.append(-math.log(1 / (1 + math.exp(-(score - other_score)))))
    return sum(losses) / len(losses) if losses else 0.0


def loss_of(scores, ranks):
    scores = torch.tensor(scores, requires_grad=True)
    loss = reward.pairwise_loss(scores, torch.tensor(ranks))
    loss.backward()
    return loss.item(), scores.grad


@pytest.mark.parametrize("K", [2, 3, 4, 5, 9])
def test_loss_matches_two_loops(K):
    for seed in range(10):
        rng = random.Random(seed)
        scores, ranks = [rng.gauss(0, 2) for _ in range(K)], some_ranks(rng, K)
        assert loss_of(scores, ranks)[0] == pytest.approx(loss_by_hand(scores, ranks), rel=1e-5)


def test_without_ties_it_is_the_papers_mean_over_all_pairs():
    for ranks in itertools.permutations((1, 2, 3, 4)):
        scores = [0.3, -1.0, 2.0, 0.1]
        total = sum(
            math.log(1 + math.exp(scores[j] - scores[i])) for i in range(4) for j in range(4) if ranks[i] < ranks[j]
        )
        assert loss_of(scores, ranks)[0] == pytest.approx(total / math.comb(4, 2), rel=1e-5)


def test_preferred_pairs():
    assert reward.preferred_pairs(torch.tensor([2, 1, 2])).tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_the_winner_is_pushed_up():
    _, gradient = loss_of([0.0, 0.0], [2, 1])
    assert gradient.tolist() == pytest.approx([0.5, -0.5])  # descent lowers the loser, lifts rank 1


def test_large_differences_do_not_overflow():
    for sign in (1, -1):
        loss, gradient = loss_of([500.0 * sign, -500.0 * sign], [1, 2])
        assert loss == pytest.approx(0 if sign > 0 else 1000) and gradient.isfinite().all()


def test_a_constant_changes_nothing():
    rng = random.Random(0)
    scores, ranks = [rng.gauss(0, 1) for _ in range(7)], some_ranks(rng, 7)
    assert loss_of([score + 3 for score in scores], ranks)[0] == pytest.approx(loss_of(scores, ranks)[0], abs=1e-5)


@pytest.mark.parametrize("K", [2, 4, 9])
def test_the_weight_of_a_prompt_does_not_depend_on_how_many_answers_it_has(K):
    """A best answer that scores 1 too low is pushed as hard by one other answer as by eight."""
    loss, gradient = loss_of([0.0] + [1.0] * (K - 1), [1] + [2] * (K - 1))
    wrong = 1 / (1 + math.exp(-1))
    assert loss == pytest.approx(math.log(1 + math.e), rel=1e-5)
    assert gradient[0].item() == pytest.approx(-wrong, rel=1e-5)
    assert gradient[1:].tolist() == pytest.approx([wrong / (K - 1)] * (K - 1), rel=1e-5)


def test_answers_that_all_tie_teach_nothing():
    loss, gradient = loss_of([1.0, 2.0, 3.0], [2, 2, 2])
    assert loss == 0 and gradient.tolist() == [0, 0, 0]
    loss, gradient = loss_of([1.0, 2.0, 3.0], [1, 2, 2])  # the two that tie are not compared with each other
    assert gradient[1].item() == pytest.approx(0.5 / (1 + math.exp(-1)), rel=1e-5)


def test_the_order_of_answers_does_not_matter():
    rng = random.Random(3)
    scores, ranks = [rng.gauss(0, 1) for _ in range(7)], some_ranks(rng, 7)
    order = rng.sample(range(7), 7)
    again = loss_of([scores[i] for i in order], [ranks[i] for i in order])[0]
    assert again == pytest.approx(loss_of(scores, ranks)[0], rel=1e-5)


@torch.no_grad()
def test_a_model_without_an_opinion():
    model = make()
    torch.nn.init.zeros_(model.head.weight)
    rankings = some_rankings(random.Random(0), [2, 9, 4])
    assert reward.ranking_losses(model, rankings).tolist() == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert accuracy(reward.score_differences(model, rankings))[0] == 0.5


# ---------------------------------------------------------------------------------------------------- batches


def rows_through(model):
    """A list that collects how many rows each forward pass has."""
    seen = []
    model.transformer.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


@torch.no_grad()
def test_losses_of_rankings_score_each_answer_at_its_own_end_in_one_forward_pass():
    model, rankings = make(), some_rankings(random.Random(1), [3, 5, 9, 2])
    want = []
    for ranking in rankings:
        alone = [model(torch.tensor([row]))[0, -1].item() for row in ranking.rows]
        want.append(loss_by_hand(alone, ranking.ranks))
    rows = rows_through(model)
    assert reward.ranking_losses(model, rankings).tolist() == pytest.approx(want, rel=1e-4)
    assert rows == [3 + 5 + 9 + 2]


def test_a_process_without_a_ranking_takes_part_all_the_same():
    model = make()
    loss = reward.ranking_losses(model, []).sum() / 3
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_shuffled_pairs_are_all_pairs_that_do_not_tie():
    rankings = some_rankings(random.Random(3), [4, 9, 6, 5])
    pairs = reward.single_pairs(rankings)
    want = []
    for ranking in rankings:
        for (a, rank_a), (b, rank_b) in itertools.combinations(zip(ranking.rows, ranking.ranks), 2):
            if rank_a != rank_b:
                want.append(sorted([(a, rank_a), (b, rank_b)]))
    assert sorted(sorted(zip(pair.rows, pair.ranks)) for pair in pairs) == sorted(want)
    model = make()
    rows = rows_through(model)
    with torch.no_grad():
        reward.ranking_losses(model, pairs)
    assert rows == [2 * len(want)], "two rows per comparison"


def test_differences_are_those_of_every_answer_scored_alone():
    model = make().eval()
    rankings = some_rankings(random.Random(5), [3, 2, 6])
    twice = [*rankings, rankings[0]._replace(ranks=[3, 2, 1])]  # another labeler, the same answers
    rows = rows_through(model)
    found = reward.score_differences(model, twice)
    assert sum(rows) == 3 + 2 + 6, "what several labelers ranked is scored once"
    for ranking, differences in zip(twice, found, strict=True):
        with torch.no_grad():
            score = [model(torch.tensor([row]))[0, -1].item() for row in ranking.rows]
        K = range(len(score))
        want = [score[i] - score[j] for i in K for j in K if ranking.ranks[i] < ranking.ranks[j]]
        assert sorted(differences) == pytest.approx(sorted(want), abs=1e-5)


def test_one_batch_overfits():
    model, rankings = make(), some_rankings(random.Random(6), [4, 6])
    optimizer = adamw(model, 0.01)
    for _ in range(80):
        loss = reward.ranking_losses(model, rankings).mean()
        loss.backward()
        optimizer_step(optimizer, model, 0.01, 1.0)
    assert loss.item() < 0.05
    assert accuracy(reward.score_differences(model, rankings))[0] == 1.0


def test_encoding_rankings(tokenizer):
    record = {
        "prompt": "The cat",
        "completions": [" is red.", " is", " is red.", " is red. " * 9],
        "ranks": [1, 2, 3, 4],
        "ratings": [7, 5, 3, 1],
        "ended": [True, False, True, True],
    }
    start = tokenizer.encode_ordinary("The cat")
    red = start + tokenizer.encode_ordinary(" is red.") + [tokenizer.eot_token]
    ranking = reward.encode_ranking(record, tokenizer, 20)
    assert ranking.rows == [red, start + tokenizer.encode_ordinary(" is")], (
        "no copy, nothing too long, no end of its own"
    )
    assert (ranking.ranks, ranking.ratings, ranking.prompt, ranking.group) == ([1, 2], [7, 5], "The cat", "training")
    plain = {"prompt": "The cat", "completions": [" is", " was"], "ranks": [1, 2], "group": "held_out"}
    ranking = reward.encode_ranking(plain, tokenizer, 64)
    assert all(row[-1] == tokenizer.eot_token for row in ranking.rows)
    assert ranking.ratings == [] and ranking.group == "held_out"
    tied = record | {"ranks": [1, 1, 2, 2]}  # what fits ties
    assert len(reward.encode_rankings([tied, plain, record], tokenizer, 20)) == 2


# ---------------------------------------------------------------------------------------------------- normalisation


def test_demonstrations_score_zero_after_normalising(data, tokenizer):
    model = make(cfg=GPTConfig(2, 2, 16, 64, tokenizer.n_vocab)).eval()
    model.head.bias.data.fill_(3.0)  # of training
    rows = some_rankings(random.Random(7), [5])[0].rows
    before = score_rows(model, rows)
    shift = mean_demonstration(model, data, tokenizer)
    reward.normalise(model, config(data, "unused"), tokenizer)
    assert score_rows(model, rows) == pytest.approx([score - shift for score in before], abs=1e-5), "no scaling"
    assert mean_demonstration(model, data, tokenizer) == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def mean_demonstration(model, data, tokenizer):
    """Mean score of the training demonstrations, each scored alone."""
    scores = []
    for record in read_demonstrations(data, "train"):
        ids = tokenizer.encode_ordinary(record["prompt"]) + tokenizer.encode_ordinary(record["completion"])
        scores.append(model.score(*pad([ids + [tokenizer.eot_token]])).item())
    return sum(scores) / len(scores)


# ---------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("micro_batch_size", [0, 1, 3])
@pytest.mark.parametrize("shuffle_pairs", [False, True])
def test_every_step_takes_the_gradient_of_the_mean_over_its_prompts(
    data, run, tokenizer, monkeypatch, micro_batch_size, shuffle_pairs
):
    """An epoch shows every ranking once, or every pair once, as many comparisons per step."""
    starts, steps = [], OptimizerSteps(monkeypatch, reward)
    monkeypatch.setattr(reward, "print_untrained", lambda model, rankings: starts.append(model.state_dict()))
    from_gpt = ScalarModel.from_gpt

    def spy(*args):
        model = from_gpt(*args)
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        return model

    monkeypatch.setattr(ScalarModel, "from_gpt", spy)
    reward.main(config(data, run, shuffle_pairs=shuffle_pairs, micro_batch_size=micro_batch_size))
    policy = load_checkpoint(run / "ppo_init.pt", "policy")[0]
    model = ScalarModel(policy.config)
    model.load_state_dict(starts[0])
    body = policy.transformer.state_dict()
    assert same(model.transformer.state_dict(), body), "the supervised model without its unembedding"

    records = [r for r in read_comparisons(data / "comparisons.jsonl") if r["split"] == "train"]
    rankings = reward.encode_rankings(records, tokenizer, 64)
    batch_size, per_prompt = 4, 3
    if shuffle_pairs:
        rankings, batch_size, per_prompt = reward.single_pairs(rankings), 8, 2  # two pairs per prompt do not tie
        assert len(rankings) == 2 * len(records)
    batches = ShuffledBatches([max(map(len, r.rows)) for r in rankings], batch_size, 0)
    optimizer, logged, seen = adamw(model, 1.0), records_of(run / "reward.jsonl"), []
    for step, (_, gradients, rate) in enumerate(steps.calls):
        batch = [rankings[i] for i in batches[step]]
        seen.append(batches[step])
        losses = []
        for ranking in batch:  # prompt by prompt, answer by answer
            assert len(ranking.rows) == per_prompt
            scores = torch.stack([model(torch.tensor([row]))[0, -1] for row in ranking.rows])
            K = range(per_prompt)
            pairs = [scores[i] - scores[j] for i in K for j in K if ranking.ranks[i] < ranking.ranks[j]]
            losses.append(torch.stack([(1 + (-pair).exp()).log() for pair in pairs]).mean())
        loss = torch.stack(losses).mean()
        assert_gradients(gradients, loss, model)
        assert logged[step]["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert rate == pytest.approx(cosine_to_tenth(step, len(steps.calls), 5e-4))
        loss.backward()
        optimizer_step(optimizer, model, rate, 1.0)
    n = math.ceil(len(rankings) / batch_size)
    assert len(steps.calls) == 2 * n
    for epoch in (seen[:n], seen[n:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(len(rankings)))
    assert seen[:n] != seen[n:], "shuffled anew"


@pytest.mark.parametrize("shuffle_pairs", [False, True])
def test_from_given_comparisons_to_a_reward_model(data, run, tokenizer, tokenizer_spec, shuffle_pairs, capsys):
    (run / "reward.pt").unlink()
    reward.main(config(data, run, learning_rate=1e-2, epochs=6, shuffle_pairs=shuffle_pairs))
    assert "next: python ppo.py" in capsys.readouterr().out
    model, _, checkpoint = load_checkpoint(run / "reward.pt", "scalar", tokenizer_spec=tokenizer_spec)
    assert mean_demonstration(model, data, tokenizer) == pytest.approx(0, abs=1e-4)
    results = checkpoint["results"]["training"]
    assert results["accuracy"][0] > 0.9, "new prompts, same obvious preference"
    assert results["agreement"] == 1.0
    assert results["ties"] == pytest.approx(1 / 3) and results["pairs"] == 3 * 2 * 6
    assert checkpoint["results"]["trained on"]["accuracy"][0] > 0.9
    records = records_of(run / "reward.jsonl")
    assert [r["step"] for r in records] == list(range(1, len(records) + 1)) and checkpoint["step"] == len(records)
    always = {"step", "loss", "learning_rate", "grad_norm"}
    for record in records:
        measured = record["step"] % 4 == 0 or record["step"] == len(records)
        assert set(record) == always | ({"train_accuracy", "accuracy_training"} if measured else set())
    assert records[-1]["loss"] < 0.3 < records[0]["loss"]
    assert not (run / "comparisons.jsonl").exists(), "given rankings are used as they are"


def test_groups_of_labelers_are_kept_apart(data, run, tmp_path):
    """Only training labelers are learned from; held-out labelers are measured."""
    records = read_comparisons(data / "comparisons.jsonl")
    opposite = [r | {"ranks": [1, 2, 1], "group": "held_out"} for r in records if r["split"] != "train"]
    write_jsonl(tmp_path / "both.jsonl", opposite + records)
    reward.main(config(data, run, learning_rate=1e-2, epochs=6, comparisons=str(tmp_path / "both.jsonl")))
    results = load_checkpoint(run / "reward.pt", "scalar")[2]["results"]
    assert results["training"]["accuracy"][0] > 0.9 and results["held_out"]["accuracy"][0] < 0.1
    last = records_of(run / "reward.jsonl")[-1]
    assert last["accuracy_training"] > 0.9 and last["accuracy_held_out"] < 0.1


def test_evaluating_more_often_changes_nothing(data, run):
    for name, every in (("often", 1), ("rarely", 100)):
        reward.main(config(data, run, name=name, eval_every=every))
    assert same(weights_of(run / "often.pt"), weights_of(run / "rarely.pt"))


def test_a_reward_model_can_be_gone_on_with(data, run):
    """Its body and head are the start, and it ends where that leads, whatever the initial policy is called."""
    reward.main(config(data, run, learning_rate=1e-2, epochs=6, name="school"))
    reward.main(config(data, run, learning_rate=1e-9, name="after", reward_model=str(run / "school.pt"), init="none"))
    school, after = weights_of(run / "school.pt"), weights_of(run / "after.pt")
    assert school.keys() == after.keys() and not same(school, weights_of(run / "reward.pt"))
    for name, weight in school.items():
        torch.testing.assert_close(after[name], weight, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadInput, match="scalar model is needed"):
        reward.main(config(data, run, reward_model=str(run / "sft.pt")))


def test_replayed_rankings_are_mixed_among_the_others(data, run, tmp_path):
    """Of the training split, and only as many as asked for: one step each."""
    records = [r for r in read_comparisons(data / "comparisons.jsonl") if r["split"] == "train"]
    others = [r | {"prompt": f"Once more: {r['prompt']}"} for r in records[:5]]
    write_jsonl(tmp_path / "known.jsonl", [others[0] | {"split": "valid"}, *others[1:]])
    one_by_one = {"epochs": 1, "batch_size": 1, "replay": str(tmp_path / "known.jsonl")}
    for replayed, drawn in ((2, 2), (100, 4)):
        reward.main(config(data, run, replayed=replayed, **one_by_one))
        assert len(records_of(run / "reward.jsonl")) == len(records) + drawn
    with pytest.raises(BadInput, match="no such file"):
        reward.main(config(data, run, **one_by_one | {"replay": str(tmp_path / "gone.jsonl")}))


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(data, run, tmp_path_factory, monkeypatch, capsys):
    cfg, other = config(data, run, epochs=15), copy_of(run, tmp_path_factory)
    (other / "reward.pt").unlink()
    check_resuming(reward, cfg, "reward", "reward.jsonl", other, monkeypatch, capsys)


# ---------------------------------------------------------------------------------------------------- whose rankings


def test_rankings_are_collected_once_and_not_touched_again(data, run, tmp_path, monkeypatch, capsys):
    folder, asked = without_comparisons(data, tmp_path / "data"), []

    def collect(cfg):
        asked.append(cfg)
        torch.rand(5), GPT(CFG)  # it loads models, too
        write_jsonl(run / "comparisons.jsonl", read_comparisons(data / "comparisons.jsonl"))

    monkeypatch.setattr(reward.collect, "main", collect)
    reward.main(config(folder, run, seed=3, init=str(run / "sft.pt")))
    (cfg,) = asked
    assert (cfg.data, cfg.out, cfg.supervised, cfg.seed, cfg.threads) == (
        str(folder),
        str(run),
        str(run / "sft.pt"),
        3,
        1,
    )
    path = run / "comparisons.jsonl"
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    reward.main(config(folder, run, seed=3, init=str(run / "sft.pt"), name="other"))
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before and len(asked) == 1
    assert same(weights_of(run / "reward.pt"), weights_of(run / "other.pt")), "the same whenever they were collected"

    own = without_comparisons(data, tmp_path / "own")
    write_jsonl(own / "comparisons.jsonl", [{"prompt": "x", "chosen": "A cat.", "rejected": "A dog."}])
    capsys.readouterr()
    assert reward.comparisons_file(config(own, run), run) == own / "comparisons.jsonl", "the data folder's come first"
    assert f"{run / 'comparisons.jsonl'}, which was collected here, is not" in capsys.readouterr().out


def test_rankings_without_a_difference_are_refused(data, run, tmp_path):
    records = read_comparisons(data / "comparisons.jsonl")
    for split, words in (("train", "training split"), ("valid", "validation split")):
        tied = [r | {"ranks": [1, 1, 1]} if r["split"] == split else r for r in records]
        write_jsonl(tmp_path / "tied.jsonl", tied)
        with pytest.raises(BadInput, match=words):
            reward.main(config(data, run, comparisons=str(tmp_path / "tied.jsonl")))


@pytest.mark.parametrize("batch_size", [4, 1000], ids=["on the way", "in the last step"])
def test_divergence_stops_the_run(data, run, batch_size):
    (run / "reward.pt").unlink()
    with pytest.raises(BadInput, match="learning_rate"):
        reward.main(config(data, run, learning_rate=1e30, epochs=1, batch_size=batch_size))
    assert not (run / "reward.pt").exists(), "broken weights are not saved"


@pytest.mark.parametrize("flag, value", [("epochs", 0), ("batch_size", 0), ("eval_every", 0), ("learning_rate", -1.0)])
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        reward.main(config(data, run, **{flag: value}))


def test_wrong_files_are_named(data, run):
    with pytest.raises(BadInput, match="policy model is needed"):
        reward.main(config(data, run, init=str(run / "reward.pt")))
    with pytest.raises(BadInput, match="nothing.jsonl: no such file"):
        reward.main(config(data, run, comparisons="nothing.jsonl"))
