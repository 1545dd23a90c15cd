"""A run that is killed goes on as if nothing had happened; what is neither the old run nor the new one is refused."""

from dataclasses import dataclass, replace

import pytest
import torch
from small_models import make, shaken

from core.batches import ShuffledBatches, generator
from core.checkpoint import save_checkpoint
from core.config import BadInput, PositiveInt, Seed, Training
from core.log import JsonLines, Log
from core.optim import adamw, optimizer_step
from core.training_state import MAY_DIFFER, TrainingState, drop_states, fingerprints, saved_states
from model import lm_loss

PAGES = torch.randint(300, (11, 9), generator=torch.Generator().manual_seed(0))


@dataclass
class Config(Training):
    steps: PositiveInt = 8
    dropout: float = 0.3
    seed: Seed = 0


class Killed(Exception):
    pass


def train(out, cfg, inputs=(), killed_after=None):
    """A training script in small: dropout, batches by step, a log and a second file. -> model"""
    torch.manual_seed(cfg.seed)
    model = shaken(make(dropout=cfg.dropout)).train()
    optimizer = adamw(model, 1e-2, 0.1)
    average = {name: weight.clone() for name, weight in model.state_dict().items()}
    batches = ShuffledBatches([9] * len(PAGES), 4, cfg.seed)
    log, samples = Log(out / "x.jsonl", cfg.steps, "loss"), JsonLines(out / "x.samples.jsonl")
    parts = {"model": model, "optimizer": optimizer, "average": average, "log": log, "samples": samples}
    state = TrainingState(out, "x", cfg, inputs, **parts)
    if state.already_finished():
        return None
    for step in range(state.resume(), cfg.steps):
        loss = lm_loss(model, PAGES[batches[step]]).mean()
        loss.backward()
        norm = optimizer_step(optimizer, model, 1e-2, 1.0)
        for name, weight in model.state_dict().items():
            average[name].lerp_(weight, 0.1)
        log(step + 1, loss=loss, norm=norm)
        samples.write(step=step, draw=torch.rand(1, generator=generator(cfg.seed, "sample", step)).item())
        state.save_if_due(step + 1)
        if step + 1 == killed_after:
            raise Killed
    save_checkpoint(out / "x.pt", model, {"name": "none"}, cfg, cfg.steps, inputs=state.inputs)
    state.finish()
    return {**model.state_dict(), **{f"average {name}": value for name, value in average.items()}}


def files_of(out):
    return {path.name: path.read_text() for path in out.glob("*.jsonl")}


