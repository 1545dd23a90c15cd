"""What people write: kept once, on the disk, by several servers at a time; who ranks what; several folders as one."""

import threading

import pytest
from runs import records_of

from core.config import BadInput
from data import people
from data.folder import read_comparisons, read_demonstrations, write_jsonl
from data.people import PeopleFolder, dense, next_task

# ---------------------------------------------------------------------------------------------------- nothing is lost


def record(number, labeler="Ann", **more):
    return {"id": str(number), "labeler": labeler, "group": "training"} | more


def test_a_submission_that_is_sent_twice_is_kept_once(tmp_path):
    kept = PeopleFolder(tmp_path)
    for folder in (kept, kept, PeopleFolder(tmp_path)):
        assert folder.add("demonstrations", record(1, text="first")) == record(1, text="first")
        assert folder.add("demonstrations", record(1, text="changed on its way")) == record(1, text="first")
    assert records_of(tmp_path / "demonstrations.jsonl") == [record(1, text="first")]


def test_two_servers_on_one_folder_see_each_others_records(tmp_path):
    one, two = PeopleFolder(tmp_path), PeopleFolder(tmp_path)
    for i in range(6):
        (one if i % 2 else two).add("comparisons", record(i, task=f"t{i}"))
    with pytest.raises(BadInput, match="done this one"):
        two.add("comparisons", record("other", task="t1"))
    assert two.undo("3", "Ann") == ("comparisons", record(3, task="t3"))
    one.add("comparisons", record(6, task="t3"))
    two.add("comparisons", record(7, task="t7"))
    for folder in (one, two, PeopleFolder(tmp_path)):
        with folder.alone():
            assert [r["id"] for r in folder.of("comparisons")] == ["0", "1", "2", "4", "5", "6", "7"]
    assert [r["id"] for r in records_of(tmp_path / "comparisons.jsonl")] == ["0", "1", "2", "4", "5", "6", "7"]


@pytest.mark.skipif(people.fcntl is None, reason="no file locks on this system: one server per folder")
def test_one_server_waits_while_another_writes(tmp_path):
    one, two, done = PeopleFolder(tmp_path), PeopleFolder(tmp_path), threading.Event()
    thread = threading.Thread(target=lambda: (two.add("comparisons", record(1)), done.set()))
    with one.alone():
        thread.start()
        assert not done.wait(0.1)
    thread.join()
    assert done.is_set() and one.add("comparisons", record(1, text="again")) == record(1)


def test_a_crash_between_undo_and_its_effect(tmp_path):
    PeopleFolder(tmp_path).add("comparisons", record(1))
    (tmp_path / "undone.jsonl").write_text('{"id": "1"}\n')
    assert PeopleFolder(tmp_path).of("comparisons") == [] == records_of(tmp_path / "comparisons.jsonl")


@pytest.mark.parametrize("torn", [b'{"id": "2", "lab', '{"id": "2", "text": "é'.encode()[:-1], b"\x00\x00\x00"])
def test_a_torn_last_line_is_removed_with_a_word(tmp_path, capsys, torn):
    kept = PeopleFolder(tmp_path)
    kept.add("comparisons", record(1))
    path = tmp_path / "comparisons.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    other = PeopleFolder(tmp_path)
    assert "comparisons.jsonl: the last line was cut short" in capsys.readouterr().out
    other.add("comparisons", record(3))
    kept.add("comparisons", record(4))  # a server that has lived on
    assert records_of(path) == [record(1), record(3), record(4)]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    kept = PeopleFolder(tmp_path)
    kept.add("comparisons", record(1))

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(people.os, "fsync", full)
        with pytest.raises(OSError):
            kept.add("comparisons", record(2))
    assert records_of(tmp_path / "comparisons.jsonl") == [record(1)]
    kept.add("comparisons", record(2))
    assert records_of(tmp_path / "comparisons.jsonl") == [record(1), record(2)]


def test_a_line_that_is_not_ours_is_named(tmp_path):
    (tmp_path / "comparisons.jsonl").write_text("not JSON\n")
    with pytest.raises(BadInput, match="comparisons.jsonl: a line that is not JSON"):
        PeopleFolder(tmp_path)


# ---------------------------------------------------------------------------------------------------- who ranks what


