"""All steps in small: run.py, killed and continued, and what it does again when something has changed."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import records_of, same, weights_of

import run
from core.config import BadInput
from core.report import has
from data.village.tasks import TASKS
from run import Config, main

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["data", "pretrain", "sft", "ppo_init", "collect_1", "reward_init", "reward_1", "ppo_1", "collect", "reward"]
STAGES += ["choose_sft", "ppo", "ppo_ptx", "evaluate"]


def start_run(out):
    command = [sys.executable, "run.py", "--quick", "--threads", "1", "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def without_times(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "config")}


def read_report(out):
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in the middle of PPO-ptx, and continued. -> run folder, what the second call printed"""
    out = tmp_path_factory.mktemp("run") / "whole"
    process = start_run(out)
    deadline = time.time() + 300
    while not list(out.glob("ppo_ptx.state-*.pt")):
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "ppo_ptx.pt").exists(), "killed too late to show anything"
    with redirect_stdout(io.StringIO()) as printed:
        main(Config(quick=True, threads=1, out=str(out)))
    return out, printed.getvalue()


def test_a_killed_stage_goes_on_from_its_last_state(killed):
    out, printed = killed
    assert printed.count("already there") == STAGES.index("ppo_ptx")
    assert "resuming after step" in (out / "quick.log").read_text()
    assert not list(out.glob("*.state-*"))


def test_the_report_has_every_model_and_measure(killed):
    out, _ = killed
    report = read_report(out)
    assert set(report["models"]) == {"gpt", "gpt_prompted", "sft", "ppo_init", "ppo_1", "ppo", "ppo_ptx"}
    for model in report["models"].values():
        for key in ("helpful", "truthful", "harmless", "length", "score", "corpus_loss"):
            assert math.isfinite(model[key])
        for group in ("training", "held_out"):
            rate = model["win_rate"][group]
            assert 0 <= rate["mean"] <= 1 and rate["low"] <= rate["mean"] <= rate["high"] and rate["n"] > 0
    assert set(STAGES) == set(report["seconds"])
    assert report["over_optimisation"]["ppo"] and report["over_optimisation"]["best_of_n"][0]["sqrt_kl"] == 0
    assert has(report, "tasks") and (out / "report.md").read_text().startswith("# Report")


def test_a_quick_run_prints_little(killed):
    _, printed = killed
    assert len(printed.splitlines()) < 40 and "mean nothing" in printed


def test_a_second_run_skips_everything(killed, capsys):
    out, _ = killed
    before = (out / "report.json").read_bytes()
    main(Config(quick=True, threads=1, out=str(out)))
    assert capsys.readouterr().out.count("already there") == len(STAGES)
    assert (out / "report.json").read_bytes() == before


def test_killed_and_continued_is_uninterrupted_and_a_changed_setting_redoes_what_depends_on_it(killed, capsys):
    """Another γ, and back to the first: PPO-ptx in one go gives what it gave when it was killed on the way."""
    out, _ = killed
    first = read_report(out)
    main(Config(quick=True, threads=1, out=str(out), ptx_coef=0.7))
    assert capsys.readouterr().out.count("already there") == len(STAGES) - 2
    second = read_report(out)
    assert first["models"]["ppo"] == second["models"]["ppo"]
    assert first["models"]["ppo_ptx"] != second["models"]["ppo_ptx"]
    main(Config(quick=True, threads=1, out=str(out)))
    assert without_times(read_report(out)) == without_times(first)


def test_own_rankings_in_the_run_folder_are_used_and_kept(killed, capsys, monkeypatch):
    """Somebody has ranked other answers: run.py does not collect over them, and what depends on them is done again."""
    out, _ = killed
    path, stages = out / "comparisons.jsonl", out / "stages.json"
    simulated, before = path.read_text(), stages.read_text()
    own = "".join(line for i, line in enumerate(simulated.splitlines(keepends=True)) if i % 3)
    path.write_text(own)
    done = []
    for module in {stage.script for stage in run.stages(Config(quick=True, out=str(out)))}:
        monkeypatch.setattr(module, "main", lambda cfg, name=module.__name__: done.append(name))
    with pytest.raises(FileNotFoundError):  # the stand-in for reward.py writes nothing
        (out / "reward.pt").rename(out / "reward.kept")
        main(Config(quick=True, threads=1, out=str(out)))
    (out / "reward.kept").rename(out / "reward.pt")
    assert "was not made here" in capsys.readouterr().out
    assert path.read_text() == own and done == ["reward"], "and no first round, which would be about other answers"
    path.write_text(simulated), stages.write_text(before)


def test_data_without_exams_need_no_reward_init(killed, tmp_path):
    out, _ = killed
    with_exams = run.stages(Config(out=str(tmp_path), data=str(out / "data")))
    for file in (out / "data").iterdir():
        if file.name != "exams.jsonl":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    without = run.stages(Config(out=str(tmp_path), data=str(tmp_path)))
    names = [stage.name for stage in with_exams]
    assert names == STAGES[1:] and [stage.name for stage in without] == [n for n in names if n != "reward_init"]
    (reward_model,) = [stage.settings["reward_model"] for stage in with_exams if stage.name == "reward"]
    assert reward_model == str(tmp_path / "reward_init.pt")
    assert [s.settings for s in without if s.name == "reward"] == [{"init": str(tmp_path / "ppo_init.pt")}]


def test_the_second_round_ranks_answers_of_the_first_rounds_policy(killed):
    """§3.1: both rounds' rankings are in the second's file, and the answers were sampled from another model."""
    out, _ = killed
    first, both = ([json.loads(x) for x in (out / f / "comparisons.jsonl").open()] for f in ("round1", "."))
    assert both[: len(first)] == first and len(both) > len(first)
    stages = {stage.name: stage.settings for stage in run.stages(Config(out=str(out)))}
    assert stages["collect_1"]["supervised"] == str(out / "ppo_init.pt")
    assert stages["collect"]["supervised"] == str(out / "round1" / "ppo.pt") and (out / "round1" / "ppo.pt").exists()
    assert read_report(out)["models"]["ppo_1"]["name"] == "PPO, first round"


def test_the_code_of_a_stage_is_found_through_its_imports():
    """By hand: what sft.py imports, and through it the rest; nothing of the later stages."""
    found = {str(path.relative_to(ROOT)) for path in run.source_files(ROOT / "sft.py")}
    assert {"sft.py", "pretrain.py", "model.py", "core/sampling.py", "core/text.py", "data/bpe.py"} <= found
    assert not {"ppo.py", "reward.py", "evaluate.py", "core/report.py"} & found
    assert "data/village/labelers.py" in {str(p.relative_to(ROOT)) for p in run.source_files(ROOT / "data/collect.py")}


def test_a_missing_or_unusable_data_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such data folder"):
        main(Config(out=str(tmp_path / "x"), data=str(tmp_path / "nothing")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="somebody has to rank"):
        main(Config(out=str(tmp_path / "x"), data=str(tmp_path / "empty")))


def test_run_is_one_process(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="torchrun"):
        main(Config(out=str(tmp_path)))


def test_over_optimisation_under_two_coefficients(killed, capsys, monkeypatch):
    from ablations import over_optimisation

    out, _ = killed
    small = dict(batch_size=16, minibatch_size=16, value_only_iterations=1, max_new_tokens=24)
    monkeypatch.setattr(over_optimisation.ppo, "Config", partial(over_optimisation.ppo.Config, **small))
    cfg = over_optimisation.Config(data=str(out / "data"), out=str(out), kl_coefs="0,5", iterations=4, threads=1)
    over_optimisation.main(replace(cfg, sample_every=1, sample_prompts=6))
    found, printed = json.loads((out / "kl_coef.json").read_text()), capsys.readouterr().out
    assert set(found["curves"]) == {"0.0", "5.0"} and (out / "kl_coef.md").read_text() in printed
    for curve in found["curves"].values():
        assert [point["iteration"] for point in curve] == list(range(4))
        assert all(1 <= point["gold"][0] <= 7 and math.isfinite(point["score"][0]) for point in curve)
    assert found["curves"]["0.0"][0] == found["curves"]["5.0"][0] and found["curves"]["0.0"] != found["curves"]["5.0"]
    over_optimisation.main(replace(cfg, sample_every=1, sample_prompts=6))
    assert capsys.readouterr().out.count("made with these settings") == 2, "what is there is not trained again"


def test_ppo_from_other_starts(killed, capsys):
    from ablations import ppo_settings

    out, _ = killed
    cfg = ppo_settings.Config(vary="init", data=str(out / "data"), out=str(out), quick=True, seeds="0", labelers=1)
    cfg = replace(cfg, max_new_tokens=16, threads=1)
    ppo_settings.main(cfg)
    folder, printed = out / "ablations" / "quick" / "init", capsys.readouterr().out
    found = json.loads((folder / "results.json").read_text())
    assert (folder / "results.md").read_text() in printed and len(found["findings"]) == 1
    assert [policy["settings"]["init"] for policy in found["policies"]] == list(ppo_settings.INITS)
    for policy in found["policies"]:
        (numbers,) = policy["measured"]
        assert set(numbers) == set(ppo_settings.MEASURES)
        assert all(math.isfinite(number["mean"]) for number in numbers.values()) and numbers["seconds"]["mean"] > 0
    (start,) = found["references"]["PPO's start"]["measured"]
    assert start["win_rate_greedy"]["mean"] == 0.5, "against itself"
    assert len(start["score"]["values"]) == found["n_prompts"] == 8
    ppo_settings.train_init(cfg, "ppo_init_mix_0")
    ppo_settings.ppo.main(ppo_settings.ppo_config(cfg, {"init": "base"}, 0))
    assert capsys.readouterr().out.count("made with these settings") == 2, "what is there is not trained again"


def test_best_of_n_by_reward_model_and_by_utility(killed, capsys):
    from ablations import best_of_n

    out, _ = killed
    cfg = best_of_n.Config(data=str(out / "data"), out=str(out), best_of=4, prompts=8, labelers=2, threads=1)
    best_of_n.main(replace(cfg, max_new_tokens=16))
    found, printed = json.loads((out / "best_of_n.json").read_text()), capsys.readouterr().out
    assert (out / "best_of_n.md").read_text() in printed
    by_model, by_utility = found["curves"].values()
    assert list(by_model) == list(by_utility) == ["1", "2", "4"] and by_model["1"] == by_utility["1"], (
        "nothing to choose"
    )
    assert found["perfect"]["likert"] == 7 >= by_utility["4"]["likert"] and found["perfect"]["helpful"] == 1
    assert list(found["ppo"]) == list(found["curves"]) and "PPO by labelers' utility" in printed
    first, last = (records_of(out / "utility.jsonl")[i]["step"] for i in (0, -1))
    assert (first, last) == (1, records_of(out / "ppo.jsonl")[-1]["step"]), "as long as run.py's own"
    assert not same(weights_of(out / "utility.pt"), weights_of(out / "ppo.pt"))


def test_the_alternatives_on_one_table(killed, capsys):
    """The run's models, then a method of each script that has no such test of its own, in small: a row for each."""
    from alternatives import compare

    out, wanted = killed[0], ["llama2", "rlaif", "rlaif_direct", "helpful", "cai_sl", "cai"]
    cfg = compare.Config(runs=str(out), methods=",".join(wanted), quick=True, prompts=8, labelers=1, best_of=2)
    compare.main(replace(cfg, max_new_tokens=16, threads=1))
    rows, printed = json.loads((out / "alternatives.json").read_text()), capsys.readouterr().out
    assert set(rows) == {*compare.FROM_RUN, *wanted}
    for row in rows.values():
        assert all(math.isfinite(row[k]) for k in ("helpful", "truthful", "harmless", "red_team", "corpus_loss", "kl"))
        assert all(0 <= row[k]["mean"] <= 1 for k in ("training", "held_out", "against_ppo_ptx"))
        assert f"| {row['title']} " in (out / "alternatives.md").read_text() and f"| {row['title']} " in printed
    assert all(rows[name]["cost"]["tokens"] > 0 for name in wanted if name != "helpful")
    assert "significantly better" in printed
    compare.train_missing(cfg, out, 0, wanted)
    assert "===" not in capsys.readouterr().out, "what is there is not trained again"


def test_flan_and_t0_against_sft_and_ppo_ptx(killed, capsys):
    from baselines import flan_t0

    out, _ = killed
    cfg = flan_t0.Config(data=str(out / "data"), out=str(out), examples=64, epochs=2, prompts=8, labelers=2, threads=1)
    cfg = replace(cfg, learning_rates="1e-3", choose_prompts=8, max_new_tokens=16)
    flan_t0.main(cfg)
    found, printed = json.loads((out / "baselines.json").read_text()), capsys.readouterr().out
    assert (out / "baselines.md").read_text() in printed and list(found["models"]) == list(flan_t0.TITLES)
    assert set(found["models"]) - set(flan_t0.FILES) == {"gpt_prompted"}
    for model in (found["models"][key] for key in flan_t0.FILES):
        assert set(TASKS) == set(model["instructed"]["flan"]) == set(model["tasks"])
        others = {"translation", "arithmetic", "entailment", "pronouns"}
        assert set(model["tasks"]) - set(model["instructed"]["t0"]) == others
        assert all(0 <= model["win_rate"]["greedy"][group]["mean"] <= 1 for group in ("training", "held_out"))
    assert found["models"]["sft"]["win_rate"]["greedy"]["held_out"]["mean"] == 0.5, "against itself"
    for name in ("flan", "t0"):
        epochs = list((out / name).glob("lr_0.001.epoch-*.pt"))
        assert found["training"][name]["chosen"]["epoch"] in (1, 2) and len(epochs) == 2
        assert (out / f"{name}.pt").read_bytes() == (out / name / "lr_0.001_best.pt").read_bytes()
        shown = [json.loads(line) for line in (out / name / "data" / "demonstrations.jsonl").open()]
        assert [example["split"] for example in shown].count("train") == 64
    flan_t0.main(cfg)
    assert capsys.readouterr().out.count("made with these settings") == 2, "what is there is not trained again"


def test_all_steps_at_two_sizes(killed, capsys):
    from ablations import sizes

    out, _ = killed
    cfg = sizes.Config(data=str(out / "data"), out=str(out), sizes="50k,0.2M", quick=True, prompts=8, labelers=2)
    cfg = replace(cfg, max_new_tokens=16, threads=1)
    sizes.main(cfg)
    found, printed = json.loads((out / "quick" / "sizes.json").read_text()), capsys.readouterr().out
    assert (out / "quick" / "sizes.md").read_text() in printed and list(found["sizes"]) == ["50k", "0.2M"]
    for size in found["sizes"].values():
        assert list(size["models"]) == list(sizes.KINDS)
        assert all(math.isfinite(model["corpus_loss"]) for model in size["models"].values())
    largest = found["sizes"]["0.2M"]["models"]["sft"]
    assert largest["win_rate"]["greedy"]["held_out"]["mean"] == 0.5, "against itself"
    sizes.train(cfg, "50k")
    assert capsys.readouterr().out.count("made with these settings") == 5, "what is there is not trained again"


def test_reward_models_of_groups_of_labelers(killed, capsys):
    from ablations import labeler_folds

    out, _ = killed
    labeler_folds.main(labeler_folds.Config(data=str(out / "data"), out=str(out), folds=2, quick=True, threads=1))
    found, printed = json.loads((out / "quick" / "labeler_folds.json").read_text()), capsys.readouterr().out
    assert (out / "quick" / "labeler_folds.md").read_text() in printed
    first, second = (fold["left_out"] for fold in found["folds"])
    assert len(first) == len(second) == 10 and len({*first, *second}) == 20
    for names, number in ((first, 1), (second, 2)):
        ranked = [
            json.loads(line) for line in (out / "quick" / "reward_models" / f"fold_{number}.comparisons.jsonl").open()
        ]
        learned = {record["labeler"] for record in ranked if record["split"] == "train"}
        assert learned and not learned & set(names), "nobody who is left out is learned from"
    assert all(0 <= fold[kind] <= 1 for fold in found["folds"] for kind in labeler_folds.KINDS)


def test_what_makes_a_reward_model_good(killed, capsys):
    from ablations import reward_models

    out, _ = killed
    (out / "sizes" / "50k").mkdir(parents=True, exist_ok=True)
    (out / "sizes" / "50k" / "ppo_init.pt").write_bytes((out / "ppo_init.pt").read_bytes())
    for vary, values in {"K": "2,4", "size": "50k,0.6M"}.items():
        cfg = reward_models.Config(vary=vary, values=values, data=str(out / "data"), out=str(out), quick=True)
        reward_models.main(replace(cfg, threads=1))
        models = json.loads((out / "quick" / f"reward_{vary}.json").read_text())["models"]
        assert (out / "quick" / f"reward_{vary}.md").read_text() in capsys.readouterr().out and len(models) == 2
        for model in models.values():
            assert all(math.isfinite(model[key][0]) for key in ("loss_seen", "loss_new", "accuracy_seen"))
        first, second = models.values()
        assert first["answers"] == second["answers"] and first["loss_new"] != second["loss_new"], vary


def test_sft_along_its_epochs(killed, capsys):
    from ablations import sft_epochs

    out, _ = killed
    sft_epochs.main(sft_epochs.Config(data=str(out / "data"), out=str(out), quick=True, threads=1))
    found, printed = json.loads((out / "quick" / "sft_epochs.json").read_text()), capsys.readouterr().out
    assert (out / "quick" / "sft_epochs.md").read_text() in printed and len(found["epochs"]) == 2
    first, second = found["epochs"]
    assert first["greedy"]["win_rate"]["mean"] == 0.5, "against itself"
    assert first["valid_loss"] != second["valid_loss"] and all(
        1 <= e["sampled"]["likert"][0] <= 7 for e in found["epochs"]
    )
    assert set(found["chosen"].values()) <= {1, 2}


def test_the_papers_claims_beside_this_runs(killed, capsys):
    import claims
    from core.paper_claims import CLAIMS, REPORT_CLAIMS
    from data.folder import Corpus, load_tokenizer, read_demonstrations

    out, _ = killed
    cfg = claims.Config(runs=str(out), quick=True, threads=1)
    claims.main(cfg)
    found, printed = json.loads((out / "quick" / "claims.json").read_text()), capsys.readouterr().out
    assert "measured" in printed and "already" not in printed
    for conditions in found["values"].values():
        for condition, models in conditions.items():
            assert {"sft", "ppo_init", "ppo", "ppo_ptx"} <= set(models) <= set(claims.MODELS)
            assert "gpt" in models or condition.startswith("request"), "which nobody answers on the web"
    assert len(found["grades"]) == 2 * 4 == len(found["values"]["toxic completion"]["basic"]["ppo"])
    everything = found | {"report": read_report(out)}
    for key, model in everything["report"]["models"].items():  # evaluate.py had the same answers to users' prompts
        for flag, share in model["flags"].items() if key in claims.MODELS else ():
            marks = [mark for mark in found["values"][flag]["users' prompts"][key] if mark is not None]
            assert (sum(marks) / len(marks) if marks else None) == share
    for claim in (*REPORT_CLAIMS, *CLAIMS):
        if any(word in claim.how for word in ("constraint", "hallucination", ".py")):
            continue  # such prompts may not be among the few; other scripts' numbers
        estimate = claim.find(everything)
        assert estimate["low"] <= estimate["mean"] <= estimate["high"], claim.says
    page = (out / "quick" / "claims.md").read_text()
    assert all(page.count(f"| {claim.says} ") or page.count(f" {claim.says} |") for claim in CLAIMS)

    # what training really read, a token at a time
    weights = sum(p.numel() for p in weights_of(out / "base.pt").values())
    _, tokenizer = load_tokenizer(out / "data")
    read = 0
    for step in range(10):  # --quick's
        window = 160 if (step + 1) % 4 == 0 else 40
        read += Corpus(out / "data", "train").windows(5 * 160 // window, window, torch.Generator()).numel()
    shown = [record["prompt"] + record["completion"] for record in read_demonstrations(out / "data", "train")]
    tokens = sum(len(tokenizer.encode_ordinary(text)) + 1 for text in shown)
    assert found["flops"]["pretraining"] == 6 * weights * read
    assert found["flops"]["SFT"] == pytest.approx(6 * weights * 2 * tokens, rel=0.02), "prompts are encoded apart"
    assert found["flops"]["PPO-ptx"] > found["flops"]["PPO"] > 0 and "reward model, first round" in found["flops"]

    two = f"{out},{out.parent / '.' / '..' / out.parent.name / out.name}"
    claims.main(replace(cfg, runs=two, out=str(out / "table")))
    assert capsys.readouterr().out.count("measured already") == 2, "what is there is not measured again"
    assert "in 2 of 2 runs" in (out / "table" / "quick" / "claims.md").read_text()
