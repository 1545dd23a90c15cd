"""Rankings: the pairwise loss, its batches, the measures, the normalisation, and the script from end to end."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch

import reward
from data.folder import read_comparisons, read_demonstrations, write_jsonl
from model import GPTConfig, ScalarModel, load_checkpoint, pad, score_rows
from plumbing import BadInput, adamw, generator, optimizer_step

CFG = GPTConfig(2, 2, 16, 64, 300)
CPU = torch.device("cpu")


def make(seed=0):
    torch.manual_seed(seed)
    return ScalarModel(CFG)


def config(data, out, **changes):
    small = dict(data=str(data), out=str(out), epochs=2, batch_size=4, eval_every=4, device="cpu", threads=1)
    return reward.Config(**small | changes)


def some_ranks(rng, K):
    """K ranks with ties that are not all the same."""
    while True:
        ranks = [rng.randint(1, K) for _ in range(K)]
        if len(set(ranks)) > 1:
            return ranks


def some_rankings(rng, Ks):
    """Rankings as encode_ranking gives them: lists of (ids, rank)."""
    return [[([rng.randrange(300) for _ in range(rng.randint(2, 9))], r) for r in some_ranks(rng, K)] for K in Ks]


def flat(rankings):
    """Lists of (score, rank) per prompt -> the three arrays that pairwise_loss takes."""
    scores = torch.tensor([s for r in rankings for s, _ in r], requires_grad=True)
    ranks = torch.tensor([rank for r in rankings for _, rank in r])
    prompt = torch.tensor([i for i, r in enumerate(rankings) for _ in r])
    return scores, ranks, prompt


# ---------------------------------------------------------------------------------------------------- the loss


def loss_by_hand(rankings):
    """Eq. 1 with two loops: mean over prompts of the mean over pairs that do not tie of -log σ(winner - loser)."""
    of_prompts = []
    for ranking in rankings:
        losses = []
        for score, rank in ranking:
            for other_score, other_rank in ranking:
                if rank < other_rank:  # 1 is best
                    losses.append(-math.log(1 / (1 + math.exp(-(score - other_score)))))
        if losses:
            of_prompts.append(sum(losses) / len(losses))
    return sum(of_prompts) / len(of_prompts)


@pytest.mark.parametrize("Ks", [[2], [9], [2, 9, 4, 5], [4] * 6])
def test_loss_matches_two_loops(Ks):
    rng = random.Random(str(Ks))
    rankings = [[(rng.gauss(0, 2), rank) for rank in some_ranks(rng, K)] for K in Ks]
    assert reward.pairwise_loss(*flat(rankings)).item() == pytest.approx(loss_by_hand(rankings), rel=1e-5)


def test_the_winner_is_pushed_up():
    scores, ranks, prompt = flat([[(0.0, 2), (0.0, 1)]])
    reward.pairwise_loss(scores, ranks, prompt).backward()
    assert scores.grad.tolist() == pytest.approx([0.5, -0.5])  # descent lowers the loser, lifts rank 1


def test_large_differences_do_not_overflow():
    for sign in (1, -1):
        scores, ranks, prompt = flat([[(500.0 * sign, 1), (-500.0 * sign, 2)]])
        loss = reward.pairwise_loss(scores, ranks, prompt)
        loss.backward()
        assert loss.item() == pytest.approx(0 if sign > 0 else 1000) and scores.grad.isfinite().all()


def test_a_constant_changes_nothing():
    rng = random.Random(0)
    scores, ranks, prompt = flat([[(rng.gauss(0, 1), r) for r in some_ranks(rng, K)] for K in (3, 7)])
    before = reward.pairwise_loss(scores, ranks, prompt).item()
    assert reward.pairwise_loss(scores + 3, ranks, prompt).item() == pytest.approx(before, abs=1e-5)
    assert reward.pairwise_loss(scores + prompt, ranks, prompt).item() == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("K", [2, 4, 9])
def test_every_prompt_weighs_the_same(K):
    """Two prompts that are wrong by the same margin share the gradient equally, whatever their K."""
    wide = [(0.0, 1)] + [(1.0, 2)] * (K - 1)
    scores, ranks, prompt = flat([[(0.0, 1), (1.0, 2)], wide])
    reward.pairwise_loss(scores, ranks, prompt).backward()
    share = 0.5 / (1 + math.exp(-1))
    assert scores.grad[0].item() == pytest.approx(-share, rel=1e-5)
    assert scores.grad[2].item() == pytest.approx(-share, rel=1e-5)
    assert scores.grad[3:].sum().item() == pytest.approx(share, rel=1e-5)


def test_answers_that_all_tie_teach_nothing():
    untied = [(0.3, 1), (-0.2, 2)]
    scores, ranks, prompt = flat([[(1.0, 1), (2.0, 1), (3.0, 1)], untied, [(4.0, 2), (5.0, 2)]])
    loss = reward.pairwise_loss(scores, ranks, prompt)
    loss.backward()
    assert loss.item() == pytest.approx(loss_by_hand([untied]), rel=1e-5)
    assert scores.grad[[0, 1, 2, 5, 6]].tolist() == [0] * 5 and scores.grad[3] != 0
    scores, ranks, prompt = flat([[(1.0, 1), (2.0, 1)]])
    reward.pairwise_loss(scores, ranks, prompt).backward()
    assert scores.grad.tolist() == [0, 0]


def test_the_order_of_answers_and_prompts_does_not_matter():
    rng = random.Random(3)
    scores, ranks, prompt = flat([[(rng.gauss(0, 1), r) for r in some_ranks(rng, K)] for K in (3, 7, 4)])
    order = torch.randperm(len(scores), generator=generator(0))
    again = reward.pairwise_loss(scores[order], ranks[order], torch.tensor([2, 0, 1])[prompt][order])
    assert again.item() == pytest.approx(reward.pairwise_loss(scores, ranks, prompt).item(), rel=1e-5)


def test_a_model_without_an_opinion():
    model = make()
    torch.nn.init.zeros_(model.head.weight)
    rankings = some_rankings(random.Random(0), [2, 9, 4])
    assert reward.batch_loss(model, rankings, CPU).item() == pytest.approx(math.log(2), abs=1e-6)
    assert reward.accuracy(reward.outcomes_of(model, rankings))[0] == 0.5


# ---------------------------------------------------------------------------------------------------- batches


@torch.no_grad()
def test_batch_loss_scores_each_answer_at_its_own_end():
    model, rankings = make(), some_rankings(random.Random(1), [3, 5])
    alone = [[(model(torch.tensor([ids]))[0, -1].item(), rank) for ids, rank in ranking] for ranking in rankings]
    assert reward.batch_loss(model, rankings, CPU).item() == pytest.approx(loss_by_hand(alone), rel=1e-4)


def rows_through(model):
    """A list that collects how many rows each forward pass has."""
    seen = []
    model.transformer.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def test_one_forward_pass_of_k_rows_per_prompt():
    model, rankings = make(), some_rankings(random.Random(2), [4, 9, 6])
    rows = rows_through(model)
    reward.batch_loss(model, rankings, CPU)
    assert rows == [4 + 9 + 6]


def test_shuffled_pairs_take_two_rows_per_comparison():
    rankings = some_rankings(random.Random(3), [4, 9, 6, 5])
    pairs = sum(a[1] < b[1] for r in rankings for a in r for b in r)
    model = make()
    rows = rows_through(model)
    apart = reward.pairs_apart(rankings)
    reward.batch_loss(model, apart, CPU)
    assert sum(rows) == 2 * pairs
    got = sorted(sorted(map(str, pair)) for pair in apart)
    want = sorted(sorted(map(str, (a, b))) for r in rankings for i, a in enumerate(r) for b in r[:i] if a[1] != b[1])
    assert got == want


@pytest.mark.parametrize("apart", [False, True])
def test_an_epoch_shows_every_ranking_once_or_every_pair_once(data, run, monkeypatch, apart):
    shown, batch_loss = [], reward.batch_loss

    def spy(model, rankings, device, *margin):
        if torch.is_grad_enabled():
            shown.append(rankings)
        return batch_loss(model, rankings, device, *margin)

    monkeypatch.setattr(reward, "batch_loss", spy)
    reward.main(config(data, run, epochs=2, batch_size=4, shuffle_pairs=apart))
    train = [r for r in read_comparisons(data / "comparisons.jsonl") if r["split"] == "train"]
    rows = len(train) * (2 if apart else 1)  # three answers, two of them equal: two pairs
    steps = -(-rows // (8 if apart else 4))
    assert len(shown) == 2 * steps, "as many comparisons per step as four whole prompts have"
    for epoch in (shown[:steps], shown[steps:]):
        assert len({str(ranking) for batch in epoch for ranking in batch}) == sum(map(len, epoch)) == rows
        assert {len(ranking) for batch in epoch for ranking in batch} == {2 if apart else 3}
    assert list(map(str, shown[:steps])) != list(map(str, shown[steps:])), "shuffled anew"


def test_scores_come_back_in_their_order():
    model, rankings = make().eval(), some_rankings(random.Random(5), [3, 2, 6])
    rows = [ids for ranking in rankings for ids, _ in ranking]
    too_long = [1] * (model.config.block_size + 1)
    for batch_size in (1, 4, 100):
        scores = score_rows(model, [*rows, too_long], batch_size)
        assert len(scores) == len(rows) + 1 and math.isnan(scores[-1])
        for ids, value in zip(rows, scores):
            assert value == pytest.approx(model(torch.tensor([ids]))[0, -1].item(), abs=1e-5)


def test_one_batch_overfits():
    model, rankings = make(), some_rankings(random.Random(6), [4, 6])
    optimizer = adamw(model, 0.01)
    for _ in range(80):
        loss = reward.batch_loss(model, rankings, CPU)
        loss.backward()
        optimizer_step(optimizer, model, 0.01, 1.0)
    assert loss.item() < 0.05
    assert reward.accuracy(reward.outcomes_of(model, rankings))[0] == 1.0


def test_encoding_a_ranking(encoding):
    record = {
        "prompt": "The cat",
        "completions": [" is red.", " is", " is red.", " is red. " * 9],
        "ranks": [1, 2, 3, 4],
    }
    record["ended"] = [True, False, True, True]
    rows = reward.encode_ranking(record, encoding, 20)
    start = encoding.encode_ordinary("The cat")
    red = start + encoding.encode_ordinary(" is red.") + [encoding.eot_token]
    assert rows == [(red, 1), (start + encoding.encode_ordinary(" is"), 2)]  # no copy, nothing too long
    assert len(red) <= 20
    del record["ended"]
    assert all(ids[-1] == encoding.eot_token for ids, _ in reward.encode_ranking(record, encoding, 64))


# ---------------------------------------------------------------------------------------------------- the measures


def test_accuracy_by_hand():
    assert reward.pair_outcomes([1.0, 5.0, 2.0], [1, 2, 2]) == [-4.0, -1.0]
    outcomes = [[1.0, -1.0], [2.0], [], [0.0, 0.0, 3.0, -1.0]]  # 1/2, 1, nothing to say, (½ + ½ + 1) / 4
    mean, error = reward.accuracy(outcomes)
    assert mean == pytest.approx(2 / 3)
    variance = ((1 / 2 - 2 / 3) ** 2 + (1 - 2 / 3) ** 2 + (1 / 2 - 2 / 3) ** 2) / 2
    assert error == pytest.approx(1.96 * math.sqrt(variance / 3))
    assert all(math.isnan(x) for x in reward.accuracy([[], []]))


def test_agreement_by_hand():
    assert reward.agreement([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert reward.agreement([1, 2, 3], [3, 2, 1]) == (0, 3)
    assert reward.agreement([1, 1, 2], [1, 2, 2]) == (1, 1)  # only the first and the last are ordered by both
    assert reward.agreement([1, 2, 3, 4], [2, 1, 3, 4]) == (5, 6)


def test_calibration_by_hand():
    small, large = math.log(0.55 / 0.45), math.log(0.95 / 0.05)  # the model says 55 % and 95 %
    table = reward.calibration([[small, -small, small], [large, large], [-large, large]], bins=5)
    assert len(table) == 2
    assert table[0] == (pytest.approx(0.55, abs=1e-5), pytest.approx(2 / 3), 3)
    assert table[1] == (pytest.approx(0.95, abs=1e-5), pytest.approx(3 / 4), 4)
    assert reward.calibration([[1000.0]])[0][2] == 1  # a confidence of exactly 1 falls into the last bin


def test_demonstrations_score_zero_after_normalising(data, encoding):
    torch.manual_seed(0)
    model = ScalarModel(GPTConfig(2, 2, 16, 64, encoding.n_vocab)).eval()
    rankings = [ids for ids, _ in some_rankings(random.Random(7), [5])[0]]
    before = score_rows(model, rankings)
    reward.normalise(model, config(data, "unused"), encoding, CPU)
    after = score_rows(model, rankings)
    assert model.bias != 0
    for a, b in zip(before, after):
        assert b - after[0] == pytest.approx(a - before[0], abs=1e-5)
    assert mean_demonstration(model, data, encoding) == pytest.approx(0, abs=1e-5)
    reward.normalise(model, config(data, "unused"), encoding, CPU)  # once more changes nothing
    assert score_rows(model, rankings) == pytest.approx(after, abs=1e-5)


@torch.no_grad()
def mean_demonstration(model, data, encoding):
    scores = []
    for record in read_demonstrations(data, "train"):
        ids = encoding.encode_ordinary(record["prompt"]) + encoding.encode_ordinary(record["completion"])
        scores.append(model.score(*pad([ids + [encoding.eot_token]])).item())
    return sum(scores) / len(scores)


# ---------------------------------------------------------------------------------------------------- from end to end


@pytest.mark.parametrize("shuffle_pairs", [False, True])
def test_from_given_comparisons_to_a_reward_model(data, run, tokenizer, encoding, shuffle_pairs):
    (run / "reward.pt").unlink()
    reward.main(config(data, run, learning_rate=1e-2, epochs=6, shuffle_pairs=shuffle_pairs))
    model, _, checkpoint = load_checkpoint(run / "reward.pt", "scalar", tokenizer=tokenizer)
    assert mean_demonstration(model, data, encoding) == pytest.approx(0, abs=1e-4)
    results = checkpoint["results"]["training"]
    assert results["accuracy"][0] > 0.9, "new prompts, same obvious preference"
    assert results["agreement"] == 1.0
    assert results["ties"] == pytest.approx(1 / 3) and results["pairs"] == 3 * 2 * 6
    records = [json.loads(line) for line in open(run / "reward.jsonl")]
    assert records[0]["loss"] < 1 and records[-2]["loss"] < 0.3 and "final" in records[-1]
    assert {"step", "epoch", "loss", "lr", "train_accuracy", "accuracy_training"} == set(records[0])
    assert not (run / "comparisons.jsonl").exists(), "given rankings are used as they are"


def test_groups_of_labelers_are_kept_apart(data, run, tmp_path):
    """Only training labelers are learned from; held-out labelers are measured."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.iterdir():
        if path.name != "comparisons.jsonl":
            (folder / path.name).symlink_to(path)
    records = read_comparisons(data / "comparisons.jsonl")
    opposite = [r | {"ranks": [1, 2, 1], "group": "held_out"} for r in records]
    write_jsonl(folder / "comparisons.jsonl", opposite + records)
    reward.main(config(folder, run, learning_rate=1e-2, epochs=6))
    results = load_checkpoint(run / "reward.pt", "scalar")[2]["results"]
    assert results["training"]["accuracy"][0] > 0.9 and results["held_out"]["accuracy"][0] < 0.1