def test_next_task_prefers_what_one_other_person_has_ranked(tmp_path):
    tasks = {f"v{i}": {"split": "valid"} for i in range(5)} | {f"t{i}": {"split": "train"} for i in range(3)}
    kept = PeopleFolder(tmp_path)

    def ranked(who, task, group="training"):
        kept.add("comparisons", {"id": f"{who} {task}", "task": task, "labeler": who, "group": group})

    ranked("Ann", "v3")
    assert next_task(tasks, kept, "Hal", "held_out") == "v3", "what the other group has ranked"
    ranked("Zoe", "v4", "held_out")
    assert next_task(tasks, kept, "Hal", "held_out") == "v4", "before that, what one of the own group has"
    ranked("Hal", "v4", "held_out")
    assert next_task(tasks, kept, "Ida", "held_out") == "v3"
    ranked("Ann", "t0")
    assert next_task(tasks, kept, "Ben", "training") in ("t1", "t2")
    assert next_task(tasks, kept, "Ben", "training", taken={"t1"}) == "t2"
    assert next_task({}, kept, "Ben", "training") is None


def test_dense():
    assert dense([2, 5, 5, 9]) == [1, 2, 2, 3] and dense([7]) == [1]


# ---------------------------------------------------------------------------------------------------- judgements


@pytest.mark.parametrize(
    "change", [{"models": ["a"]}, {"completions": "xy"}, {"preferred": 3}, {"group": "x"}, {"prompt": ""}]
)
def test_wrong_judgements_are_refused_with_their_line(tmp_path, change):
    right = {"prompt": "Q", "models": ["a", "b"], "completions": ["x", "y"], "preferred": 0, "group": "training"}
    write_jsonl(tmp_path / "judgements.jsonl", [right, right | change])
    with pytest.raises(BadInput, match=f'judgements.jsonl:2: "{next(iter(change))}"'):
        people.read_judgements(tmp_path / "judgements.jsonl")


# ---------------------------------------------------------------------------------------------------- several as one


def test_joining_folders(tmp_path, capsys, data):
    folders = [tmp_path / name for name in ("a", "b")]
    ranking = {"prompt": "Q\n", "completions": ["x", "y"], "ranks": [1, 2], "split": "valid", "task": "q"}
    a, b = map(PeopleFolder, folders)
    a.add("comparisons", record(1, **ranking))
    a.add("comparisons", record(2, "Ben", **ranking))
    a.add("demonstrations", record(3, prompt="Q\n", completion="A", split="train"))
    b.add("comparisons", record(4, "Cy", **ranking))
    b.add("comparisons", record(1, **ranking))  # somebody copied it
    b.add("judgements", record(5, models=["m", "n"], completions=["x", "y"], preferred=1, prompt="Q\n"))
    a.add("comparisons", record(6, "Dan", **ranking))
    a.undo("6", "Dan")
    with open(folders[1] / "comparisons.jsonl", "a") as file:
        file.write('{"torn')
    out = tmp_path / "out"
    people.main(people.Config(people=f"{folders[0]}, {folders[1]}", out=str(out)))
    assert [r["id"] for r in read_comparisons(out / "comparisons.jsonl")] == ["1", "2", "4"]
    assert len(people.read_judgements(out / "judgements.jsonl")) == 1 == len(records_of(out / "demonstrations.jsonl"))
    printed = capsys.readouterr().out
    assert (
        "cut short" in printed and "two training labelers agree on 100.0 %" in printed and "Cy (training): 1" in printed
    )
    people.main(people.Config(people=",".join(map(str, folders)), out=str(tmp_path / "new"), data=str(data)))
    assert len(read_demonstrations(tmp_path / "new", "train")) == len(read_demonstrations(data, "train")) + 1
    assert len(read_comparisons(tmp_path / "new" / "comparisons.jsonl")) == 3
    assert (tmp_path / "new" / "corpus.train.bin").read_bytes() == (data / "corpus.train.bin").read_bytes()
    PeopleFolder(tmp_path / "c").add("comparisons", record(9, **ranking) | {"group": "held_out"})
    for given, words in (
        (f"{folders[0]},{tmp_path / 'c'}", "Ann has worked as a training labeler"),
        (str(tmp_path / "nowhere"), "no such folder"),
        (f"{out}", "is one of --people"),
    ):
        with pytest.raises(BadInput, match=words):
            people.main(people.Config(people=given, out=str(out)))
