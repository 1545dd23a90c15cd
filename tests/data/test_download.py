"""data/download.py: each file once, whole and with the right checksum, or one clear line."""

import hashlib
import threading

import pytest
from file_server import Server

from core.config import BadInput
from data.download import download, hub_url, sha256

CONTENT = bytes(range(256)) * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(url, folder, match, checksum=None):
    """download() raises one line, and keeps nothing."""
    with pytest.raises(BadInput, match=match) as problem:
        download(url, folder / "file", "a file", checksum)
    assert "\n" not in str(problem.value)
    assert names_in(folder) == ["file.lock"]


@pytest.mark.parametrize("checksum", [SHA, None])
def test_a_file_is_fetched_once(tmp_path, checksum):
    path = tmp_path / "new" / "file"
    with Server(CONTENT) as server:
        for _ in range(2):
            assert download(server.url + "/f", path, "a file", checksum) == path
        assert server.asked == ["/f"] and path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["file", "file.lock"]


def test_a_wrong_checksum_is_thrown_away(tmp_path):
    with Server(CONTENT) as server:
        refused(server.url + "/f", tmp_path, "another file.*by hand", checksum="0" * 64)


@pytest.mark.parametrize("checksum", [SHA, None])
def test_a_transfer_that_is_cut_is_thrown_away(tmp_path, checksum):
    with Server(CONTENT, cut=300_000) as server:
        match = "another file" if checksum else "stopped at 300,000 of 1,280,000 bytes"
        refused(server.url + "/f", tmp_path, match, checksum)
        server.cut = None
        assert download(server.url + "/f", tmp_path / "file", "a file", checksum).read_bytes() == CONTENT


def test_what_the_server_says_is_one_line(tmp_path):
    with Server(CONTENT) as server:
        refused(server.url + "/missing", tmp_path, "the server says 404.*by hand and pass its path")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/f", "http://nowhere.invalid/f", "nonsense", "http://a b/"])
def test_no_network_is_one_line(tmp_path, url):
    refused(url, tmp_path, "could not be reached.*network.*by hand and pass its path.*file")


def test_several_at_once_fetch_it_once(tmp_path):
    with Server(CONTENT) as server:
        arguments = (server.url + "/f", tmp_path / "file", "a file", SHA)
        threads = [threading.Thread(target=download, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.asked == ["/f"] and (tmp_path / "file").read_bytes() == CONTENT


def test_a_mirror_of_the_hub_can_be_named(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/")
    assert hub_url("a/b") == "http://mirror/a/b"
    monkeypatch.delenv("HF_ENDPOINT")
    assert hub_url("a/b") == "https://huggingface.co/a/b"


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert sha256(tmp_path / "file") == SHA
