"""Files are whole or absent, whatever happens while they are written."""

import os
import resource

import pytest
import torch
from small_models import CFG, make

from core.checkpoint import save_checkpoint
from core.output import output_folder, whole_file, write_torch


@pytest.mark.parametrize("mode, old, new", [("w", "old", "né"), ("wb", b"old", b"\x00new")])
def test_whole_file(tmp_path, mode, old, new):
    path = tmp_path / "deep" / "x"
    with whole_file(path, mode) as file:
        file.write(old)
    with pytest.raises(RuntimeError), whole_file(path, mode) as file:
        file.write(new)
        file.flush()
        raise RuntimeError("half-way")
    read = (lambda: path.read_bytes()) if "b" in mode else (lambda: path.read_text(encoding="utf-8"))
    assert read() == old and os.listdir(path.parent) == ["x"]
    with whole_file(path, mode) as file:
        file.write(new)
        file.flush()
        assert read() == old, "the old file stays until the new one is whole"
    assert read() == new and os.listdir(path.parent) == ["x"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_written_through(tmp_path, exists):
    """A link into a folder on another disk, say: the file there is replaced, whole, and the link stays a link."""
    big, run = tmp_path / "big", tmp_path / "run"
    big.mkdir()
    run.mkdir()
    if exists:
        (big / "base.pt").write_bytes(b"old")
    (run / "base.pt").symlink_to(big / "base.pt")
    write_torch(run / "base.pt", {"x": torch.ones(2)})
    assert (run / "base.pt").is_symlink() and os.readlink(run / "base.pt") == str(big / "base.pt")
    assert torch.load(big / "base.pt", weights_only=True)["x"].tolist() == [1, 1]
    assert os.listdir(big) == os.listdir(run) == ["base.pt"]


def test_of_several_processes_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for mode, content in (("w", "é"), ("wb", b"x")):
        with whole_file(tmp_path / "x", mode) as file:
            file.write(content)
    write_torch(tmp_path / "y", {"x": torch.ones(2)})
    assert os.listdir(output_folder(tmp_path)) == []


@pytest.mark.parametrize("n_embd, room", [(16, 0.5), (64, 0.5), (64, 0.9)])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, tokenizer_spec, n_embd, room):
    """Where the disk is full while torch still writes tensors, torch reports an error of its own."""
    path, model = tmp_path / "x.pt", make(n_embd=n_embd)
    save_checkpoint(path, model, tokenizer_spec, CFG, 1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * len(before)), limits[1]))  # files cannot grow beyond this
        with pytest.raises(OSError) as problem:
            save_checkpoint(path, model, tokenizer_spec, CFG, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert problem.value.filename == str(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_write_error_names_the_file(tmp_path, monkeypatch):
    """The operating system says "no space left", not where; nothing is left behind."""
    really_open = open
    monkeypatch.setattr("builtins.open", lambda path, *how, **more: really_open("/dev/full", *how, **more))
    with pytest.raises(OSError) as problem, whole_file(tmp_path / "x.jsonl") as file:
        file.write("much")
    assert problem.value.filename == str(tmp_path / "x.jsonl") and os.listdir(tmp_path) == []


def test_other_errors_of_torch_stay_what_they_are(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        write_torch(tmp_path / "x", {"x": lambda: 0})
    assert os.listdir(tmp_path) == []


def test_output_folder(tmp_path):
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "a" / "file").write_text("")
    for path in (tmp_path / "a" / "file", tmp_path / "a" / "file" / "below"):
        with pytest.raises(OSError) as problem:
            output_folder(path)
        assert "file" in str(problem.value.filename)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc, where nobody can make a folder")
def test_output_folder_that_cannot_be_made():
    with pytest.raises(OSError) as problem:
        output_folder("/proc/self/no/such")
    assert "/proc/self/no" in str(problem.value.filename)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_is_read_only(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    for path in (folder, folder / "below"):
        with pytest.raises(OSError):
            output_folder(path)
