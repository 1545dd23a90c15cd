"""Checkpoints come back as they were saved; what is none of ours is refused in one line and runs no code."""

from dataclasses import dataclass

import pytest
import torch
from small_models import CFG, batch, make, shaken

from core.checkpoint import load_checkpoint, load_policy, load_scalar_model, save_checkpoint, settings_of
from core.config import BadInput, Training
from model import GPT, ScalarModel


def test_settings_are_those_that_the_config_has(tmp_path, tokenizer_spec):
    @dataclass
    class Config:
        n_embd: int = 0
        another: str = "x"

    save_checkpoint(tmp_path / "x.pt", make(GPT), tokenizer_spec, CFG, 7)
    assert settings_of(tmp_path / "x.pt", Config) == {"n_embd": 16}


@torch.no_grad()
@pytest.mark.parametrize("kind, name", [(GPT, "policy"), (ScalarModel, "scalar")])
def test_save_and_load_give_the_same_model(tmp_path, tokenizer_spec, kind, name):
    model = shaken(make(kind, dropout=0.4))
    save_checkpoint(tmp_path / "x.pt", model, tokenizer_spec, CFG, 7, extra=[1, 2.0, ("a", None)])
    again, tokenizer, checkpoint = load_checkpoint(tmp_path / "x.pt", name)
    tokens = batch()[0]
    assert torch.equal(model(tokens), again(tokens))
    assert not again.training and again.config.dropout == 0.0
    assert checkpoint["step"] == 7 and checkpoint["extra"] == [1, 2.0, ("a", None)]
    assert checkpoint["model_config"]["dropout"] == 0.4 and checkpoint["config"]["n_embd"] == 16
    assert checkpoint["tokenizer"] == tokenizer_spec and tokenizer.eot_token == len(tokenizer_spec["ranks"])
    again = load_checkpoint(tmp_path / "x.pt", name, dropout=0.2, tokenizer_spec=tokenizer_spec)[0]
    assert again.config.dropout == 0.2
    with pytest.raises(BadInput, match="x.pt.*another tokenizer"):
        load_checkpoint(tmp_path / "x.pt", name, tokenizer_spec=tokenizer_spec | {"name": "other"})
    with pytest.raises(BadInput, match=f"x.pt: holds a {name} model"):
        load_checkpoint(tmp_path / "x.pt", "scalar" if name == "policy" else "policy")


@torch.no_grad()
def test_models_come_ready_to_be_used(run):
    tokens = torch.randint(200, (2, 9))
    policy = load_policy(run / "base.pt", Training(), "cpu", dropout=0.3)
    assert isinstance(policy, GPT) and policy.config.dropout == 0.3 and not policy.training
    scalar = load_scalar_model(run / "reward.pt", Training(), "cpu")
    assert isinstance(scalar, ScalarModel) and scalar.config.dropout == 0 and not scalar.training
    half = load_policy(run / "base.pt", Training(dtype="bfloat16"), "cpu")
    assert not torch.equal(half(tokens), policy(tokens))
    torch.testing.assert_close(half(tokens).float(), policy(tokens), atol=0.1, rtol=0.1)


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text", "empty", "foreign", "list", "missing"):
        with pytest.raises(BadInput, match=f"{name}.pt: (no such|not a) checkpoint") as problem:
            load_checkpoint(tmp_path / f"{name}.pt", "policy")
        assert "\n" not in str(problem.value)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(BadInput, match="folder.pt: is a folder"):
        load_checkpoint(tmp_path / "folder.pt", "scalar")


def test_a_truncated_checkpoint_is_refused(tmp_path, tokenizer_spec):
    save_checkpoint(tmp_path / "x.pt", make(), tokenizer_spec, CFG, 0)
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt", "policy")


@pytest.mark.parametrize("change", ["weights", "shape"])
def test_weights_or_shapes_of_another_version_are_refused(tmp_path, tokenizer_spec, change):
    save_checkpoint(tmp_path / "x.pt", make(), tokenizer_spec, CFG, 0)
    checkpoint = torch.load(tmp_path / "x.pt", weights_only=True)
    if change == "weights":
        checkpoint["model"]["head.weight"] = checkpoint["model"].pop("transformer.ln_f.weight")
    else:
        checkpoint["model_config"]["n_wings"] = 2
    torch.save(checkpoint, tmp_path / "x.pt")
    with pytest.raises(BadInput, match="x.pt.*train it again"):
        load_checkpoint(tmp_path / "x.pt", "policy")


class Touch:
    """Unpickled without care, this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save({"kind": "policy", "model": Touch(str(tmp_path / "owned"))}, tmp_path / "evil.pt")
    with pytest.raises(BadInput):
        load_checkpoint(tmp_path / "evil.pt", "policy")
    assert not (tmp_path / "owned").exists()
