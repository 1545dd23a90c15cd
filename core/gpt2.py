"""GPT-2's released weights in, our policies out: Hugging Face's layout, read and written without their library.

    python sft.py --init gpt2 ...                                          # downloads once, 548 MB, then works offline
    python tools/export.py --checkpoint out/run/ppo.pt --out out/export    # a folder that transformers loads

In: a name (gpt2, gpt2-medium, gpt2-large, gpt2-xl), a folder with model.safetensors or pytorch_model.bin, or such a
file. A name is looked for in the cache that Hugging Face's tools share (HF_HOME, HF_HUB_CACHE), then in ours, then
downloaded from HF_ENDPOINT. What our GPT would compute otherwise than the original is refused. The tokenizer's files
are read and written by data/bpe.py.

GPT-2's matrices were saved as (in, out) and ours are (out, in): those of the linear layers are transposed.
"""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import torch

from core.config import BadInput, require
from core.output import output_folder, whole_file
from data.bpe import build_tokenizer, gpt2_tokenizer_spec, read_gpt2_files, write_gpt2_files
from data.download import cache_folder, download, hub_url
from model import GPT, GPTConfig

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
        found = [path / file for file in FILES if (path / file).exists()]
        require(found, f"{path}: holds neither {' nor '.join(FILES)}; pass the folder or file with the weights")
        return found[0]
    require(name in WEIGHTS, f"{name}: no such file or folder, and none of {', '.join(WEIGHTS)}")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    for owner in (f"models--openai-community--{name}", f"models--{name}"):
        for file in FILES:
            snapshots = sorted(hub.glob(f"{owner}/snapshots/*/{file}"))
            if snapshots:
                return snapshots[0]
    checksum, size = WEIGHTS[name]
    url = hub_url(f"openai-community/{name}/resolve/main/model.safetensors")
    return download(url, cache_folder() / name / "model.safetensors", f"GPT-2's weights ({size})", checksum)


# ---------------------------------------------------------------------------------------------------- safetensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


def read_safetensors(path):
    """A file -> {name: tensor}. It holds the header's length in 8 bytes, the header as JSON, then all tensors."""
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
MASKS = (".attn.bias", ".attn.masked_bias")  # of causal attention, which old files carry
ARCHITECTURE = {  # setting in config.json -> the values that compute what our GPT computes; the first is its default
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}


def from_gpt2(tensors):
    """GPT-2's names and shapes -> our state_dict, in float32. Masks are dropped, as is a head that is tied to wte."""
    state = {}
    for name, tensor in tensors.items():
        name = "transformer." + name.removeprefix("transformer.")
        if not name.endswith((*MASKS, "lm_head.weight")):
            state[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).float().contiguous()
    return state


def to_gpt2(state):
    """Our state_dict of a GPT -> GPT-2's names and shapes."""
    return {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v.contiguous() for k, v in state.items()}


def check_head(tensors, path):
    """Refuse a model whose lm_head is not its embedding: ours has one matrix for both."""
    head = tensors.get("lm_head.weight")
    embedding = tensors.get("transformer.wte.weight", tensors.get("wte.weight"))
    tied = head is None or (embedding is not None and torch.equal(head, embedding))
    require(tied, f"{path}: lm_head.weight differs from wte.weight; only a GPT-2 with tied embeddings can be loaded")


def read_architecture(folder):
    """config.json in a folder -> dict, {} if there is none. Refuses settings that our GPT does not have."""
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{path}: not JSON ({problem}); copy it again") from None
    require(isinstance(settings, dict), f"{path}: expected an object like {{...}}; copy it again")
    for name, allowed in ARCHITECTURE.items():
        value, usual = settings.get(name, allowed[0]), json.dumps(allowed[0])
        require(value in allowed, f"{path}: {name} is {json.dumps(value)}, but only {usual} as in GPT-2 can be loaded")
    inner, n_embd = settings.get("n_inner"), settings.get("n_embd")
    is_usual = inner is None or n_embd is None or inner == 4 * n_embd
    require(is_usual, f"{path}: n_inner is {inner}, but only 4 * n_embd, as in GPT-2, can be loaded")
    return settings


