"""GPT-2's released weights in, our policies out: Hugging Face's layout, read and written without their library.

    python sft.py --init gpt2 ...                                     # downloads once, 548 MB, then works offline
    python gpt2.py --checkpoint out/run/ppo.pt --out out/export       # a folder that transformers loads

In: a name (gpt2, gpt2-medium, gpt2-large, gpt2-xl), a folder with model.safetensors or pytorch_model.bin, or such a file.
A name is looked for in the cache that Hugging Face's tools share (HF_HOME, HF_HUB_CACHE), then in ours, then downloaded
from HF_ENDPOINT; a transfer that was cut goes on where it stopped, and only a file with the right SHA-256 is kept.

GPT-2's matrices were saved as (in, out) and ours are (out, in): those of the linear layers are transposed.
"""

import json
import os
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from core.config import BadInput, command_line, require
from core.output import output_folder, whole_file
from data.bpe import END_OF_TEXT, build_tokenizer, gpt2_tokenizer_spec, tokenizer_spec_from
from data.download import cache, download
from model import GPT, SIZES, GPTConfig


@dataclass
class Config:
    checkpoint: str = ""  # a policy of ours, e.g. out/run/ppo.pt
    out: str = "out/export"  # the folder to write: config.json, model.safetensors, vocab.json, merges.txt, …


WEIGHTS = {  # model.safetensors of openai-community/NAME: SHA-256, bytes
    "gpt2": ("248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707", "548 MB"),
    "gpt2-medium": ("fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd", "1.52 GB"),
    "gpt2-large": ("5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce", "3.25 GB"),
    "gpt2-xl": ("0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a", "6.43 GB"),
}
FILES = ("model.safetensors", "pytorch_model.bin")

# ---------------------------------------------------------------------------------------------------- finding


def is_gpt2(path):
    """Does this name GPT-2's weights, or a file or folder in Hugging Face's layout, and not a checkpoint of ours?"""
    path = Path(path)
    return str(path) in WEIGHTS or path.suffix in (".safetensors", ".bin") or path.is_dir()


