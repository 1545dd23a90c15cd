"""What the tests share: a tokenizer of 300 tokens, a data folder made by hand, a run folder of untrained models."""

import json
import os
from dataclasses import replace

import pytest
import torch

from core.checkpoint import save_checkpoint
from data.bpe import build_tokenizer, tokenizer_spec_from, train_bpe
from data.folder import write_corpus, write_jsonl
from model import GPT, GPTConfig, ScalarModel

torch.set_num_threads(1)

ANIMALS = ["cat", "dog", "owl", "fox", "hen", "bee"]
COLOURS = ["red", "blue", "green", "brown"]
PAGES = [f"The {a} is {c}. A {c} {a} sat on a {d} roof.\n" for a in ANIMALS for c in COLOURS for d in COLOURS]


@pytest.fixture(scope="session")
def tokenizer_spec():
    return tokenizer_spec_from(train_bpe(PAGES, 300), "tiny")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_spec):
    return build_tokenizer(tokenizer_spec)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """The shape of every model here."""
    return GPTConfig(2, 2, 16, 64, tokenizer.n_vocab)


@pytest.fixture(scope="session")
def data(tmp_path_factory, tokenizer_spec, tokenizer):
    """A data folder. Tests read it and do not write into it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_spec))
    write_corpus(folder / "corpus.train.bin", PAGES[10:], tokenizer)
    write_corpus(folder / "corpus.valid.bin", PAGES[:10], tokenizer)
    asked = [(f"What colour is the roof of the {c} {a}?\n", c) for a in ANIMALS for c in COLOURS]
    split = ["valid" if (i + i // 4) % 4 == 0 else "train" for i in range(len(asked))]
    prompts = [{"prompt": p, "user": f"u{i}", "split": s} for i, ((p, _), s) in enumerate(zip(asked, split))]
    write_jsonl(folder / "prompts.jsonl", prompts)
    shown = [{"prompt": p, "completion": f"It is {c}.", "split": s} for (p, c), s in zip(asked, split)]
    write_jsonl(folder / "demonstrations.jsonl", shown)
    comparisons = []
    for (p, c), s in zip(asked, split):  # everybody wants the colour; a cat and a dog are equally useless
        record = {"prompt": p, "completions": ["A cat.", f"It is {c}.", "A dog."], "ranks": [2, 1, 2], "split": s}
        comparisons += [record | {"labeler": "a"}] + [record | {"labeler": "b"}] * (s == "valid")
    write_jsonl(folder / "comparisons.jsonl", comparisons)
    return folder


@pytest.fixture
def run(tmp_path, tokenizer_spec, tiny):
    """A run folder with an untrained model for every step. They were "trained" with dropout, which later steps drop."""
    config = replace(tiny, dropout=0.3)
    for i, (name, kind) in enumerate({"base": GPT, "sft": GPT, "ppo_init": GPT, "reward": ScalarModel}.items()):
        torch.manual_seed(i)
        save_checkpoint(tmp_path / f"{name}.pt", kind(config), tokenizer_spec, config, step=0)
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def without_waiting_for_the_disk():
    """Files are not synced: it takes long, and only a power cut could show it. What kill -9 leaves is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield
