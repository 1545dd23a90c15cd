"""GPT-2's weights in and out: names and shapes, the file format, downloads that break, and transformers as the witness."""

import hashlib
import http.server
import json
import struct
import threading
from pathlib import Path

import pytest
import torch

import gpt2
from data.bpe import encoding_from, gpt2_tokenizer
from data.download import download
from model import GPT, GPTConfig, generate, load_checkpoint, save_checkpoint
from plumbing import BadInput

CFG = GPTConfig(2, 2, 16, 64, 300)
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gpt2"


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
def test_out_and_in_again_gives_the_same_logits(tmp_path, tokenizer, encoding, form):
    model, tokens = make(), torch.randint(300, (2, 9))
    gpt2.export(model, encoding, tmp_path / "out")
    path = tmp_path / "out"
    if form == "safetensors":
        path = path / "model.safetensors"
    if form in ("bin", "old names"):
        tensors = gpt2.to_theirs(model.state_dict())
        if form == "old names":  # as the first releases: no prefix, the causal masks among the weights, the tied head
            tensors = {k.removeprefix("transformer."): v for k, v in tensors.items()}
            tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
            tensors["lm_head.weight"] = tensors["wte.weight"]
        (path / "model.safetensors").unlink()
        torch.save(tensors, path / "pytorch_model.bin")
    again, _, checkpoint = load_checkpoint(path, "policy", dropout=0.1, tokenizer=tokenizer)
    assert again.config == GPTConfig(2, 2, 16, 64, 300, 0.1) and checkpoint["tokenizer"] == tokenizer
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert torch.equal(model.unembed(model(tokens)), again.unembed(again(tokens)))


def test_linear_layers_are_transposed_and_embeddings_are_not():
    theirs = gpt2.to_theirs(make().state_dict())
    assert theirs["transformer.h.0.attn.c_attn.weight"].shape == (16, 48)
    assert theirs["transformer.h.1.mlp.c_fc.weight"].shape == (16, 64)
    assert theirs["transformer.wte.weight"].shape == (300, 16)


def test_the_exported_tokenizer_reads_back(tmp_path, encoding):
    gpt2.write_tokenizer(tmp_path, encoding)
    back = encoding_from(gpt2.read_tokenizer(tmp_path))
    text = "The brown fox is réd.  \n 123 ☃!"
    assert back.encode_ordinary(text) == encoding.encode_ordinary(text) and back.eot_token == encoding.eot_token


@pytest.mark.skipif(not REAL.exists(), reason="GPT-2's own encoder.json and vocab.bpe are not beside the project")
def test_gpt2s_own_merges_come_out_as_they_were_released(tmp_path):
    encoding = encoding_from(gpt2_tokenizer(str(REAL)))
    gpt2.write_tokenizer(tmp_path, encoding)
    released = (REAL / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:] == [m for m in released[1:] if m]
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((REAL / "encoder.json").read_text())


def test_wrong_weights_are_one_line(tmp_path, tokenizer, encoding):
    gpt2.export(make(), encoding, tmp_path)
    with pytest.raises(BadInput, match="300 tokens, but the tokenizer has 50257.*--gpt2"):
        ranks = ["AA=="] + [f"{i:08d}" for i in range(50255)]
        load_checkpoint(
            tmp_path,
            "policy",
            tokenizer={"name": "x", "pattern": "x", "ranks": ranks, "special": {"<|endoftext|>": 50256}},
        )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    with pytest.raises(BadInput, match="config.json: not GPT-2's architecture"):
        load_checkpoint(tmp_path, "policy", tokenizer=tokenizer)
    gpt2.write_safetensors(tmp_path / "some.safetensors", {"weird": torch.ones(3)})
    with pytest.raises(BadInput, match="some.safetensors: not GPT-2's weights"):
        load_checkpoint(tmp_path / "some.safetensors", "policy", tokenizer=tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds neither model.safetensors"):
        load_checkpoint(tmp_path / "empty", "policy")
    with pytest.raises(BadInput, match="--checkpoint: give"):
        gpt2.main(gpt2.Config())


def test_every_size_has_its_weights_and_shape():
    from model import SIZES

    for name in gpt2.WEIGHTS:
        with torch.device("meta"):
            state = gpt2.to_ours(gpt2.to_theirs(GPT(SIZES[name]).state_dict()))
        assert gpt2.shape_of(state, Path("nowhere"), "x") == SIZES[name], "heads of 64 channels, without config.json"


# ---------------------------------------------------------------------------------------------------- downloads


class Server:
    """A web server on loopback that serves one file, in as many bytes per answer as `cuts` say."""

    def __init__(self, content, cuts=(), ranges=True, etag=""):
        server = self
        server.content, server.cuts, server.asked = content, list(cuts), []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append((self.path, self.headers.get("Range")))
                if "resolve" in self.path and etag:  # the hub sends to its storage and states the checksum
                    self.send_response(302)
                    self.send_header("Location", "/storage")
                    self.send_header("X-Linked-Etag", f'"{etag}"')
                    self.end_headers()
                    return
                start = int(self.headers["Range"][6:-1]) if ranges and self.headers.get("Range") else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = start + server.cuts.pop(0) if server.cuts else len(content)
                self.wfile.write(content[start:end])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


CONTENT = bytes(range(256)) * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_transfer_goes_on_where_it_stopped(tmp_path, ranges):
    path = tmp_path / "w" / "file"
    with Server(CONTENT, cuts=[300_000, 400_000], ranges=ranges) as server:
        for _ in range(2):
            with pytest.raises(BadInput, match="(stopped at|could not be reached).*(again|yourself)"):
                download(server.url + "/f", path, SHA, "a file")
            assert not path.exists()
        assert download(server.url + "/f", path, SHA, "a file").read_bytes() == CONTENT
        assert [r for _, r in server.asked][1] == "bytes=300000-"
        assert not list(path.parent.glob("*.part"))
        download(server.url + "/f", path, SHA, "a file")
        assert len(server.asked) == 3, "what is there is not asked for again"


def test_a_whole_part_is_only_checked(tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    with Server(CONTENT) as server:
        assert download(server.url + "/f", tmp_path / "file", SHA, "a file").read_bytes() == CONTENT


def test_a_wrong_checksum_is_thrown_away(tmp_path):
    with Server(CONTENT) as server:
        with pytest.raises(BadInput, match="another SHA-256"):
            download(server.url + "/f", tmp_path / "file", "0" * 64, "a file")
    assert [p.name for p in tmp_path.iterdir()] == ["file.lock"]


@pytest.mark.parametrize("stated", [SHA, "1" * 64])
def test_the_servers_own_checksum_is_used_where_we_have_none(tmp_path, stated):
    with Server(CONTENT, etag=stated) as server:
        url = server.url + "/x/resolve/main/f"
        if stated == SHA:
            assert download(url, tmp_path / "file", "", "a file").read_bytes() == CONTENT
        else:
            with pytest.raises(BadInput, match="another SHA-256"):
                download(url, tmp_path / "file", "", "a file")


def test_no_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(BadInput, match="could not be reached.*network.*yourself.*model.safetensors"):
        load_checkpoint("gpt2", "policy")


def test_a_name_is_found_in_the_caches_before_anything_is_downloaded(tmp_path, monkeypatch, tokenizer, encoding):
    model, tokens = make(), torch.randint(300, (1, 5))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    gpt2.export(model, encoding, tmp_path / "made")
    raw = (tmp_path / "made" / "model.safetensors").read_bytes()
    monkeypatch.setitem(gpt2.WEIGHTS, "gpt2", (hashlib.sha256(raw).hexdigest(), "little"))
    config = (tmp_path / "made" / "config.json").read_text()
    with Server(raw) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        path = gpt2.find("gpt2")
        assert server.asked[0][0] == "/openai-community/gpt2/resolve/main/model.safetensors"
        (path.parent / "config.json").write_text(config)  # 16 channels are not one head of 64
        assert torch.equal(load_checkpoint("gpt2", "policy", tokenizer=tokenizer)[0](tokens), model(tokens))
        assert len(server.asked) == 1
        snapshot = tmp_path / "hf" / "hub" / "models--openai-community--gpt2" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(raw)
        assert gpt2.find("gpt2") == snapshot / "model.safetensors" and len(server.asked) == 1


# ---------------------------------------------------------------------------------------------------- transformers


@torch.no_grad()
def test_transformers_agrees_in_both_directions(tmp_path, tokenizer, encoding):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: parity is not checked")
    model = make()
    save_checkpoint(tmp_path / "x.pt", model, tokenizer, CFG, 0)
    gpt2.main(gpt2.Config(checkpoint=str(tmp_path / "x.pt"), out=str(tmp_path / "out")))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(300, (3, 12))
    torch.testing.assert_close(theirs(tokens).logits, model.unembed(model(tokens)), atol=1e-4, rtol=0)

    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]  # unequal lengths: theirs are padded on the left
    rows, lengths, _ = generate(model, prompts, 10, encoding.eot_token, temperature=0)
    ids, seen = torch.full((3, 6), 299), torch.zeros(3, 6, dtype=torch.long)
    for i, p in enumerate(prompts):
        ids[i, 6 - len(p) :], seen[i, 6 - len(p) :] = torch.tensor(p), 1
    out = theirs.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=10, pad_token_id=299)
    for i, p in enumerate(prompts):
        ours = rows[i, len(p) : lengths[i]].tolist()
        assert out[i, 6 : 6 + len(ours)].tolist() == ours

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The brown fox is réd.  \n 123 ☃!"
    assert auto(text, add_special_tokens=False)["input_ids"] == encoding.encode_ordinary(text)

    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=3, n_head=2, n_embd=128, vocab_size=300, n_positions=32)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again, _, _ = load_checkpoint(tmp_path / "theirs", "policy", tokenizer=tokenizer)
    torch.testing.assert_close(theirs(tokens).logits, again.unembed(again(tokens)), atol=1e-4, rtol=0)
