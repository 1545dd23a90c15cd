"""Pretraining on windows from anywhere and from documents' beginnings: both trained, measured and tabled."""

import json

from ablations import document_starts
from core.checkpoint import read_checkpoint
from data.folder import Corpus


def test_both_are_trained_on_their_own_windows_and_measured(data, tmp_path, monkeypatch, capsys):
    begun = {}

    def remembering(corpus, starts, length, examples=Corpus.examples):
        begun.setdefault((str(corpus.path.name), corpus.anywhere), set()).update(int(start) for start in starts)
        return examples(corpus, starts, length)

    monkeypatch.setattr(Corpus, "examples", remembering)
    cfg = document_starts.Config(data=str(data), out=str(tmp_path), steps=3, block_size=64, threads=1)
    document_starts.main(cfg)
    documents = set(Corpus(data, "train").document_starts().tolist())
    aligned, anywhere = (begun["corpus.train.bin", flag] for flag in (False, True))
    assert aligned <= documents and not anywhere <= documents
    found = json.loads((tmp_path / "document_starts.json").read_text())["models"]
    settings = {name: read_checkpoint(tmp_path / name / "base.pt")["config"] for name in found}
    assert [settings[name]["anywhere"] for name in ("documents", "anywhere")] == [False, True]
    for name in found:
        mean, error = found[name]["reward_model"]["training"]
        assert 0 <= mean <= 1 and error >= 0
        losses = found[name]["corpus_loss"]
        assert all(4 < loss < 7 for loss in losses.values()), "about ln 300, after three steps"
        assert losses["documents"] != losses["anywhere"], "other windows"
    text = (tmp_path / "document_starts.md").read_text()
    assert f"{100 * mean:.0f} ± {100 * error:.0f} %" in text
    assert text in capsys.readouterr().out and f"{found['anywhere']['corpus_loss']['documents']:.3f}" in text
