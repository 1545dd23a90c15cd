"""Pretraining: the loss, the examples, the learning rate, and the script from end to end."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import OptimizerSteps, assert_gradients, check_resuming, copy_of, records_of, same, weights_of

import pretrain
from core.batches import generator
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import BadInput
from core.optim import adamw, optimizer_step
from data.folder import Corpus, corpus_dtype
from model import GPT, GPTConfig, lm_loss

CFG = GPTConfig(2, 2, 16, 64, 300)


def config(data, out, **changes):
    small = dict(size="village", n_layer=2, n_head=2, n_embd=16, block_size=64, steps=4, batch_size=4, window=16)
    small |= dict(data=str(data), out=str(out), warmup=2, eval_every=2, device="cpu", threads=1)
    return pretrain.Config(**small | changes)


# ---------------------------------------------------------------------------------------------------- the loss


def test_an_untrained_model_knows_nothing():
    torch.manual_seed(0)
    loss = lm_loss(GPT(CFG), torch.randint(300, (8, 33)))
    assert loss.shape == (8, 32) and loss.mean().item() == pytest.approx(math.log(300), abs=0.05)


@torch.no_grad()
def test_loss_of_every_token_matches_a_loop():
    torch.manual_seed(0)
    model, windows = GPT(CFG).eval(), torch.randint(300, (3, 8))
    model.transformer.wte.weight *= 20
    losses = lm_loss(model, windows)
    for row, ids in enumerate(windows):
        for t in range(1, 8):
            logits = model.unembed(model(ids[None, :t]))[0, -1].tolist()
            want = math.log(sum(math.exp(x) for x in logits)) - logits[ids[t]]
            assert losses[row, t - 1].item() == pytest.approx(want, abs=1e-4)


def test_one_batch_overfits():
    torch.manual_seed(0)
    model, windows = GPT(CFG), torch.randint(300, (2, 9))
    optimizer = adamw(model, 0.01)
    for _ in range(120):
        loss = lm_loss(model, windows).mean()
        loss.backward()
        optimizer_step(optimizer, model, 0.01, 1.0)
    assert loss.item() < 0.1


# ---------------------------------------------------------------------------------------------------- the corpus


def test_big_vocabularies_take_four_bytes():
    assert corpus_dtype(65536) is np.uint16 and corpus_dtype(65537) is np.uint32


def test_corpus_loss_counts_every_token_once_and_without_dropout(data, tiny):
    torch.manual_seed(0)
    model, corpus = GPT(replace(tiny, dropout=0.5)).train(), Corpus(data, "valid")
    model.transformer.wte.weight.data *= 20
    got = pretrain.corpus_loss(model, corpus, 8, batches=1, batch_size=5)
    assert not model.training
    windows = corpus.fixed_windows(9, 5)
    want = sum(lm_loss(model, row[None]).mean().item() for row in windows) / 5
    assert got == pytest.approx(want, rel=1e-5)
    uneven = pretrain.corpus_loss(model, corpus, 8, batches=5, batch_size=1)  # other batches, the same five windows
    assert uneven == pytest.approx(want, rel=1e-5)
    assert pretrain.corpus_loss(model, corpus, batches=1) == pretrain.corpus_loss(model, corpus, 63, batches=1), (
        "all it can"
    )


# ---------------------------------------------------------------------------------------------------- rate, shape


def test_learning_rate():
    cfg = pretrain.Config(steps=100, warmup=10, learning_rate=2.0)
    rates = [pretrain.learning_rate(step, cfg) for step in range(101)]
    for step in range(10):
        assert rates[step] == pytest.approx(2.0 * (step + 1) / 10)
    for step in range(10, 101):
        assert rates[step] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2)
    assert rates[10] == pytest.approx(2.0) and rates[55] == pytest.approx(1.1) and rates[100] == pytest.approx(0.2)
    assert pretrain.learning_rate(0, replace(cfg, warmup=0)) == 2.0
    assert pretrain.learning_rate(99, replace(cfg, warmup=100)) == pytest.approx(2.0), "nothing but warm-up"


def test_the_shape_of_the_model():
    medium = pretrain.shape_of_model(pretrain.Config(size="gpt2-medium", n_layer=3, dropout=0.1), 300)
    assert medium == GPTConfig(3, 16, 1024, 1024, 300, 0.1)
    with pytest.raises(BadInput, match="--n_embd 30: must be a multiple of --n_head 4"):
        pretrain.shape_of_model(pretrain.Config(n_embd=30), 300)
    with pytest.raises(BadInput, match="--init"):
        pretrain.shape_of_model(pretrain.Config(init="base.pt", n_layer=3), 300)


# ---------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("micro_batch_size", [0, 1, 3])
def test_the_loop(data, tmp_path, tokenizer_spec, tiny, monkeypatch, micro_batch_size):
    """Every step: its own examples, the gradient of their mean loss whatever the micro-batches, its learning rate.

    In the third step of three the examples fill the context of 64 tokens, in the others they have 16.
    """
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "start.pt", GPT(tiny), tokenizer_spec, {}, 0)
    cfg = config(data, tmp_path, n_layer=0, n_head=0, n_embd=0, block_size=0, steps=3, learning_rate=0.01)
    cfg = replace(cfg, long_every=3, name="more", init=str(tmp_path / "start.pt"), micro_batch_size=micro_batch_size)
    steps = OptimizerSteps(monkeypatch, pretrain)
    pretrain.main(cfg)

    model, _, _ = load_checkpoint(cfg.init, "policy")
    optimizer, corpus = adamw(model, 0.01, cfg.weight_decay), Corpus(data, "train")
    records, losses = records_of(tmp_path / "more.jsonl"), []
    for step, (_, gradients, rate) in enumerate(steps.calls):
        count, length = [(16, 17), (16, 17), (4, 65)][step]
        windows = corpus.windows(count, length, generator(cfg.seed, "pretraining", step))
        loss = lm_loss(model, windows).mean()
        assert_gradients(gradients, loss, model)
        loss.backward()
        norm = optimizer_step(optimizer, model, rate, 1.0)
        assert rate == pytest.approx(pretrain.learning_rate(step, cfg))
        losses.append(loss.item())
        assert records[step]["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert records[step]["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert len(losses) == 3 and len(set(losses)) == 3
    for name, weight in weights_of(tmp_path / "more.pt").items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("window, long_every, long", [(16, 4, (4, 8)), (16, 1, range(1, 10)), (0, 4, range(1, 10))])
def test_every_so_many_steps_the_examples_fill_the_context(data, tmp_path, monkeypatch, window, long_every, long):
    shapes, draw = [], Corpus.windows

    def spy(corpus, *args):
        drawn = draw(corpus, *args)
        shapes.append(tuple(drawn.shape))
        return drawn

    monkeypatch.setattr(Corpus, "windows", spy)
    pretrain.main(config(data, tmp_path, steps=9, batch_size=3, window=window, long_every=long_every))
    assert shapes == [(3, 65) if step in long else (12, 17) for step in range(1, 10)], "about as many tokens"


def test_from_end_to_end(tmp_path, data, tokenizer, tokenizer_spec, capsys):
    pretrain.main(config(data, tmp_path, steps=5, dropout=0.1))
    model, _, checkpoint = load_checkpoint(tmp_path / "base.pt", "policy", tokenizer_spec=tokenizer_spec)
    V = tokenizer.n_vocab
    assert model.config == GPTConfig(2, 2, 16, 64, V)
    assert checkpoint["model_config"]["dropout"] == 0.1
    assert checkpoint["step"] == 5 and checkpoint["config"]["batch_size"] == 4
    records = records_of(tmp_path / "pretrain.jsonl")
    always = {"step", "loss", "learning_rate", "grad_norm"}
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5]
    assert [set(r) - always for r in records] == [set(), {"valid_loss"}, set(), {"valid_loss"}, {"valid_loss"}]
    assert all(always <= set(r) for r in records)
    assert records[0]["loss"] == pytest.approx(math.log(V), abs=0.05)
    assert records[-1]["valid_loss"] == pytest.approx(
        pretrain.corpus_loss(model, Corpus(data, "valid"), 64, 4), abs=1e-5
    ), "of examples that fill the context"
    assert "next: python sft.py" in capsys.readouterr().out


def test_it_learns_and_evaluating_more_often_changes_nothing(tmp_path, data):
    for name, every in (("often", 1), ("rarely", 30)):
        pretrain.main(config(data, tmp_path / name, steps=30, eval_every=every, learning_rate=1e-2, dropout=0.1))
    assert same(weights_of(tmp_path / "often" / "base.pt"), weights_of(tmp_path / "rarely" / "base.pt"))
    records = records_of(tmp_path / "often" / "pretrain.jsonl")
    assert records[-1]["valid_loss"] < records[0]["valid_loss"] - 1


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(data, run, tmp_path_factory, monkeypatch, capsys):
    (run / "base.pt").unlink()
    cfg, other = config(data, run, steps=60, eval_every=7), copy_of(run, tmp_path_factory)
    check_resuming(pretrain, cfg, "base", "pretrain.jsonl", other, monkeypatch, capsys)


@pytest.mark.parametrize("steps", [4, 1], ids=["on the way", "in the last step"])
def test_divergence_stops_the_run(tmp_path, data, steps):
    with pytest.raises(BadInput, match="learning_rate"):
        pretrain.main(config(data, tmp_path, steps=steps, learning_rate=1e30, eval_every=1))
    assert not (tmp_path / "base.pt").exists(), "broken weights are not saved"


BAD = [
    ("size", "huge"),
    ("steps", 0),
    ("batch_size", 0),
    ("window", -1),
    ("long_every", 0),
    ("eval_every", 0),
    ("dropout", 1.5),
    ("learning_rate", 0.0),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(tmp_path, data, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        pretrain.main(config(data, tmp_path, **{flag: value}))


def test_missing_data_folder(tmp_path):
    with pytest.raises(BadInput, match="nowhere"):
        pretrain.main(config(tmp_path / "nowhere", tmp_path))
