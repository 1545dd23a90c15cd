"""GPT-2's weights in and out: names and shapes, the file format, what is refused, and transformers as the witness."""

import hashlib
import json
import struct

import pytest
import torch
from file_server import Server

from core import gpt2
from core.config import BadInput
from core.gpt2 import load_gpt2
from data.bpe import build_tokenizer, read_gpt2_files, tokenizer_spec_from, write_gpt2_files
from model import GPT, SIZES, GPTConfig, generate

CFG = GPTConfig(2, 2, 16, 64, 300)


def make(seed=0, cfg=CFG):
    torch.manual_seed(seed)
    model = GPT(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


# ---------------------------------------------------------------------------------------------------- the file format


def test_safetensors_round_trip_and_layout(tmp_path):
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(2.5, dtype=torch.bfloat16),
        "c": torch.ones(3, dtype=torch.int64),
    }
    gpt2.write_safetensors(tmp_path / "x.safetensors", tensors)
    raw = (tmp_path / "x.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    assert header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} and n % 8 == 0
    assert struct.unpack("<6f", raw[8 + n : 32 + n]) == (0, 1, 2, 3, 4, 5)
    back = gpt2.read_safetensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_damaged_safetensors_are_one_line(tmp_path):
    gpt2.write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(50)})
    raw = (tmp_path / "x.safetensors").read_bytes()
    for broken in (b"", raw[:5], raw[:30], raw[:-1], b"\xff" * 40, raw[:8] + b"x" + raw[9:]):
        (tmp_path / "y.safetensors").write_bytes(broken)
        with pytest.raises(BadInput, match=r"y\.safetensors: .*download it again"):
            gpt2.read_safetensors(tmp_path / "y.safetensors")


# ---------------------------------------------------------------------------------------------------- in and out


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "safetensors", "bin", "old names"])
def test_out_and_in_again_gives_the_same_logits(tmp_path, tokenizer_spec, tokenizer, form):
    model, tokens = make(), torch.randint(300, (2, 9))
    gpt2.export(model, tokenizer, tmp_path / "out")
    path = tmp_path / "out"
    if form == "safetensors":
        path = path / "model.safetensors"
    if form in ("bin", "old names"):
        tensors = gpt2.to_gpt2(model.state_dict())
        if form == "old names":  # as the first releases: no prefix, the causal masks among the weights, the tied head
            tensors = {k.removeprefix("transformer."): v for k, v in tensors.items()}
            tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
            tensors["lm_head.weight"] = tensors["wte.weight"].clone()
        (path / "model.safetensors").unlink()
        torch.save(tensors, path / "pytorch_model.bin")
    again, _, checkpoint = load_gpt2(path, "cpu", 0.1, tokenizer_spec)
    assert again.config == GPTConfig(2, 2, 16, 64, 300, 0.1) and checkpoint["tokenizer"] == tokenizer_spec
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert torch.equal(model.unembed(model(tokens)), again.unembed(again(tokens)))


def test_linear_layers_are_transposed_and_embeddings_are_not():
    exported = gpt2.to_gpt2(make().state_dict())
    assert exported["transformer.h.0.attn.c_attn.weight"].shape == (16, 48)
    assert exported["transformer.h.1.mlp.c_fc.weight"].shape == (16, 64)
    assert exported["transformer.wte.weight"].shape == (300, 16)


def test_every_size_has_its_weights_and_shape():
    for name in gpt2.WEIGHTS:
        with torch.device("meta"):
            state = gpt2.from_gpt2(gpt2.to_gpt2(GPT(SIZES[name]).state_dict()))
        assert gpt2.config_of(state, {}, "x") == SIZES[name], "heads of 64 channels, without config.json"


# ---------------------------------------------------------------------------------------------------- what is refused


def refused(path, match, tokenizer_spec=None):
    with pytest.raises(BadInput, match=match) as problem:
        load_gpt2(path, tokenizer_spec=tokenizer_spec)
    assert "\n" not in str(problem.value)


