"""Do examples that begin where documents do help? Pretrain twice with equal steps, and train a reward model on each.

    python ablations/document_starts.py                                   # on the village's web
    python ablations/document_starts.py --data DATA --block_size 256      # on any data folder

Random windows of a corpus usually begin in the middle of a document; a prompt always begins at position 0. So
pretrain.py takes windows from where documents begin (--no-anywhere, its default). Both models are measured in three
ways: the corpus loss of windows from beginnings and of windows from anywhere, and the village's public tasks, which
are asked as prompts are. Where the data folder or --rankings has rankings, each model becomes a reward model
(reward.py), and the accuracy on the validation rankings stands beside. The paper does not say how GPT-3's windows
were cut.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pretrain
import reward
from core.checkpoint import load_policy, read_checkpoint
from core.config import Device, PositiveInt, Seed, command_line
from core.device import set_up
from core.output import output_folder
from core.report import percent, save_results, table
from data.folder import Corpus, load_tokenizer, read_jsonl
from evaluate import task_scores
from pretrain import corpus_loss

NAMES = {"documents": "where documents begin", "anywhere": "anywhere"}


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder
    out: str = "out/document_starts"  # folder for both models and the table
    rankings: str = ""  # a comparisons.jsonl; default: the data folder's own, if it has one
    steps: PositiveInt = 2000  # of pretraining
    block_size: int = 0  # context in tokens; 0 = the script's default
    batch_size: PositiveInt = 5  # of pretraining, as pretrain.py's
    reward_epochs: PositiveInt = 1  # passes over the rankings
    seed: Seed = 0  # of weights and data order


def train(cfg, name):
    """Pretrain one of the two and, given rankings, its reward model. -> {group of labelers: (accuracy, 95 % error)}"""
    folder = f"{cfg.out}/{name}"
    shared = {"data": cfg.data, "out": folder, "seed": cfg.seed, "device": cfg.device, "threads": cfg.threads}
    shared |= {"dtype": cfg.dtype, "resume": True}
    shape = {"steps": cfg.steps, "block_size": cfg.block_size, "batch_size": cfg.batch_size}
    pretrain.main(pretrain.Config(**shared | shape, anywhere=name == "anywhere"))
    rankings = Path(cfg.rankings or f"{cfg.data}/comparisons.jsonl")
    if not rankings.exists():
        return {}
    settings = {"init": f"{folder}/base.pt", "comparisons": str(rankings), "epochs": cfg.reward_epochs}
    reward.main(reward.Config(**shared | settings))
    results = read_checkpoint(f"{folder}/reward.pt")["results"]
    return {group: found["accuracy"] for group, found in results.items() if group in ("training", "held_out")}


def measure(cfg, name, device):
    """Corpus losses and tasks of one of the two models."""
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    model = load_policy(f"{cfg.out}/{name}/base.pt", cfg, device, tokenizer_spec, sharded=False)
    losses = {}
    for where in NAMES:
        corpus = Corpus(cfg.data, "valid", anywhere=where == "anywhere")
        losses[where] = corpus_loss(model, corpus)
    path = Path(cfg.data) / "tasks.jsonl"
    items = [record for _, record in read_jsonl(path)] if path.exists() else []
    return {"corpus_loss": losses, "tasks": task_scores(model, tokenizer, items) if items else {}}


def main(cfg):
    device, out = set_up(cfg), output_folder(cfg.out)
    found = {name: {"reward_model": train(cfg, name)} for name in NAMES}
    for name in NAMES:
        found[name] |= measure(cfg, name, device)
    save_results(out, "document_starts", {"config": vars(cfg), "models": found}, page(found))


def page(found):
    """The table as markdown: a row per way to cut the corpus."""
    head, rows = ["pretrained on windows that begin", "loss from beginnings", "loss from anywhere"], []
    tasks, groups = found["documents"]["tasks"], found["documents"]["reward_model"]
    head += [*tasks, *(f"reward model, {group}" for group in groups)]
    for name, title in NAMES.items():
        model = found[name]
        losses = [f"{model['corpus_loss'][where]:.3f}" for where in NAMES]
        shares = [percent(share) for share in model["tasks"].values()]
        accuracies = [f"{100 * mean:.0f} ± {100 * error:.0f} %" for mean, error in model["reward_model"].values()]
        rows.append([title, *losses, *shares, *accuracies])
    return table(head, rows) + "\n"


if __name__ == "__main__":
    command_line(Config, main, __doc__)
