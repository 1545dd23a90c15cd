"""tools/gpu_check.py on a pretended GPU, so that a real one's minutes are not spent on mistakes in it."""

import json

import pytest
import torch
from pretend_cuda import PretendCuda

from core.config import BadInput
from model import GPTConfig
from tools import benchmark, gpu_check

TINY = GPTConfig(2, 2, 16, 96, 500)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(gpu_check, "SHAPE", TINY)
    monkeypatch.setitem(benchmark.SIZES, "village", TINY)
    monkeypatch.setattr(benchmark, "measure_rates", lambda device, dtype: benchmark.Rates(1e10, 1e9))


def test_parity_is_found_where_there_is_parity(tiny):
    table = gpu_check.Table()
    with PretendCuda() as gpu:
        gpu_check.parity(gpu_check.Config(), torch.device("cuda"), table)
    assert len(table) == 15 and all(row["kept"] is True for row in table)
    assert gpu.backward_on == {"cpu", "cuda"}
    assert all("0" == row["measured"] for row in table), "the pretended GPU computes on the CPU"


def test_what_differs_is_found(tiny, monkeypatch):
    """A device that rounds, and one that draws other tokens."""
    made = gpu_check.made
    monkeypatch.setattr(gpu_check, "made", lambda kind, device, seed: made(kind, device, seed + (device != "cpu")))
    table = gpu_check.Table()
    with PretendCuda():
        gpu_check.parity(gpu_check.Config(), torch.device("cuda"), table)
    assert not any(row["kept"] for row in table if "difference of the loss" not in row["what"])


def test_the_benchmark_runs_on_a_gpu(tiny, monkeypatch, capsys):
    """Every row of the table, with what only CUDA has left out."""
    for name, result in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 10**8)):
        monkeypatch.setattr(torch.cuda, name, lambda result=result: result)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU that is none")
    monkeypatch.setattr(benchmark, "row", benchmark.row)  # put back afterwards
    table, cfg = gpu_check.Table(), gpu_check.Config(device="cuda", dtype="float32", threads=1, small=True)
    with PretendCuda() as gpu:
        gpu_check.speed(cfg, "gpt2", table)
    assert gpu.backward_on == {"cuda"}
    rows = [gpu_check.judged("gpt2", row) for row in table]
    found = {beginning for _, beginning, *_ in gpu_check.TARGETS for row in rows if row["what"].startswith(beginning)}
    assert found == {"sampling", "training", "PPO", "  peak memory"}
    assert sum(row["kept"] is not None for row in rows) == 4
    (peak,) = [row for row in rows if "peak memory" in row["what"]]
    assert peak["measured"] == "0.100 GB"


JUDGED = [
    ("gpt2-xl", "sampling 8 x 8", "", "", "61%", True),
    ("gpt2-xl", "sampling 8 x 8", "", "", "59%", False),
    ("gpt2", "training, 4 x 16", "", "", "36%", True),
    ("gpt2-xl", "training, 4 x 16", "", "", "36%", False),
    ("gpt2", "  peak memory, its tensors", "1.100 GB", "1.000 GB", "", True),
    ("gpt2", "  peak memory, its tensors", "1.300 GB", "1.000 GB", "", False),
    ("run", "run.py", "89.0 s", "", "", True),
    ("run", "run.py", "91.0 s", "", "", False),
    ("gpt2 --capture", "sampling 8 x 8", "", "", "10%", None),
]


@pytest.mark.parametrize("part, what, measured, bound, note, kept", JUDGED)
def test_targets(part, what, measured, bound, note, kept):
    row = {"what": what, "measured": measured, "bound": bound, "note": note, "kept": None}
    assert gpu_check.judged(part, row)["kept"] is kept


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    """And what it had measured before is kept; parts without time are named."""

    def run_part(cfg, part, limit):
        if part == "run":
            clock[0] += 500
            return "out of memory"
        (tmp_path / f"part-{part}.json").write_text(
            json.dumps([{"what": f"{part}!", "measured": "1", "bound": "", "note": "", "kept": True}])
        )
        return ""

    clock = [0.0]
    monkeypatch.setattr(gpu_check.time, "time", lambda: clock[0])
    monkeypatch.setattr(gpu_check, "run_part", run_part)
    (tmp_path / "part-run.json").write_text("[]")
    cfg = gpu_check.Config(device="cpu", out=str(tmp_path), only="parity,run,tests,gpt2 --versus trl", minutes=5.0)
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None)
    gpu_check.main(cfg)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    problems = {name: part["problem"] for name, part in parts.items()}
    assert problems == {
        "parity": "",
        "run": "failed: out of memory",
        "tests": "no time left",
        "gpt2 --versus trl": "not installed",
    }
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| parity! | 1 |  |  ✓ |" in text and "tests!" not in text and "out of memory" in text


def test_a_process_is_ended_at_its_limit(tmp_path):
    cfg = gpu_check.Config(device="cpu", out=str(tmp_path), threads=1, small=True)
    assert gpu_check.run_part(cfg, "parity", 0.05) == "not ready within 0 s"


def test_what_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--only speed: choose from parity, tests"):
        gpu_check.main(gpu_check.Config(device="cpu", out=str(tmp_path), only="speed"))
    with pytest.raises(BadInput, match="--device cuda:7"):
        gpu_check.main(gpu_check.Config(device="cuda:7", out=str(tmp_path)))