def config_of(state, settings, path):
    """The GPTConfig of a state_dict: its shapes say all but the heads. Those are in config.json, or of 64 channels."""
    vocab_size, n_embd = state["transformer.wte.weight"].shape
    layers = {int(name.split(".")[2]) for name in state if name.startswith("transformer.h.")}
    inner = len(state["transformer.h.0.mlp.c_fc.weight"])
    require(inner == 4 * n_embd, f"{path}: n_inner is {inner}, but only 4 * n_embd, as in GPT-2, can be loaded")
    n_head = settings.get("n_head", n_embd // 64)
    heads_fit = isinstance(n_head, int) and n_head > 0 and n_embd % n_head == 0
    require(heads_fit, f"{path}: {n_embd} channels do not make {n_head} heads; put the right config.json beside it")
    return GPTConfig(max(layers) + 1, n_head, n_embd, len(state["transformer.wpe.weight"]), vocab_size)


def load_gpt2(name, device="cpu", dropout=0.0, tokenizer_spec=None):
    """-> (GPT, tiktoken.Encoding, checkpoint dict), like load_checkpoint for a policy of ours.

    tokenizer_spec: the data folder's, see `choose_tokenizer`. dropout: of the model's config.
    """
    path = find(str(name))
    settings = read_architecture(path.parent)
    try:
        if path.suffix == ".safetensors":
            tensors = read_safetensors(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        check_head(tensors, path)
        state = from_gpt2(tensors)
        config = replace(config_of(state, settings, path), dropout=dropout)
        with torch.device("meta"):
            model = GPT(config)
        model.load_state_dict(state, assign=True)
    except (BadInput, OSError):
        raise
    except Exception as problem:
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise BadInput(f"{path}: not GPT-2's weights ({reason}); pass a file in Hugging Face's GPT-2 layout") from None
    tokenizer_spec = choose_tokenizer(tokenizer_spec, path.parent, config.vocab_size)
    for p in model.parameters():
        p.requires_grad_(True)
    checkpoint = {"kind": "policy", "model_config": vars(config), "tokenizer": tokenizer_spec, "config": {}, "step": 0}
    return model.to(device).eval(), build_tokenizer(tokenizer_spec), checkpoint


def choose_tokenizer(tokenizer_spec, folder, vocab_size):
    """The tokenizer_spec to use: the data folder's, which must be the one that the weights were trained with.

    Without one, that of vocab.json and merges.txt beside the weights; weights without these files read GPT-2's tokens.
    """
    beside = read_gpt2_files(folder) if (folder / "vocab.json").exists() else None
    chosen = tokenizer_spec or beside or gpt2_tokenizer_spec()
    size = build_tokenizer(chosen).n_vocab
    fix = "make the data folder with GPT-2's tokenizer (--gpt2 or --gpt2_files)"
    require(size == vocab_size, f"{folder}: {vocab_size} tokens, but the tokenizer has {size}; {fix}")
    same = beside is None or all(chosen[key] == beside[key] for key in ("ranks", "special"))
    fix = f"make the data folder with that of these weights (--gpt2_files {folder})"
    require(same, f"{folder}/vocab.json: another tokenizer than the data folder's; {fix}")
    return chosen


# ---------------------------------------------------------------------------------------------------- out


def export(model, tokenizer, folder):
    """Write a GPT and its tokenizer (tiktoken.Encoding) as a folder in Hugging Face's layout."""
    folder, cfg, eot = output_folder(folder), model.config, tokenizer.eot_token
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    config |= {"n_layer": cfg.n_layer, "n_head": cfg.n_head, "n_embd": cfg.n_embd, "vocab_size": cfg.vocab_size}
    config |= {"n_positions": cfg.block_size, "n_ctx": cfg.block_size, "layer_norm_epsilon": 1e-5}
    config |= {"attn_pdrop": cfg.dropout, "embd_pdrop": cfg.dropout, "resid_pdrop": cfg.dropout}
    config |= {"bos_token_id": eot, "eos_token_id": eot, "tie_word_embeddings": True}
    with whole_file(folder / "config.json") as file:
        json.dump(config, file, indent=1)
    with whole_file(folder / "generation_config.json") as file:
        json.dump({"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot}, file, indent=1)
    write_gpt2_files(folder, tokenizer)
    write_safetensors(folder / "model.safetensors", to_gpt2(model.state_dict()))