@pytest.fixture
def exported(tmp_path, tokenizer):
    """An exported model, and a function that changes its config.json."""
    gpt2.export(make(), tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())

    def change(**settings):
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | settings))

    return tmp_path / "out", change


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"model_type": "gpt_neo"}, 'model_type is "gpt_neo"'),
        ({"activation_function": "relu"}, 'activation_function is "relu", but only "gelu_new" as in GPT-2'),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ({"scale_attn_weights": False}, "scale_attn_weights is false"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"n_inner": 32}, "n_inner is 32, but only 4 . n_embd"),
    ],
)
def test_another_architecture_is_refused(exported, settings, match):
    folder, change = exported
    change(**settings)
    refused(folder, rf"config\.json: {match}")


def test_settings_that_change_nothing_are_accepted(exported):
    folder, change = exported
    change(reorder_and_upcast_attn=True, n_inner=64, activation_function="gelu_pytorch_tanh", scale_attn_weights=True)
    load_gpt2(folder)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_config_is_named(exported, text):
    folder, _ = exported
    (folder / "config.json").write_text(text)
    refused(folder, r"config\.json: (not JSON|expected an object)")


@pytest.mark.parametrize("heads", [0, 3, "2", None])
def test_heads_that_do_not_fit_are_refused(exported, heads):
    folder, change = exported
    change(n_head=heads)
    refused(folder, f"16 channels do not make {heads} heads")


def test_another_width_inside_is_refused_without_config(exported):
    folder, _ = exported
    (folder / "config.json").unlink()
    tensors = gpt2.read_safetensors(folder / "model.safetensors")
    narrow = {k: v[..., :32] if "c_fc" in k else v[:32] if "mlp.c_proj.weight" in k else v for k, v in tensors.items()}
    gpt2.write_safetensors(folder / "model.safetensors", narrow)
    refused(folder, r"model\.safetensors: n_inner is 32")


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_an_untied_head_is_refused(exported, prefix):
    folder, _ = exported
    tensors = gpt2.read_safetensors(folder / "model.safetensors")
    tensors = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    head = tensors[f"{prefix}wte.weight"].clone()
    gpt2.write_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": head})
    load_gpt2(folder)
    head[7, 3] += 0.01
    gpt2.write_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": head})
    refused(folder, r"model\.safetensors: lm_head\.weight differs")


def test_wrong_weights_are_one_line(exported, tmp_path):
    folder, _ = exported
    gpt2.write_safetensors(tmp_path / "odd.safetensors", {"weird": torch.ones(3)})
    refused(tmp_path / "odd.safetensors", "odd.safetensors: not GPT-2's weights")
    tensors = gpt2.read_safetensors(folder / "model.safetensors")
    del tensors["transformer.h.1.ln_1.bias"]
    gpt2.write_safetensors(folder / "model.safetensors", tensors)
    refused(folder, "not GPT-2's weights .*Missing.*h.1.ln_1.bias")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds neither model.safetensors")
    refused(tmp_path / "nowhere", "nowhere: no such file or folder")


# ---------------------------------------------------------------------------------------------------- the tokenizer


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 120, 280])
def test_end_of_text_keeps_its_id(tmp_path, tokenizer_spec, place):
    """The same model with the rows of its embedding moved as the ids are: the same logits, in the moved places."""
    tokens = [build_tokenizer(tokenizer_spec).decode_single_token_bytes(i) for i in range(299)]
    moved_spec = tokenizer_spec_from(tokens, "gpt2", end_of_text=place)
    order = [*range(place), 299, *range(place, 299)]  # new id -> old id
    model, moved = make(), make()
    moved.transformer.wte.weight.copy_(model.transformer.wte.weight[order])
    gpt2.export(moved, build_tokenizer(moved_spec), tmp_path)
    again, tokenizer, checkpoint = load_gpt2(tmp_path)
    assert tokenizer.eot_token == place and checkpoint["tokenizer"] == moved_spec
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == place
    text = "The brown fox is réd.  \n 123 ☃!"
    old, new = build_tokenizer(tokenizer_spec).encode_ordinary(text), tokenizer.encode_ordinary(text)
    assert [order[i] for i in new] == old
    logits = again.unembed(again(torch.tensor([new])))
    torch.testing.assert_close(logits, model.unembed(model(torch.tensor([old])))[..., order])


def test_the_data_folder_must_have_the_tokenizer_of_the_weights(exported, tokenizer_spec, tmp_path):
    folder, _ = exported
    tokens = [build_tokenizer(tokenizer_spec).decode_single_token_bytes(i) for i in range(299)]
    load_gpt2(folder, tokenizer_spec=tokenizer_spec)
    load_gpt2(folder, tokenizer_spec=tokenizer_spec | {"name": "other"})
    refused(folder, "300 tokens, but the tokenizer has 299.*--gpt2", tokenizer_spec_from(tokens[:298], "t"))
    moved = tokenizer_spec_from(tokens, "t", end_of_text=0)
    refused(folder, f"vocab.json: another tokenizer than the data folder's.*--gpt2_files {folder}", moved)
    (folder / "vocab.json").unlink()  # nothing says what the ids mean, so their number is all there is to check
    load_gpt2(folder, tokenizer_spec=tokenizer_spec)
    refused(folder, "300 tokens, but the tokenizer has 299", tokenizer_spec_from(tokens[:298], "t"))


def test_the_exported_tokenizer_reads_back(tmp_path, tokenizer_spec, tokenizer):
    write_gpt2_files(tmp_path, tokenizer)
    assert read_gpt2_files(tmp_path) == tokenizer_spec | {"name": "gpt2"}


# ---------------------------------------------------------------------------------------------------- names


def test_no_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    refused("gpt2", "could not be reached.*network.*by hand.*model.safetensors")


def test_a_name_is_found_in_the_caches_before_anything_is_downloaded(tmp_path, monkeypatch, tokenizer_spec, tokenizer):
    model, tokens = make(), torch.randint(300, (1, 5))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    gpt2.export(model, tokenizer, tmp_path / "made")
    raw = (tmp_path / "made" / "model.safetensors").read_bytes()
    monkeypatch.setitem(gpt2.WEIGHTS, "gpt2", (hashlib.sha256(raw).hexdigest(), "little"))
    config = (tmp_path / "made" / "config.json").read_text()
    with Server(raw) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        path = gpt2.find("gpt2")
        assert server.asked[0] == "/openai-community/gpt2/resolve/main/model.safetensors"
        (path.parent / "config.json").write_text(config)  # 16 channels are not one head of 64
        assert torch.equal(load_gpt2("gpt2", tokenizer_spec=tokenizer_spec)[0](tokens), model(tokens))
        assert len(server.asked) == 1
        snapshot = tmp_path / "hf" / "hub" / "models--openai-community--gpt2" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(raw)
        assert gpt2.find("gpt2") == snapshot / "model.safetensors" and len(server.asked) == 1


# ---------------------------------------------------------------------------------------------------- transformers


@torch.no_grad()
def test_transformers_agrees_in_both_directions(tmp_path, tokenizer_spec, tokenizer):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: parity is not checked")
    model = make()
    gpt2.export(model, tokenizer, tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(300, (3, 12))
    torch.testing.assert_close(theirs(tokens).logits, model.unembed(model(tokens)), atol=1e-4, rtol=0)

    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]  # unequal lengths: theirs are padded on the left
    rows, lengths, _ = generate(model, prompts, 10, tokenizer.eot_token, temperature=0)
    ids, seen = torch.full((3, 6), 299), torch.zeros(3, 6, dtype=torch.long)
    for i, p in enumerate(prompts):
        ids[i, 6 - len(p) :], seen[i, 6 - len(p) :] = torch.tensor(p), 1
    out = theirs.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=10, pad_token_id=299)
    for i, p in enumerate(prompts):
        ours = rows[i, len(p) : lengths[i]].tolist()
        assert out[i, 6 : 6 + len(ours)].tolist() == ours

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The brown fox is réd.  \n 123 ☃!"
    assert auto(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_ordinary(text)

    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=3, n_head=2, n_embd=128, vocab_size=300, n_positions=32)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again, _, _ = load_gpt2(tmp_path / "theirs", tokenizer_spec=tokenizer_spec)
    torch.testing.assert_close(theirs(tokens).logits, again.unembed(again(tokens)), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 120])
def test_transformers_agrees_on_end_of_text_elsewhere(tmp_path, tokenizer_spec, place):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: parity is not checked")
    tokens = [build_tokenizer(tokenizer_spec).decode_single_token_bytes(i) for i in range(299)]
    tokenizer = build_tokenizer(tokenizer_spec_from(tokens, "gpt2", end_of_text=place))
    gpt2.export(make(), tokenizer, tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "The brown fox is réd.  \n 123 ☃!"
    assert auto(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_ordinary(text)
    assert auto.eos_token_id == place
