"""Checkpoints that another stage can open alone: weights, shape, tokenizer, and how they were made."""

import zipfile
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import torch

from core.config import BadInput, require
from core.device import configure_model
from core.distributed import full_state_dict, wait_for_all, world_size
from core.gpt2 import is_gpt2, load_gpt2
from core.output import write_torch
from data.bpe import build_tokenizer
from model import GPT, GPTConfig, ScalarModel


def save_checkpoint(path, model, tokenizer_spec, config, step, **more):
    """Write {"kind", "model", "model_config", "tokenizer", "config", "step", …}, whole or not at all."""
    checkpoint = {
        "kind": model.kind,
        "model": full_state_dict(model),
        "model_config": asdict(model.config),
        "tokenizer": tokenizer_spec,
        "config": asdict(config) if is_dataclass(config) else config,
        "step": step,
    }
    write_torch(path, checkpoint | more)
    wait_for_all()  # so that nobody opens it too early


def read_checkpoint(path):
    """The dict that `save_checkpoint` wrote. Refuses what is not one (BadInput)."""
    path = Path(path)
    require(path.exists(), f"{path}: no such checkpoint; run the step that writes it, or pass another path")
    require(path.is_file(), f"{path}: is a folder; pass a .pt file our scripts wrote")
    try:
        require(zipfile.is_zipfile(path), "not in PyTorch's format")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        require({"kind", "model", "model_config", "tokenizer"} <= set(checkpoint), "other contents than ours")
    except PermissionError:
        raise
    except Exception as problem:
        reason = str(problem).splitlines()[0][:80] if str(problem) else type(problem).__name__
        fix = "pass a .pt file our scripts wrote"
        raise BadInput(f"{path}: not a checkpoint of this project ({reason}); {fix}") from None
    return checkpoint


def settings_of(path, Config):
    """The settings that a checkpoint was trained with, of those that the dataclass `Config` has. -> {name: value}"""
    settings = read_checkpoint(path).get("config", {})
    return {field.name: settings[field.name] for field in fields(Config) if field.name in settings}


def load_checkpoint(path, kind, device="cpu", dropout=0.0, tokenizer_spec=None):
    """-> (model, tokenizer, checkpoint dict). Refuses another kind of model or, if one is given, another tokenizer.

    kind: "policy" gives a GPT, "scalar" a ScalarModel. The model comes in eval mode, on `device`. For a policy, path
    may also be GPT-2's: a name like gpt2-xl, or a file or folder in Hugging Face's layout (core/gpt2.py).
    """
    if kind == "policy" and is_gpt2(path):
        return load_gpt2(path, device, dropout, tokenizer_spec)
    checkpoint = read_checkpoint(path)
    found = checkpoint["kind"]
    require(found == kind, f"{path}: holds a {found} model, but a {kind} model is needed here")
    same = tokenizer_spec is None or tokenizer_spec == checkpoint["tokenizer"]
    require(same, f"{path}: was trained with another tokenizer than the data folder's; use the data it was trained on")
    try:
        config = GPTConfig(**checkpoint["model_config"] | {"dropout": dropout})
        model = GPT(config) if kind == "policy" else ScalarModel(config)
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, TypeError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise BadInput(f"{path}: does not hold this version's weights ({reason}); train it again") from None
    return model.to(device).eval(), build_tokenizer(checkpoint["tokenizer"]), checkpoint


def load_policy(path, cfg, device, tokenizer_spec=None, dropout=0.0, sharded=True):
    """A GPT from a checkpoint, ready to be used or trained with the settings of a script. In eval mode."""
    at_first = "cpu" if sharded and world_size() > 1 else device
    model, _, _ = load_checkpoint(path, "policy", at_first, dropout, tokenizer_spec)
    return configure_model(model, cfg, sharded, device)


def load_scalar_model(path, cfg, device, tokenizer_spec=None, sharded=True):
    """A ScalarModel from a checkpoint, ready to be used or trained with the settings of a script. In eval mode."""
    at_first = "cpu" if sharded and world_size() > 1 else device
    model, _, _ = load_checkpoint(path, "scalar", at_first, tokenizer_spec=tokenizer_spec)
    return configure_model(model, cfg, sharded, device)
