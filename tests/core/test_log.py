"""Records on disk, a table on the screen, the time that is left."""

import io
import json

import pytest
import torch

import core.log
from core.config import BadInput
from core.log import JsonLines, Log, number


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so."""

    class Clock:
        now = 1e9

        def time(self):
            return self.now

    monkeypatch.setattr(core.log, "time", Clock())
    return core.log.time


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------- records


def test_records_are_appended_and_rounded(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("of an earlier run\n")
    log = JsonLines(path)
    log.clear()
    log.write(step=1, loss=0.12345678, note="é", table=[1.23456789], none=None)
    assert records(path) == [{"step": 1, "loss": 0.123457, "note": "é", "table": [1.23456789], "none": None}]
    assert "é" in path.read_text(encoding="utf-8"), "readable, not escaped"
    log.write(step=2)
    JsonLines(path).write(step=3)
    assert [r["step"] for r in records(path)] == [1, 2, 3]
    (tmp_path / "empty.jsonl").touch()


def test_of_several_processes_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    log = JsonLines(tmp_path / "log.jsonl")
    log.clear()
    log.write(step=1)
    log.load_state_dict({"bytes": 0})
    assert not log.path.exists()


def test_a_resumed_log_forgets_what_came_after_the_state(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    assert log.state_dict() == {"bytes": 0}
    log.write(step=1)
    state, kept = log.state_dict(), log.path.read_text()
    log.write(step=2)
    again = JsonLines(log.path)
    again.load_state_dict(state)
    assert log.path.read_text() == kept
    log.path.unlink()  # somebody deleted it before --resume
    again.load_state_dict(state)
    again.write(step=2)
    assert records(log.path) == [{"step": 2}]
    log.path.write_text("")  # or emptied it: it must not be filled up with zeros
    again.load_state_dict(state)
    again.write(step=3)
    assert records(log.path) == [{"step": 3}]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan"))])
def test_a_metric_that_is_no_number_stops_the_run(tmp_path, bad):
    log = Log(tmp_path / "log.jsonl", 9, "loss")
    log(1, loss=torch.tensor(2.5))
    with pytest.raises(BadInput, match="loss became -?(nan|inf) at step 2.*--learning_rate"):
        log(2, fine=1.0, loss=bad)
    assert records(log.path) == [{"step": 1, "loss": 2.5}]


# ---------------------------------------------------------------------------------------------------- the table


def rows_of(text):
    return [line.split() for line in text.splitlines()]


def test_the_table(tmp_path, capsys, clock):
    log = Log(tmp_path / "log.jsonl", 3, "loss learning_rate valid_loss", every=0)
    log(1, loss=2.5, learning_rate=1e-4)
    clock.now += 60
    log(2, loss=1234.5, learning_rate=0.5, unseen=3.0)
    clock.now += 60
    log(3, loss=-0.25, learning_rate=0.0, valid_loss=1.5)
    text = capsys.readouterr().out
    assert rows_of(text) == [
        ["learning", "valid"],
        ["step", "loss", "rate", "loss", "left"],
        ["1/3", "2.500", "1.0e-4", "-"],
        ["2/3", "1,234", "0.500", "-", "1:00"],
        ["3/3", "-0.250", "0.000", "1.500", "0:00"],
    ]
    ends = {len(line) for line in text.splitlines()[1:]} - {len(text.splitlines()[2])}
    assert len(ends) == 1, "columns stand one below the other"
    assert records(log.path)[1] == {"step": 2, "loss": 1234.5, "learning_rate": 0.5, "unseen": 3.0}


def test_the_head_comes_again_every_twenty_rows(tmp_path, capsys):
    log = Log(tmp_path / "log.jsonl", 45, "loss", every=0)
    for step in range(1, 46):
        log(step, loss=1.0)
    rows = rows_of(capsys.readouterr().out)
    assert [i for i, row in enumerate(rows) if "step" in row] == [0, 21, 42] and len(rows) == 48


@pytest.mark.parametrize("first", [1, 41])
def test_the_time_left_is_right_from_the_second_record(tmp_path, clock, first):
    """Also in a run that was resumed at step 40, and whatever time went by before the first record."""
    log = Log(tmp_path / "log.jsonl", 100, "loss")
    clock.now += 500
    log(first, loss=1.0)
    assert log.left(first) == ""
    for step in range(first + 1, first + 5):
        clock.now += 3
        log(step, loss=1.0)
        seconds = 3 * (100 - step)
        assert log.left(step) == f"{seconds // 60}:{seconds % 60:02d}"


def test_a_file_is_not_flooded(tmp_path, capsys, clock):
    """A row every ten seconds, at a new metric, and at the end; all the records go to the log."""
    log = Log(tmp_path / "log.jsonl", 1000, "loss valid_loss", every=10)
    for step in range(1, 1001):
        more = {"valid_loss": 2.0} if step in (555, 800) else {}
        log(step, loss=1.0, **more)
        clock.now += 0.1
    text = capsys.readouterr().out
    shown = [int(row[0].split("/")[0]) for row in rows_of(text) if "/1000" in row[0]]
    assert "\r" not in text and len(records(log.path)) == 1000
    assert {1, 555, 800, 1000} <= set(shown) and 10 <= len(shown) <= 14
    assert [r for r in rows_of(text) if r[0] == "555/1000"][0][2] == "2.000"


def test_a_terminal_redraws_the_newest_record(tmp_path, monkeypatch, clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    log = Log(tmp_path / "log.jsonl", 4, "loss", every=1000)
    for step in range(1, 5):
        log(step, loss=float(step))
    first, *redrawn = core.log.sys.stdout.getvalue().split("1.000")
    lines = core.log.sys.stdout.getvalue().split("\n")
    assert lines[1].split()[:2] == ["1/4", "1.000"]
    drawn = lines[2].split("\r")
    assert [row.split()[:2] for row in drawn] == [["2/4", "2.000"], ["3/4", "3.000"], ["4/4", "4.000"]]
    assert len({len(row) for row in drawn}) == 1, "each covers the one before"


def test_numbers():
    said = {None: "-", 7: "7", 1024: "1,024", 0.0: "0.000", 0.1234: "0.123", -12.3: "-12.300", 100.0: "100"}
    said |= {-12345.6: "-12,346", 1.23e-5: "1.2e-5", -3e-4: "-3.0e-4", 2.5e7: "2.5e+7", 99.9999: "100", 0.0005: "0.001"}
    for value, text in said.items():
        assert number(value) == text
    for exponent in range(-8, 9):
        for digits in (1, 4.99951, 9.99951, 9.9999999):
            for sign in (1, -1):
                value = sign * digits * 10.0**exponent
                assert len(number(value)) <= 7, value
                assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.06, abs=6e-4)
