"""Supervised fine-tuning: what carries loss, the pretraining mix, the epochs, and the choice among them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from runs import OptimizerSteps, assert_gradients, check_resuming, copy_of, records_of, same, weights_of

import sft
from core.batches import ShuffledBatches, generator
from core.checkpoint import load_checkpoint
from core.config import BadInput
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.text import pad_responses
from data.folder import Corpus, read_demonstrations, read_prompts
from model import GPT, GPTConfig, ScalarModel, lm_loss
from pretrain import corpus_loss

CFG = GPTConfig(2, 2, 16, 64, 300)
ROWS = [([5, 6, 7, 8, 9], 2), ([3, 4, 5], 1), ([1, 2, 3, 4, 5, 6, 7, 8], 7)]  # (prompt + response, prompt length)


def make(seed=0, spread=10):
    torch.manual_seed(seed)
    model = GPT(CFG).eval()
    model.transformer.wte.weight.data *= spread
    return model


def config(data, out, **changes):
    small = dict(data=str(data), out=str(out), epochs=2, batch_size=4, max_new_tokens=8, device="cpu", threads=1)
    return sft.Config(**small | changes)


@torch.no_grad()
def losses_by_hand(model, rows):
    """-log p of every response token, each computed from its prefix alone. -> one list per row"""
    losses = []
    for ids, n in rows:
        losses.append([])
        for t in range(n, len(ids)):
            logits = model.unembed(model(torch.tensor([ids[:t]])))[0, -1].tolist()
            losses[-1].append(math.log(sum(math.exp(x) for x in logits)) - logits[ids[t]])
    return losses


# ---------------------------------------------------------------------------------------------------- the loss


def test_only_the_response_carries_loss():
    model = make()
    tokens, mask = pad_responses(ROWS, "cpu")
    tokens[1, 3:], tokens[0, 5:] = 7, 299  # whatever stands in the padding
    losses = sft.sft_loss(model, tokens, mask)
    for row, ((ids, n), want) in enumerate(zip(ROWS, losses_by_hand(model, ROWS))):
        assert losses[row, n : len(ids)].tolist() == pytest.approx(want, abs=1e-4)
        assert losses[row, :n].tolist() == [0] * n and not losses[row, len(ids) :].any()
    assert sft.response_tokens(ROWS) == 3 + 2 + 1


def test_held_out_loss_counts_every_token_once_and_without_dropout():
    torch.manual_seed(0)
    model = GPT(replace(CFG, dropout=0.5)).train()
    model.transformer.wte.weight.data *= 10
    got = [sft.demonstration_loss(model, ROWS, "cpu", batch_size) for batch_size in (1, 2, 64)]
    assert not model.training
    want = sum(losses_by_hand(model, ROWS), [])
    assert got == pytest.approx([sum(want) / 6] * 3, abs=1e-4)


def test_demonstrations_end_with_end_of_text_and_long_ones_are_dropped(tokenizer, capsys):
    records = [{"prompt": "The cat", "completion": " is red."}, {"prompt": "A dog " * 9, "completion": " no."}]
    rows = sft.encode_demonstrations(records, tokenizer, 64)
    assert len(rows) == 2 and capsys.readouterr().out == ""
    for record, (ids, n) in zip(records, rows):
        assert tokenizer.decode(ids[:n]) == record["prompt"]
        assert tokenizer.decode(ids[n:-1]) == record["completion"]
        assert ids[-1] == tokenizer.eot_token
    short, long = (len(ids) for ids, _ in rows)
    assert sft.encode_demonstrations(records, tokenizer, long) == rows
    assert sft.encode_demonstrations(records, tokenizer, long - 1) == rows[:1]
    assert "dropped 1 of 2" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no demonstration fits"):
        sft.encode_demonstrations(records, tokenizer, short - 1)


def test_one_batch_overfits():
    model = make(spread=1)
    optimizer = adamw(model, 0.01)
    for _ in range(60):
        loss = sft.sft_loss(model, *pad_responses(ROWS, "cpu")).sum() / sft.response_tokens(ROWS)
        loss.backward()
        optimizer_step(optimizer, model, 0.01, 1.0)
    assert loss.item() < 0.1


# ---------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("micro_batch_size, mix", [(0, 0.0), (0, 0.5), (3, 0.1), (1, 0.5), (0, 1.0)])
def test_every_step_takes_the_gradient_of_the_mixed_loss(data, run, tokenizer, monkeypatch, micro_batch_size, mix):
    """(1 - m) times the mean loss per response token of the whole batch, plus m times that per pretraining token."""
    steps = OptimizerSteps(monkeypatch, sft)
    sft.main(config(data, run, pretrain_mix=mix, dropout=0.0, epochs=2, micro_batch_size=micro_batch_size))

    model, _, _ = load_checkpoint(run / "base.pt", "policy")
    optimizer, corpus, seen = adamw(model, 1.0), Corpus(data, "train"), []
    rows = sft.encode_demonstrations(read_demonstrations(data, "train"), tokenizer, 64)
    batches = ShuffledBatches([len(ids) for ids, _ in rows], 4, 0)
    records = records_of(run / "sft.jsonl")
    for step, (_, gradients, rate) in enumerate(steps.calls):
        batch = [rows[i] for i in batches[step]]
        seen.append(batches[step])
        losses = [sft.sft_loss(model, *pad_responses([row], "cpu"))[0, row[1] :] for row in batch]  # one by one
        loss = torch.cat(losses).mean()
        assert records[step]["loss"] == pytest.approx(loss.item(), abs=1e-4)
        windows = corpus.windows(max(1, round(4 * mix)), 64, generator(0, "pretraining", step))
        mixed = (1 - mix) * loss + mix * lm_loss(model, windows).mean()
        assert_gradients(gradients, mixed, model)
        assert rate == pytest.approx(cosine_to_tenth(step, len(steps.calls), 4e-4))
        mixed.backward()
        optimizer_step(optimizer, model, rate, 1.0)
    n = len(batches)
    assert len(steps.calls) == len(records) == 2 * n == 2 * math.ceil(len(rows) / 4)
    for epoch in (seen[:n], seen[n:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(len(rows))), "every demonstration once"
    assert seen[:n] != seen[n:], "shuffled anew"


def test_dropout_is_on_while_training_and_only_then(data, run, monkeypatch):
    seen, sft_loss = set(), sft.sft_loss

    def spy(model, *batch):
        seen.add((torch.is_grad_enabled(), model.training, model.transformer.dropout.p))
        return sft_loss(model, *batch)

    monkeypatch.setattr(sft, "sft_loss", spy)
    sft.main(config(data, run, dropout=0.25, epochs=2))
    assert seen == {(True, True, 0.25), (False, False, 0.25)}


def test_train_then_ppo_init_then_choose(data, run, tokenizer, tokenizer_spec, monkeypatch, capsys):
    (run / "sft.epoch-9.pt").write_text("of an earlier run")
    (run / "ppo_init.pt").unlink()
    sft.main(config(data, run, epochs=3, learning_rate=1e-2))
    assert "next: python sft.py --name ppo_init --epochs 2 --pretrain_mix 0.1" in capsys.readouterr().out
    assert {p.name for p in run.glob("sft*.pt")} == {"sft.pt", "sft.epoch-1.pt", "sft.epoch-2.pt", "sft.epoch-3.pt"}
    paths = [run / f"sft.epoch-{epoch}.pt" for epoch in (1, 2, 3)]
    epochs = [load_checkpoint(path, "policy", tokenizer_spec=tokenizer_spec) for path in paths]
    last, _, checkpoint = load_checkpoint(run / "sft.pt", "policy")
    weights = [weights_of(path) for path in paths]
    assert same(checkpoint["model"], weights[2]) and not same(weights[0], weights[1])
    per_epoch = math.ceil(len(read_demonstrations(data, "train")) / 4)
    assert [e["step"] for _, _, e in epochs] == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    assert checkpoint["step"] == 3 * per_epoch

    records = records_of(run / "sft.jsonl")
    assert [r["step"] for r in records] == list(range(1, 3 * per_epoch + 1))
    always = {"step", "loss", "learning_rate", "grad_norm"}
    ends = [r for r in records if "epoch" in r]
    assert [(r["epoch"], r["step"]) for r in ends] == [(i, i * per_epoch) for i in (1, 2, 3)]
    assert all(set(r) == always | {"epoch", "valid_loss", "corpus_loss"} for r in ends)
    assert all(set(r) == always for r in records if "epoch" not in r)
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    valid = sft.encode_demonstrations(read_demonstrations(data, "valid"), tokenizer, 64)
    for (model, _, kept), record in zip(epochs, ends):
        loss = sft.demonstration_loss(model, valid, "cpu")
        assert [record["valid_loss"], kept["valid_loss"]] == pytest.approx([loss] * 2, abs=1e-5)
        assert record["corpus_loss"] == pytest.approx(corpus_loss(model, Corpus(data, "valid"), 63, 4), abs=1e-5)

    sft.main(config(data, run, name="ppo_init", epochs=1, pretrain_mix=0.1))
    init, _, made = load_checkpoint(run / "ppo_init.pt", "policy", tokenizer_spec=tokenizer_spec)
    assert not same(made["model"], checkpoint["model"]) and made["config"]["pretrain_mix"] == 0.1
    assert (run / "ppo_init.jsonl").exists() and same(weights_of(run / "sft.pt"), checkpoint["model"])
    assert len(list(run.glob("sft.epoch-*.pt"))) == 3, "of another name: not this run's to remove"

    sft.main(config(data, run, epochs=0, reward_model=str(run / "reward.pt"), choose_prompts=3))
    best = load_checkpoint(run / "sft_best.pt", "policy", tokenizer_spec=tokenizer_spec)[2]
    assert any(same(best["model"], kept) for kept in weights) and math.isfinite(best["score"])
    scores, asked = iter([0.1, 0.9, 0.5]), []

    def mean_sample_score(model, reward_model, tokenizer, prompts, cfg):
        asked.append(prompts)
        return next(scores)

    monkeypatch.setattr(sft, "mean_sample_score", mean_sample_score)
    sft.main(config(data, run, epochs=0, reward_model=str(run / "reward.pt"), choose_prompts=3))
    best = torch.load(run / "sft_best.pt", weights_only=True)
    assert same(best["model"], weights[1]) and best["score"] == 0.9 and best["step"] == 2 * per_epoch
    assert best["valid_loss"] == epochs[1][2]["valid_loss"]
    assert asked == [[r["prompt"] for r in read_prompts(data, "valid")][:3]] * 3, "the same prompts for every epoch"


def test_the_tenth_epoch_comes_after_the_ninth(data, run, monkeypatch):
    asked = []
    for epoch in (10, 9, 2):
        content = torch.load(run / "sft.pt", weights_only=True) | {"valid_loss": 1.0, "step": epoch}
        torch.save(content, run / f"x.epoch-{epoch}.pt")
    scores = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(sft, "mean_sample_score", lambda *args: asked.append(1) or next(scores))
    sft.main(config(data, run, name="x", epochs=0, reward_model=str(run / "reward.pt")))
    assert torch.load(run / "x_best.pt", weights_only=True)["step"] == 10 and len(asked) == 3


def test_reward_is_of_prompt_and_answer_as_the_reward_model_was_trained(tokenizer, monkeypatch):
    """Prompt and completion are encoded apart, as in reward.py, and end-of-text follows only what ended."""
    prompts = ["What does the c", "Say it: t"]  # joined first, "c" + "at" might become one token
    answers = [("at is red.", True), ("he cat", False)]
    seen = []

    def score(tokens, lengths):
        seen.extend(row[:n] for row, n in zip(tokens.tolist(), lengths.tolist()))
        return lengths.float()

    monkeypatch.setattr(sft, "respond", lambda *args, **kwargs: answers)
    judge = ScalarModel(CFG)
    judge.score = score
    mean = sft.mean_sample_score(make(), judge, tokenizer, prompts, sft.Config())
    apart = [tokenizer.encode_ordinary(p) + tokenizer.encode_ordinary(text) for p, (text, _) in zip(prompts, answers)]
    joined = [tokenizer.encode_ordinary(p + text) for p, (text, _) in zip(prompts, answers)]
    assert apart != joined, "an example where it matters"
    want = [apart[0] + [tokenizer.eot_token], apart[1]]
    assert sorted(seen) == sorted(want)
    assert mean == pytest.approx(sum(map(len, want)) / 2)


def test_every_epoch_is_sampled_with_the_same_random_numbers(tokenizer, monkeypatch):
    drawn = []

    def respond(model, tokenizer, prompts, max_new_tokens, generator):
        drawn.append(torch.rand(3, generator=generator).tolist())
        return [("A cat.", True) for _ in prompts]

    monkeypatch.setattr(sft, "respond", respond)
    for _ in range(2):
        sft.mean_sample_score(
            make(), ScalarModel(CFG), tokenizer, ["The"], SimpleNamespace(seed=4, max_new_tokens=8, dtype="float32")
        )
    assert drawn[0] == drawn[1]


def test_same_seed_same_model_and_another_seed_another(data, run):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        sft.main(config(data, run, name=name, epochs=1, seed=seed))
    one, two, other = (weights_of(run / f"{name}.pt") for name in ("one", "two", "other"))
    assert same(one, two) and not same(one, other)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(data, run, tmp_path_factory, monkeypatch, capsys):
    """With dropout, whose masks come from PyTorch's own random numbers; the kept epochs are the same, too."""
    cfg, other = (
        config(data, run, epochs=8, batch_size=3, dropout=0.3, pretrain_mix=0.3),
        copy_of(run, tmp_path_factory),
    )
    check_resuming(sft, cfg, "sft", "sft.jsonl", other, monkeypatch, capsys, latest=15)
    for epoch in range(1, 9):
        assert same(weights_of(run / f"sft.epoch-{epoch}.pt"), weights_of(other / f"sft.epoch-{epoch}.pt"))


@pytest.mark.parametrize("changes", [{}, {"epochs": 1, "batch_size": 1000}], ids=["on the way", "in the last step"])
def test_divergence_stops_the_run(data, run, changes):
    with pytest.raises(BadInput, match="learning_rate"):
        sft.main(config(data, run, name="x", learning_rate=1e30, **changes))
    assert not (run / "x.pt").exists(), "broken weights are not saved"


BAD = [
    ("epochs", -1),
    ("batch_size", 0),
    ("pretrain_mix", 1.1),
    ("pretrain_mix", -0.1),
    ("dropout", 1.1),
    ("max_new_tokens", 0),
    ("choose_prompts", 0),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        sft.main(config(data, run, **{flag: value}))


def test_choosing_needs_a_reward_model_and_kept_epochs(data, run):
    with pytest.raises(BadInput, match="--reward_model"):
        sft.main(config(data, run, epochs=0))
    with pytest.raises(BadInput, match="epoch"):
        sft.main(config(data, run, epochs=0, reward_model=str(run / "reward.pt")))
    with pytest.raises(BadInput, match="scalar model is needed"):
        sft.main(config(data, run, epochs=0, reward_model=str(run / "sft.pt")))
    with pytest.raises(BadInput, match="base.pt: no such checkpoint"):
        sft.main(config(data, run / "elsewhere"))
