"""Supervised fine-tuning: what carries loss, the schedule, the mix, and the choice among epochs."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import sft
from model import GPT, GPTConfig, load_checkpoint
from plumbing import BadInput, adamw, batches_by_length, cosine_to_tenth, generator, optimizer_step
from pretrain import lm_loss

CFG = GPTConfig(2, 2, 16, 64, 300)
CPU = torch.device("cpu")
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
    """-log p of every response token, each computed from its prefix alone."""
    losses = []
    for ids, n in rows:
        for t in range(n, len(ids)):
            logits = model.unembed(model(torch.tensor([ids[:t]])))[0, -1].tolist()
            losses.append(math.log(sum(math.exp(x) for x in logits)) - logits[ids[t]])
    return losses


# ---------------------------------------------------------------------------------------------------- the loss


def test_only_the_response_carries_loss():
    model = make()
    loss, want = sft.sft_loss(model, ROWS, CPU), losses_by_hand(model, ROWS)
    assert sft.response_tokens(ROWS) == len(want) == 3 + 2 + 1
    assert loss.item() == pytest.approx(sum(want) / 6, abs=1e-4)


def test_padding_of_the_others_changes_nothing():
    model = make()
    longer = ROWS + [(list(range(1, 60)), 50)]
    parts = (ROWS, longer[3:], longer)
    sums = [sft.sft_loss(model, rows, CPU).item() * sft.response_tokens(rows) for rows in parts]
    assert sums[0] + sums[1] == pytest.approx(sums[2], rel=1e-5)
    n = sft.response_tokens(longer)  # micro-batches: each divided by the tokens of the whole
    shares = [sft.sft_loss(model, rows, CPU, n).item() for rows in parts]
    assert shares[0] + shares[1] == pytest.approx(shares[2], rel=1e-5)


def test_held_out_loss_counts_every_token_once():
    model = make()
    want = losses_by_hand(model, ROWS)
    for batch_size in (1, 2, 64):
        assert sft.demonstration_loss(model, ROWS, CPU, batch_size) == pytest.approx(sum(want) / 6, abs=1e-4)


def test_demonstrations_end_with_end_of_text_and_long_ones_are_dropped(encoding, capsys):
    records = [{"prompt": "The cat", "completion": " is red."}, {"prompt": "A dog " * 9, "completion": " no."}]
    rows = sft.encode_demonstrations(records, encoding, 64)
    assert len(rows) == 2 and capsys.readouterr().out == ""
    for record, (ids, n) in zip(records, rows):
        assert encoding.decode(ids[:n]) == record["prompt"]
        assert encoding.decode(ids[n:-1]) == record["completion"]
        assert ids[-1] == encoding.eot_token
    short, long = (len(ids) for ids, _ in rows)
    assert sft.encode_demonstrations(records, encoding, long) == rows
    assert sft.encode_demonstrations(records, encoding, long - 1) == rows[:1]
    assert "dropped 1 of 2" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no demonstration fits"):
        sft.encode_demonstrations(records, encoding, short - 1)


def test_one_batch_overfits():
    model = make(spread=1)
    optimizer = adamw(model, 0.01)
    for _ in range(60):
        loss = sft.sft_loss(model, ROWS, CPU)
        loss.backward()
        optimizer_step(optimizer, model, 0.01, 1.0)
    assert loss.item() < 0.1


# ---------------------------------------------------------------------------------------------------- schedule, batches


def test_cosine_goes_from_the_peak_to_a_tenth():
    rates = [cosine_to_tenth(step, 80, 3.0) for step in range(81)]
    assert rates[0] == pytest.approx(3.0) and rates[40] == pytest.approx(1.65) and rates[80] == pytest.approx(0.3)
    assert rates == sorted(rates, reverse=True)
    assert cosine_to_tenth(100, 80, 3.0) == pytest.approx(0.3)


@pytest.mark.parametrize("n, size", [(1, 4), (7, 3), (100, 2), (64, 4), (65, 4)])
def test_batches_hold_every_index_once(n, size):
    lengths = torch.randint(50, (n,), generator=generator(0)).tolist()
    batches = batches_by_length(lengths, size, generator(1))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert max(map(len, batches)) <= size and len(batches) == -(-n // size)
    assert batches == batches_by_length(lengths, size, generator(1))


def test_batches_save_padding_and_stay_random():
    lengths = torch.randint(50, (128,), generator=generator(0)).tolist()
    batches = batches_by_length(lengths, 8, generator(1))
    padding = sum(len(b) * max(lengths[i] for i in b) - sum(lengths[i] for i in b) for b in batches)
    parts = [range(i, i + 8) for i in range(0, 128, 8)]
    plain = sum(8 * max(lengths[i] for i in b) - sum(lengths[i] for i in b) for b in parts)
    assert padding < 0.3 * plain
    means = [sum(lengths[i] for i in b) for b in batches]
    assert means != sorted(means) and batches != batches_by_length(lengths, 8, generator(2))


# ---------------------------------------------------------------------------------------------------- pretraining mix


@pytest.mark.parametrize("mix", [0.0, 0.1, 0.5])
def test_the_mix_weighs_the_two_losses(data, run, tokenizer, monkeypatch, mix):
    """The first step's gradient is (1 - m) times the demonstrations' plus m times the pretraining's."""
    seen, steps = {"sft": [], "lm": []}, []

    def spy_sft(model, rows, device, count=None):
        if model.training:
            seen["sft"].append(rows)
        return sft_loss(model, rows, device, count)

    def spy_lm(model, windows):
        if model.training:
            seen["lm"].append(windows)
        return lm_loss(model, windows)

    def spy_step(optimizer, model, *rest):
        steps.append([p.grad.clone() for p in model.parameters()])
        return optimizer_step(optimizer, model, *rest)

    sft_loss = sft.sft_loss
    monkeypatch.setattr(sft, "sft_loss", spy_sft)
    monkeypatch.setattr(sft, "lm_loss", spy_lm)
    monkeypatch.setattr(sft, "optimizer_step", spy_step)
    sft.main(config(data, run, pretrain_mix=mix, dropout=0.0, epochs=1))

    model, _, _ = load_checkpoint(run / "base.pt", "policy")
    loss = (1 - mix) * sft_loss(model, seen["sft"][0], CPU)
    if mix:
        loss = loss + mix * lm_loss(model, seen["lm"][0])
        assert len(seen["lm"]) == len(steps)
    else:
        assert not seen["lm"]
    for got, want in zip(steps[0], torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- from end to end


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_train_then_ppo_init_then_choose(data, run, tokenizer, monkeypatch):
    (run / "sft.epoch-9.pt").write_text("of an earlier run")
    (run / "ppo_init.pt").unlink()
    sft.main(config(data, run, epochs=3, learning_rate=1e-2))
    assert {p.name for p in run.glob("sft*.pt")} == {"sft.pt", "sft.epoch-1.pt", "sft.epoch-2.pt", "sft.epoch-3.pt"}
    epochs = [load_checkpoint(run / f"sft.epoch-{i}.pt", "policy", tokenizer=tokenizer)[0] for i in (1, 2, 3)]
    last, _, checkpoint = load_checkpoint(run / "sft.pt", "policy")
    assert same(last, epochs[2]) and not same(epochs[0], epochs[1])
    demonstrations = [json.loads(line) for line in open(data / "demonstrations.jsonl")]
    n = sum(r["split"] == "train" for r in demonstrations)
    assert checkpoint["step"] == 3 * math.ceil(n / 4)
    records = [json.loads(line) for line in open(run / "sft.jsonl")]
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert set(records[0]) == {"epoch", "step", "loss", "valid_loss", "corpus_loss", "lr"}
    assert records[2]["loss"] < records[0]["loss"] - 0.5

    sft.main(config(data, run, name="ppo_init", epochs=1, pretrain_mix=0.1))
    init, _, checkpoint = load_checkpoint(run / "ppo_init.pt", "policy", tokenizer=tokenizer)
    assert not same(init, last) and checkpoint["config"]["pretrain_mix"] == 0.1
    assert (run / "ppo_init.jsonl").exists() and same(last, load_checkpoint(run / "sft.pt", "policy")[0])

    sft.main(config(data, run, epochs=0, reward_model=str(run / "reward.pt"), choose_prompts=3))
    best, _, checkpoint = load_checkpoint(run / "sft_best.pt", "policy", tokenizer=tokenizer)
    assert any(same(best, epoch) for epoch in epochs) and math.isfinite(checkpoint["reward"])
    scores = iter([0.1, 0.9, 0.5])
    monkeypatch.setattr(sft, "mean_reward", lambda *args: next(scores))
    sft.main(config(data, run, epochs=0, reward_model=str(run / "reward.pt")))
    best, _, checkpoint = load_checkpoint(run / "sft_best.pt", "policy")
    assert same(best, epochs[1]) and checkpoint["reward"] == 0.9 and checkpoint["step"] == 2 * math.ceil(n / 4)


def test_reward_is_of_prompt_and_answer_as_the_reward_model_was_trained(encoding, monkeypatch):
    """Prompt and completion are encoded apart, as in reward.py, and end-of-text follows only what ended."""
    prompts = ["What does the c", "Say it: t"]  # joined first, "c" + "at" might become one token
    answers = [("at is red.", True), ("he cat", False)]
    seen = []

    def score(tokens, lengths):
        seen.extend(row[:n] for row, n in zip(tokens.tolist(), lengths.tolist()))
        return lengths.float()

    monkeypatch.setattr(sft, "respond", lambda *args, **kwargs: answers)
    judge = SimpleNamespace(score=score, config=SimpleNamespace(block_size=64), bias=torch.zeros(()))
    mean = sft.mean_reward(make(), judge, encoding, prompts, sft.Config())
    want = [
        encoding.encode_ordinary(p) + encoding.encode_ordinary(a) + [encoding.eot_token] * ended
        for p, (a, ended) in zip(prompts, answers)
    ]
    assert any(w != encoding.encode_ordinary(p + a) + w[-1:] * e for w, p, (a, e) in zip(want, prompts, answers))
    assert mean == pytest.approx(sum(map(len, seen)) / 2)
    assert sorted(seen) == sorted(want)


def test_same_seed_same_model(data, run):
    for name in ("one", "two"):
        sft.main(config(data, run, name=name, epochs=1))
    assert same(load_checkpoint(run / "one.pt", "policy")[0], load_checkpoint(run / "two.pt", "policy")[0])


@pytest.mark.parametrize("rate", [1e30])
def test_divergence_stops_the_run(data, run, rate):
    with pytest.raises(BadInput, match="learning_rate"):
        sft.main(config(data, run, name="x", learning_rate=rate))
    assert not (run / "x.pt").exists()


def test_divergence_in_the_last_step_stops_the_run(data, run):
    with pytest.raises(BadInput, match="learning_rate"):
        sft.main(config(data, run, name="x", learning_rate=1e30, epochs=1, batch_size=1000))
    assert not (run / "x.pt").exists(), "broken weights are not saved"


BAD = [
    ("epochs", -1),
    ("batch_size", 0),
    ("pretrain_mix", 1.0),
    ("pretrain_mix", -0.1),
    ("dropout", 1.0),
    ("max_new_tokens", 0),
    ("choose_prompts", 0),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    changes = {"reward_model": str(run / "reward.pt")} if flag == "choose_prompts" else {}
    with pytest.raises(BadInput, match=f"--{flag}"):
        sft.main(config(data, run, **changes | {flag: value}))


def test_choosing_needs_a_reward_model_and_kept_epochs(data, run):
    with pytest.raises(BadInput, match="--reward_model"):
        sft.main(config(data, run, epochs=0))
    with pytest.raises(BadInput, match="epoch"):
        sft.main(config(data, run, epochs=0, reward_model=str(run / "reward.pt")))
    with pytest.raises(BadInput, match="scalar model is needed"):
        sft.main(config(data, run, epochs=0, reward_model=str(run / "sft.pt")))
    with pytest.raises(BadInput, match="base.pt: no such checkpoint"):
        sft.main(config(data, run / "elsewhere"))