def test_collecting_rankings(data, run, tmp_path, tokenizer, encoding, monkeypatch):
    """K answers per prompt, equal texts once, ranked by training labelers, validation by two of each group."""
    import data.labelers as labelers

    def load_labelers(folder, group):
        shorter = lambda prompt, texts: [1 + sum(len(t) < len(text) for t in texts) for text in texts]
        return [SimpleNamespace(name=f"{group}-{i}", group=group, rank=shorter) for i in range(3)]

    monkeypatch.setattr(labelers, "load_labelers", load_labelers)
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.iterdir():
        if path.name != "comparisons.jsonl":
            (folder / path.name).symlink_to(path)
    write_jsonl(folder / "prefixes.jsonl", [{"prefix": "Say.\nThe cat.\n\n"}])
    cfg = config(folder, run, prompts=7, valid_prompts=3, k_min=4, k_max=6, max_new_tokens=6)
    records = reward.collect(cfg, run, tokenizer, encoding, CPU)
    assert records == read_comparisons(run / "comparisons.jsonl")
    train, valid = ([r for r in records if r["split"] == split] for split in ("train", "valid"))
    assert len(train) == 7 and len({r["prompt"] for r in train}) == 7
    assert len(valid) == 3 * 4 and len({r["prompt"] for r in valid}) == 3
    for r in records:
        K = len(r["completions"])
        assert 2 <= K <= 6 and K == len(r["ranks"]) == len(r["ended"]) == len(set(r["completions"]))
        assert min(r["ranks"]) == 1
    assert {r["group"] for r in train} == {"training"}
    for prompt in {r["prompt"] for r in valid}:
        who = sorted(r["labeler"] for r in valid if r["prompt"] == prompt)
        assert len(set(who)) == 4 and [w[0] for w in who] == ["h", "h", "t", "t"]


def test_rankings_without_a_difference_are_refused(data, run, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.iterdir():
        if path.name != "comparisons.jsonl":
            (folder / path.name).symlink_to(path)
    tied = [r | {"ranks": [1, 1, 1]} for r in read_comparisons(data / "comparisons.jsonl")]
    write_jsonl(folder / "comparisons.jsonl", tied)
    with pytest.raises(BadInput, match="do not tie"):
        reward.main(config(folder, run))


@pytest.mark.parametrize("batch_size", [4, 1000], ids=["on the way", "in the last step"])
def test_divergence_stops_the_run(data, run, batch_size):
    (run / "reward.pt").unlink()
    with pytest.raises(BadInput, match="learning_rate"):
        reward.main(config(data, run, learning_rate=1e30, epochs=1, batch_size=batch_size))
    assert not (run / "reward.pt").exists(), "broken weights are not saved"


BAD = [
    ("k_min", 1),
    ("k_max", 3),
    ("epochs", 0),
    ("batch_size", 0),
    ("prompts", 0),
    ("valid_prompts", -1),
    ("eval_every", 0),
    ("max_new_tokens", 0),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        reward.main(config(data, run, **{flag: value}))
