"""A checkpoint of ours -> a folder in Hugging Face's layout, which transformers loads.

python tools/export.py --checkpoint out/run/ppo.pt --out out/export
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.checkpoint import load_checkpoint
from core.config import command_line, require
from core.gpt2 import export
from model import SIZES


@dataclass
class Config:
    checkpoint: str = ""  # a policy of ours, e.g. out/run/ppo.pt
    out: str = "out/export"  # the folder to write: config.json, model.safetensors, vocab.json, merges.txt, …


def main(cfg):
    require(cfg.checkpoint, "--checkpoint: give a policy to export, e.g. out/run/ppo.pt")
    model, tokenizer, _ = load_checkpoint(cfg.checkpoint, "policy")
    export(model, tokenizer, cfg.out)
    print(f"wrote {cfg.out}/: transformers loads it with GPT2LMHeadModel.from_pretrained({cfg.out!r})")
    if model.config not in SIZES.values():
        print(f"  a model of {model.config.n_layer} layers x {model.config.n_embd}, {model.config.vocab_size} tokens")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