@pytest.mark.parametrize("killed_after", [[4], [5], [2, 3, 8], [1, 6]])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, capsys, killed_after):
    """Weights and averages, Adam's moments (through later steps), dropout masks, order of data, and both logs.

    With states every two steps: killed right after one, one step later, before the first, and several times.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    weights = train(whole, Config())
    for step in killed_after:
        with pytest.raises(Killed):
            train(parts, Config(save_every=2, resume=True), killed_after=step)
        torch.rand(step)  # whatever else the process does
    capsys.readouterr()
    others = train(parts, Config(save_every=2, resume=True))
    last = killed_after[-1] // 2 * 2
    assert f"resuming after step {last} from" in capsys.readouterr().out
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    assert files_of(whole) == files_of(parts)
    assert sorted(p.name for p in parts.iterdir()) == ["x.jsonl", "x.pt", "x.samples.jsonl"], "no state is left"
    assert train(parts, Config(save_every=2, resume=True)) is None
    assert "nothing is left to do" in capsys.readouterr().out


def test_logs_that_were_deleted_start_anew(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Config(save_every=2), killed_after=5)
    (tmp_path / "x.jsonl").unlink()
    train(tmp_path, Config(save_every=2, resume=True))
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f'{{"step": {step}' for step in (5, 6, 7, 8)]


def test_without_resume_a_run_starts_at_the_beginning(tmp_path, capsys):
    with pytest.raises(Killed):
        train(tmp_path, Config(save_every=2), killed_after=5)
    with pytest.raises(Killed):
        train(tmp_path, Config(save_every=2), killed_after=3)
    assert list(saved_states(tmp_path, "x")) == [2], "states of later steps belong to the run before"
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 3, "and so does what was logged"
    assert "resum" not in capsys.readouterr().out


def test_nothing_to_resume_is_said(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("of an earlier run\n")
    train(tmp_path, Config(resume=True))
    assert "--resume: no " in capsys.readouterr().out
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 8


def test_the_newest_states_are_kept(tmp_path):
    cfg = Config(save_every=1, keep=3)
    with pytest.raises(Killed):
        train(tmp_path, cfg, killed_after=6)
    assert sorted(saved_states(tmp_path, "x")) == [4, 5, 6]
    (tmp_path / "y.state-9.pt").touch()
    (tmp_path / "xx.state-9.pt").touch()
    (tmp_path / ".x.state-7.pt.123.tmp").touch()  # a kill in the midst of writing
    drop_states(tmp_path, "x", 2)
    assert sorted(saved_states(tmp_path, "x")) == [5, 6] and not list(tmp_path.glob(".*"))
    (tmp_path / "x.state-6.pt").write_bytes(b"half")
    with pytest.raises(BadInput, match="x.state-6.pt: damaged.*delete it"):
        train(tmp_path, replace(cfg, resume=True))
    (tmp_path / "x.state-6.pt").unlink()
    with pytest.raises(Killed):  # goes on from the one before
        train(tmp_path, replace(cfg, resume=True), killed_after=7)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 7
    train(tmp_path, replace(cfg, resume=True))
    assert sorted(p.name for p in tmp_path.glob("*.state-*")) == ["xx.state-9.pt", "y.state-9.pt"], "of other runs"


def test_no_state_without_save_every(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Config(), killed_after=6)
    assert not saved_states(tmp_path, "x")


def killed_run(tmp_path):
    """A folder of inputs, and a run on it that was killed after step 5."""
    inputs, out = tmp_path / "data", tmp_path / "out"
    (inputs / "deep").mkdir(parents=True)
    out.mkdir()
    (inputs / "deep" / "page.txt").write_text("hello")
    (tmp_path / "init.pt").write_text("weights")
    given = [inputs, tmp_path / "init.pt", "gpt2"]  # a name, not a file, is none of ours
    with pytest.raises(Killed):
        train(out, Config(save_every=2), given, killed_after=5)
    return out, given


def test_other_settings_are_refused_unless_they_change_nothing(tmp_path):
    out, given = killed_run(tmp_path)
    cfg = Config(save_every=2, resume=True)
    with pytest.raises(BadInput, match="x.state-4.pt.*--steps 8, not 9"):
        train(out, replace(cfg, steps=9), given)
    with pytest.raises(BadInput, match="--dtype auto, not float32"):
        train(out, replace(cfg, dtype="float32"), given)
    with pytest.raises(Killed):
        train(out, replace(cfg, threads=1, keep=5, device="cpu", micro_batch_size=3), given, killed_after=5)
    where_and_how = {"device", "threads", "micro_batch_size", "recompute", "compile", "tensor_parallel"}
    assert set(MAY_DIFFER) == where_and_how | {"save_every", "keep", "resume"}


@pytest.mark.parametrize("change", ["other text", "same length", "new file", "other weights"])
def test_other_inputs_are_refused(tmp_path, change):
    out, given = killed_run(tmp_path)
    page = tmp_path / "data" / "deep" / "page.txt"
    changed = page
    if change == "other text":
        page.write_text("hello again")
    elif change == "same length":
        page.write_text("hella")
    elif change == "new file":
        changed = tmp_path / "data" / "new.txt"
        changed.write_text("")
    else:
        changed = tmp_path / "init.pt"
        changed.write_text("others")
    with pytest.raises(BadInput, match=f"x.state-4.pt: .*{changed.name} has changed"):
        train(out, Config(save_every=2, resume=True), given)


def test_fingerprints_are_of_files(tmp_path):
    (tmp_path / "a").write_text("abc")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").touch()
    names = [str(tmp_path / "a"), str(tmp_path / "deep" / "b")]
    assert [(name, size) for name, size, _ in fingerprints(tmp_path, "gpt2")] == list(zip(names, (3, 0)))


def test_a_finished_run_is_recognised_by_settings_and_inputs(tmp_path, capsys):
    out, given = killed_run(tmp_path)
    finished = Config(resume=True)
    train(out, finished, given)
    assert train(out, finished, given) is None and train(out, replace(finished, threads=1), given) is None
    assert train(out, replace(finished, resume=False, steps=1), given), "without --resume it is made again"
    assert train(out, finished, given), "with other settings, too"
    (tmp_path / "init.pt").write_text("others")
    assert train(out, finished, given), "with other inputs, too"
    (out / "x.pt").write_bytes((out / "x.pt").read_bytes()[:1000])
    assert train(out, finished, given), "half a file is none"


def test_parts_of_another_version_are_refused(tmp_path):
    cfg = Config(save_every=1, resume=True)
    TrainingState(tmp_path, "x", cfg, [], average={"a": torch.ones(2)}).save_if_due(1)
    with pytest.raises(BadInput, match="x.state-1.pt: damaged .of another version"):
        TrainingState(tmp_path, "x", cfg, [], averages={"a": torch.ones(2)}).resume()
