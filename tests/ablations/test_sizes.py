"""The sizes, and what is said about them. (tests/test_run.py runs the command.)"""

import math

import pytest

from ablations import sizes
from ablations.sizes import (
    FILES,
    FROM_RUN,
    KINDS,
    SIZES,
    Config,
    folder_of,
    page,
    preferred_text,
    rate_for,
    sentences,
    sizes_figure,
    sizes_of,
)
from core.config import BadInput
from model import GPT, GPTConfig


def by_hand(size, vocabulary=1360, context=160):
    """Embeddings; per block two norms, attention's and the MLP's matrices and biases; the last norm."""
    C = size.n_embd
    block = 2 * 2 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    return vocabulary * C + context * C + size.n_layer * block + 2 * C


def parameters(name):
    size = SIZES[name]
    model = GPT(GPTConfig(size.n_layer, size.n_head, size.n_embd, 160, 1360))
    return sum(p.numel() for p in model.parameters())


def test_the_names_are_numbers_of_parameters_over_a_factor_of_thirty():
    for name in Config.sizes.split(","):
        assert parameters(name) == by_hand(SIZES[name])
    for name, size in SIZES.items():
        said = float(name[:-1]) * {"k": 1e3, "M": 1e6}[name[-1]]
        assert by_hand(size) == pytest.approx(said, rel=0.15)
    assert by_hand(SIZES["1.7M"]) >= 30 * by_hand(SIZES["50k"])
    assert list(SIZES) == sorted(SIZES, key=lambda name: by_hand(SIZES[name]))


def test_the_runs_own_size_is_the_scripts_default():
    size = SIZES[FROM_RUN]
    assert (size.n_layer, size.n_head, size.n_embd) == (GPTConfig.n_layer, GPTConfig.n_head, GPTConfig.n_embd)
    assert rate_for(size, 3e-3) == 3e-3 and set(KINDS) - {"gpt_prompted"} == set(FILES)
    assert rate_for(SIZES["26M"], 3e-3) == pytest.approx(3e-3 / math.sqrt(4))
    assert rate_for(SIZES["50k"], 3e-3) > rate_for(SIZES["0.2M"], 3e-3) > 3e-3
    cfg = Config(out="o")
    assert str(folder_of(cfg, FROM_RUN)) == "o" and str(folder_of(cfg, "50k")) == "o/sizes/50k"
    assert str(folder_of(Config(out="o", quick=True), FROM_RUN)) == f"o/quick/sizes/{FROM_RUN}"


def test_learning_rates_by_size(monkeypatch):
    """Those of the run's own models by the square root of the width; SFT's as they were tuned, where they were."""
    theirs = {"base.pt": 3e-3, "sft.pt": 4e-4, "ppo_init.pt": 1e-3, "ppo.pt": 2e-4, "ppo_ptx.pt": 2e-4}
    monkeypatch.setattr(sizes, "settings_of", lambda path, _: {"name": path.stem, "learning_rate": theirs[path.name]})
    used = {}
    for script in (sizes.pretrain, sizes.sft, sizes.ppo):
        monkeypatch.setattr(script, "main", lambda cfg: used.setdefault(f"{cfg.name}.pt", cfg.learning_rate))
    for name, factor, sft_rate in (("0.2M", math.sqrt(2), 2.3e-3), ("26M", 0.5, 2e-4)):
        used.clear()
        sizes.train(Config(out="o"), name)
        assert used.pop("sft.pt") == sft_rate
        assert used == {file: pytest.approx(rate * factor, rel=0.02) for file, rate in theirs.items() if file in used}
        assert len(used) == 4


def test_sizes_are_read_in_their_order_or_refused():
    assert sizes_of("1.7M, 50k") == ["50k", "1.7M"]
    for wrong, said in (("50k,7B", "7B"), ("50k", "at least two"), ("", "at least two"), ("50k,50k", "at least two")):
        with pytest.raises(BadInput, match=said):
            sizes_of(wrong)


def rate(mean, error=0.05):
    return {"mean": mean, "low": mean - error, "high": mean + error, "n": 100}


def measured(mean, loss):
    groups = {"training": rate(mean), "held_out": rate(mean)}
    model = {"win_rate": {"sampled": groups, "greedy": groups}, "corpus_loss": loss, "tasks": {"a": 0.5, "b": 1.0}}
    judged = {"helpful": 0.3, "truthful_and_informative": 0.2, "likert": 3.0, "likert_error": 0.25}
    return model | judged | {"flags": {"fails the task": 0.5}, "flag_counts": {"fails the task": 40}}


def small_report(head_to_head=0.7, losses=(1.5, 0.9)):
    by_size = {}
    for name, parameters, loss, mean in (("50k", 50_000, losses[0], 0.2), ("1.7M", 1_700_000, losses[1], 0.6)):
        by_size[name] = {"parameters": parameters, "models": {kind: measured(mean, loss) for kind in KINDS}}
    duel = {how: {"training": rate(0.1), "held_out": rate(head_to_head)} for how in ("sampled", "greedy")}
    return {"n_prompts": 100, "sizes": by_size, "head_to_head": {"gpt": duel, "gpt_prompted": duel}}


def test_the_sentences_say_what_the_intervals_say():
    assert [preferred_text(rate(mean)) for mean in (0.56, 0.54, 0.44)] == [
        "is preferred to",
        "does not differ significantly from",
        "loses to",
    ]
    said = sentences(small_report())
    assert said[0].startswith("At T = 1 the smallest PPO-ptx (50k) is preferred to the largest GPT (1.7M, 34 times")
    assert "70.0 [65.0, 75.0] % of 100 prompts" in said[0] and said[1].startswith("Greedy ")
    assert said[-1] == "GPT's corpus loss falls with every size: 1.50, 0.90."
    assert " loses to the largest GPT (prompted)" in sentences(small_report(0.3))[2]
    assert "does not fall" in sentences(small_report(losses=(0.9, 1.0)))[-1]


def test_the_page_and_the_figure_show_every_model_of_every_size():
    found = small_report()
    lines = page(found).splitlines()
    assert sum(line.startswith(("| 50k ", "| 1.7M ")) for line in lines) == 4 * len(KINDS)
    flags = [line for line in lines if line.startswith("| 1.7M PPO-ptx ") and "3.00 ± 0.25" in line]
    assert len(flags) == 1 and "50 [35, 65]" in flags[0] and any("fails the task (n = 40)" in line for line in lines)
    assert any(line.startswith("| 1.7M PPO-ptx ") and "60.0 [55.0, 65.0]" in line and "75 %" in line for line in lines)
    figure = sizes_figure(found)
    if figure is not None:
        for axes in figure.axes:
            assert [label.get_text() for label in axes.get_xticklabels()] == ["50k", "1.7M"]
            assert axes.get_xscale() == "log" and len(axes.containers) == len(KINDS)
            assert [list(c.lines[0].get_xdata()) for c in axes.containers] == [[50_000, 1_700_000]] * len(KINDS)
            assert list(axes.containers[0].lines[0].get_ydata()) == pytest.approx([20, 60])