def find(name):
    """A name, folder or file -> the file of weights. Downloads GPT-2's if no cache has it."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        found = next((path / file for file in FILES if (path / file).exists()), None)
        require(found, f"{path}: holds neither {' nor '.join(FILES)}; pass the folder or file with the weights")
        return found
    require(name in WEIGHTS, f"{name}: no such file or folder, and none of {', '.join(WEIGHTS)}")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    for owner in (f"models--openai-community--{name}", f"models--{name}"):
        for file in FILES:
            for snapshot in sorted(hub.glob(f"{owner}/snapshots/*/{file}")):
                return snapshot
    checksum, size = WEIGHTS[name]
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/openai-community/{name}/resolve/main/model.safetensors"
    return download(url, cache() / name / "model.safetensors", checksum, f"GPT-2's weights ({size})")


# ---------------------------------------------------------------------------------------------------- safetensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


def read_safetensors(path):
    """{name: tensor}. The format: 8 bytes, the header's length; the header, JSON; then all tensors, one after the other."""
    with open(path, "rb") as file:
        head = file.read(8)
        require(len(head) == 8, f"{path}: empty or cut short; download it again")
        (length,) = struct.unpack("<Q", head)
        size = os.path.getsize(path)
        require(length < size, f"{path}: not a safetensors file, or cut short; download it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {}
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                require(8 + length + end <= size, f"{path}: cut short; download it again")
                file.seek(8 + length + begin)
                raw = bytearray(file.read(end - begin))
                flat = torch.frombuffer(raw, dtype=DTYPES[entry["dtype"]]) if raw else torch.empty(0)
                tensors[name] = flat.view(entry["shape"])
        except (ValueError, KeyError, TypeError) as problem:
            raise BadInput(f"{path}: not a safetensors file ({problem}); download it again") from None
    return tensors


def write_safetensors(path, tensors):
    """Write {name: tensor} in the same format, whole or not at all."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())


# ---------------------------------------------------------------------------------------------------- in

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def to_ours(tensors):
    """GPT-2's names and shapes -> our state_dict. The masks that old files carry are dropped, as is a tied lm_head."""
    state = {}
    for name, tensor in tensors.items():
        name = "transformer." + name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            continue
        state[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).float().contiguous()
    return state


def to_theirs(state):
    """Our state_dict of a GPT -> GPT-2's names and shapes."""
    return {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v.contiguous() for k, v in state.items()}


def shape_of(state, folder, path):
    """The GPTConfig of some weights: from their shapes; heads from config.json, or 64 channels each as in all GPT-2s."""
    vocab_size, n_embd = state["transformer.wte.weight"].shape
    layers = {int(name.split(".")[2]) for name in state if name.startswith("transformer.h.")}
    block_size, n_head = len(state["transformer.wpe.weight"]), n_embd // 64
    config = folder / "config.json"
    if config.exists():
        said = json.loads(config.read_text(encoding="utf-8"))
        known = said.get("activation_function", "gelu_new") in ("gelu_new", "gelu_pytorch_tanh")
        known = known and abs(said.get("layer_norm_epsilon", 1e-5) - 1e-5) < 1e-9
        require(known and said.get("model_type", "gpt2") == "gpt2", f"{config}: not GPT-2's architecture")
        n_head = said.get("n_head", n_head)
    require(n_head, f"{path}: {n_embd} channels do not say how many heads; put config.json beside it")
    return GPTConfig(max(layers) + 1, n_head, n_embd, block_size, vocab_size)


def load_gpt2(name, device="cpu", dropout=0.0, tokenizer=None):
    """-> (GPT, tiktoken.Encoding, checkpoint dict), like load_checkpoint for a policy of ours.

    tokenizer: the data folder's; it has to have as many tokens as the model. Without one, vocab.json and merges.txt
    beside the weights are read.
    """
    path = find(str(name))
    try:
        safe = path.suffix == ".safetensors"
        tensors = read_safetensors(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        state = to_ours(tensors)
        config = replace(shape_of(state, path.parent, path), dropout=dropout)
        with torch.device("meta"):
            model = GPT(config)
        model.load_state_dict(state, assign=True)
    except (BadInput, OSError):
        raise
    except Exception as problem:
        reason = str(problem).splitlines()[0][:100] if str(problem) else type(problem).__name__
        raise BadInput(f"{path}: not GPT-2's weights ({reason}); pass a file in Hugging Face's GPT-2 layout") from None
    tokenizer = tokenizer or read_tokenizer(path.parent)
    encoding = build_tokenizer(tokenizer)
    same = encoding.n_vocab == config.vocab_size
    fix = "make the data folder with GPT-2's tokenizer (--gpt2 or --gpt2_files)"
    require(same, f"{path}: {config.vocab_size} tokens, but the tokenizer has {encoding.n_vocab}; {fix}")
    for p in model.parameters():
        p.requires_grad_(True)
    checkpoint = {"kind": "policy", "model_config": vars(config), "tokenizer": tokenizer, "config": {}, "step": 0}
    return model.to(device).eval(), encoding, checkpoint


# ---------------------------------------------------------------------------------------------------- tokenizer files


def byte_letters():
    """GPT-2's files spell every byte as a printable letter: itself where it is one, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def merges_of(tokens):
    """[bytes] in rank order -> the pair each was merged from: what BPE leaves of it with the earlier merges alone."""
    rank, merges = {token: i for i, token in enumerate(tokens)}, []
    for limit, token in enumerate(tokens):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], limit))
            require(rank.get(parts[best] + parts[best + 1], limit) < limit, f"token {token!r} cannot be merged")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


def write_tokenizer(folder, encoding):
    """vocab.json, merges.txt and tokenizer_config.json, as GPT-2's."""
    letters = byte_letters()
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]
    spelled = {token: "".join(letters[b] for b in token) for token in tokens}
    vocabulary = {spelled[token]: i for i, token in enumerate(tokens)} | {END_OF_TEXT: encoding.eot_token}
    with whole_file(folder / "vocab.json") as file:
        json.dump(vocabulary, file, ensure_ascii=False)
    with whole_file(folder / "merges.txt") as file:
        file.write("#version: 0.2\n" + "".join(f"{spelled[a]} {spelled[b]}\n" for a, b in merges_of(tokens)))
    special = {key: END_OF_TEXT for key in ("bos_token", "eos_token", "unk_token")}
    with whole_file(folder / "tokenizer_config.json") as file:
        json.dump(special | {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}, file, indent=1)


def read_tokenizer(folder):
    """vocab.json and merges.txt -> tokenizer dict."""
    folder = Path(folder)
    if not (folder / "vocab.json").exists():
        return gpt2_tokenizer_spec()
    try:
        back = {letter: b for b, letter in byte_letters().items()}
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        vocabulary.pop(END_OF_TEXT)
        tokens = [bytes(back[letter] for letter in word) for word in sorted(vocabulary, key=vocabulary.get)]
    except (ValueError, KeyError) as problem:
        raise BadInput(f"{folder}/vocab.json: not GPT-2's vocabulary ({problem!r}); copy it again") from None
    return tokenizer_spec_from(tokens, "gpt2")


# ---------------------------------------------------------------------------------------------------- out


def export(model, encoding, folder):
    """Write a GPT as a folder in Hugging Face's layout."""
    folder, cfg = output_folder(folder), model.config
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    config |= {"n_layer": cfg.n_layer, "n_head": cfg.n_head, "n_embd": cfg.n_embd, "vocab_size": cfg.vocab_size}
    config |= {"n_positions": cfg.block_size, "n_ctx": cfg.block_size, "layer_norm_epsilon": 1e-5}
    config |= {f"{what}_pdrop": cfg.dropout for what in ("attn", "embd", "resid")}
    config |= {"bos_token_id": encoding.eot_token, "eos_token_id": encoding.eot_token, "tie_word_embeddings": True}
    with whole_file(folder / "config.json") as file:
        json.dump(config, file, indent=1)
    with whole_file(folder / "generation_config.json") as file:
        eot = encoding.eot_token
        json.dump({"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot}, file, indent=1)
    write_tokenizer(folder, encoding)
    write_safetensors(folder / "model.safetensors", to_theirs(model.state_dict()))


def main(cfg):
    require(cfg.checkpoint, "--checkpoint: give a policy to export, e.g. out/run/ppo.pt")
    model, encoding, _ = load_checkpoint(cfg.checkpoint, "policy")
    export(model, encoding, cfg.out)
    print(f"wrote {cfg.out}/: transformers loads it with GPT2LMHeadModel.from_pretrained({cfg.out!r})")
    if model.config not in SIZES.values():
        print(f"  a model of {model.config.n_layer} layers x {model.config.n_embd}, {model.config.vocab_size} tokens")


if __name__ == "__main__":
    sys.modules["gpt2"] = sys.modules["__main__"]
    command_line(Config, main, __doc__)
