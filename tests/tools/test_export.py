"""tools/export.py: the command writes a folder that loads again as the same model."""

from pathlib import Path

import pytest
import torch
from runs import command

from core.checkpoint import load_checkpoint
from core.config import BadInput
from core.gpt2 import load_gpt2
from tools import export

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkpoint_becomes_a_folder(run, capsys):
    out = run / "export"
    export.main(export.Config(checkpoint=str(run / "sft.pt"), out=str(out)))
    assert f"GPT2LMHeadModel.from_pretrained({str(out)!r})" in capsys.readouterr().out
    names = ["config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer_config.json"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "vocab.json"]
    exported, original = load_gpt2(out)[0], load_checkpoint(run / "sft.pt", "policy")[0]
    assert exported.state_dict().keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor)


def test_what_is_no_policy_is_refused(run):
    with pytest.raises(BadInput, match="--checkpoint: give"):
        export.main(export.Config())
    with pytest.raises(BadInput, match="holds a scalar model"):
        export.main(export.Config(checkpoint=str(run / "reward.pt"), out=str(run / "export")))
    assert not (run / "export").exists()


def test_the_command_line_reports_in_one_line(tmp_path, monkeypatch, capsys):
    code, _, errors = command("tools/export.py", ["--checkpoint", tmp_path / "none.pt"], monkeypatch, capsys)
    assert code == 2 and len(errors.splitlines()) == 1 and "none.pt: no such checkpoint" in errors
