"""On a GPU without one: every stage on a pretended GPU, where a tensor on the wrong device is an error; and who waits.

test_cuda.py's tests run here too, so that none of a real GPU's minutes is spent on a mistake in them.
"""

import inspect
import json
import shutil

import pytest
import test_cuda
import torch
from pretend_cuda import DeviceMismatch, PretendCuda
from runs import metrics_of, same, weights_of
from small_models import make, shaken

import core.device
import core.sampling
import evaluate
import model as model_file
import ppo
import pretrain
import reward
import sft
from core.checkpoint import load_policy, load_scalar_model, save_checkpoint
from core.optim import adamw
from core.sampling import generate
from data.folder import read_prompts, write_jsonl
from model import GPT, ScalarModel

# ---------------------------------------------------------------------------------------------------- the same numbers

ON_A_GPU = [
    (test_cuda.test_an_iteration_of_ppo_is_the_same_in_float32, ()),
    (test_cuda.test_fast_sampling_is_plain_sampling, ()),
    (test_cuda.test_no_rows_give_gradients_of_zero, ({},)),
    (test_cuda.test_no_rows_give_gradients_of_zero, ({"dtype": "bfloat16", "recompute": True},)),
    (test_cuda.test_bfloat16_is_near_and_starts_at_ratio_one, ()),
]


@pytest.fixture
def autocast_here(monkeypatch):
    """torch.autocast("cuda", …) rounds on the CPU, where the pretended GPU computes."""
    autocast = torch.autocast
    monkeypatch.setattr(core.device.torch, "autocast", lambda device, *rest, **more: autocast("cpu", *rest, **more))


@pytest.mark.parametrize("test, arguments", ON_A_GPU, ids=lambda x: getattr(x, "__name__", str(x)))
def test_what_is_tested_on_a_gpu(test, arguments, autocast_here):
    with PretendCuda():
        test(*arguments)


STAGES = {  # script -> its module, how to call it, the file of its metrics and of its weights
    "pretrain": (pretrain, dict(n_layer=2, n_head=2, n_embd=16, block_size=64, steps=3, batch_size=2, eval_every=2),
                 "pretrain", "base"),
    "sft": (sft, dict(epochs=1, batch_size=8, max_new_tokens=8, dropout=0.0, pretrain_mix=0.2), "sft", "sft"),
    "sft, best epoch": (sft, dict(epochs=0, reward_model="reward.pt", max_new_tokens=8, choose_prompts=4),
                        "sft", "sft_best"),
    "reward": (reward, dict(epochs=1, batch_size=4, eval_every=3), "reward", "reward"),
    "ppo": (ppo, dict(iterations=2, batch_size=8, minibatch_size=4, micro_batch_size=3, recompute=True,
                      max_new_tokens=12, sample_prompts=3, value_only_iterations=1, ptx_coef=0.5, ptx_window=8),
            "ppo_ptx", "ppo_ptx"),
    "evaluate": (evaluate, dict(max_new_tokens=8, best_of=2, best_of_prompts=4), "", ""),
}  # fmt: skip


def all_stages(data, folder, run, **settings):
    """Every script from beginning to end, from untrained models in `run`. -> the folder, whose files are the results"""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    for module, changes, *_ in STAGES.values():
        changes = {"data": str(data), "out": str(folder), "threads": 1, **changes, **settings}
        if changes.get("reward_model"):
            changes["reward_model"] = str(folder / changes["reward_model"])
        names = {name for name in module.Config.__dataclass_fields__}
        module.main(module.Config(**{name: value for name, value in changes.items() if name in names}))
    return folder


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory, tokenizer_spec, tiny):
    """A data folder with test prompts, and run folders: before any stage, and after all of them on the CPU."""
    data = shutil.copytree(data, tmp_path_factory.mktemp("with test prompts"), dirs_exist_ok=True)
    asked = [{"prompt": f"What colour is the {a}?\n", "user": "t", "split": "test"} for a in ("cat", "owl", "bee")]
    write_jsonl(data / "prompts.jsonl", read_prompts(data, "train") + read_prompts(data, "valid") + asked)
    before = tmp_path_factory.mktemp("before")
    for i, (name, kind) in enumerate({"ppo_init": GPT, "reward": ScalarModel}.items()):
        torch.manual_seed(i)
        save_checkpoint(before / f"{name}.pt", kind(tiny), tokenizer_spec, tiny, step=0)
    return data, before, all_stages(data, tmp_path_factory.mktemp("cpu"), before, device="cpu")


def report_of(folder):
    """What evaluate.py found, without how it was called."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {key: value for key, value in report.items() if key != "config" and "seconds" not in key}


def test_all_stages_from_end_to_end_give_what_they_give_on_the_cpu(folders, tmp_path):
    data, before, cpu = folders
    with PretendCuda() as gpu:
        all_stages(data, tmp_path, before, device="cuda", dtype="float32")
    assert gpu.backward_on == {"cuda"}, "nothing learned elsewhere"
    assert "an index on the CPU" not in gpu.waits, "PyTorch would copy it without a word, and wait"
    for _, _, log, weights in STAGES.values():
        if log:
            assert metrics_of(cpu / f"{log}.jsonl") == metrics_of(tmp_path / f"{log}.jsonl"), log
            assert same(weights_of(cpu / f"{weights}.pt"), weights_of(tmp_path / f"{weights}.pt")), weights
    assert report_of(cpu) == report_of(tmp_path)


NEAR = {
    "loss": 0.02,
    "pretrain_loss": 0.02,
    "valid_loss": 0.02,
    "corpus_loss": 0.02,
    "ptx_loss": 0.02,
    "value_loss": 0.2,
}
NEAR |= {"policy_loss": 0.02, "score": 0.1, "ratio": 0.05, "clip_fraction": 0.05, "approx_kl": 0.02, "kl": 0.5}


def test_all_stages_in_bfloat16_stay_near_float32(folders, tmp_path):
    """Losses of every step; sampled tokens may differ, so what is computed from them is near in the mean only."""
    data, before, cpu = folders
    all_stages(data, tmp_path, before, device="cpu", dtype="bfloat16")
    seen = set()
    for _, _, log, weights in STAGES.values():
        if not log:
            continue
        exact, rounded = metrics_of(cpu / f"{log}.jsonl"), metrics_of(tmp_path / f"{log}.jsonl")
        assert len(exact) == len(rounded) and exact != rounded, "something was rounded"
        for one, other in zip(exact, rounded):
            for name in NEAR.keys() & one.keys():
                assert one[name] == pytest.approx(other[name], abs=NEAR[name], rel=NEAR[name]), (log, name)
                seen.add(name)
        assert all(weight.dtype == torch.float32 for weight in weights_of(tmp_path / f"{weights}.pt").values())
    assert seen == set(NEAR)


def test_a_model_that_will_be_cut_into_shards_is_not_on_the_gpu_before(folders, autocast_here, monkeypatch):
    """A GPU need not have room for all of it."""
    sharded = []
    for module in (core.checkpoint, core.device):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(core.device, "shard", lambda model, *where: sharded.append((model, *where)))
    with PretendCuda():
        for load, name in ((load_policy, "ppo_init"), (load_scalar_model, "reward")):
            model = load(folders[1] / f"{name}.pt", ppo.Config(), torch.device("cuda"))
            assert sharded.pop() == (model, torch.device("cuda"), torch.bfloat16)
            assert all(p.device.type == "cpu" for p in model.parameters())
            alone = load(folders[1] / f"{name}.pt", ppo.Config(), torch.device("cuda"), sharded=False)
            assert all(p.is_cuda for p in alone.parameters())


# ---------------------------------------------------------------------------------------------------- it can fail


def planted(module, right, wrong):
    """The functions of a module with a mistake in its text. -> {name: function}"""
    source = inspect.getsource(module)
    assert source.count(right) == 1, right
    namespace = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), namespace)
    return namespace


MISTAKES = [  # function, where it is used, what it says, what it would say
    (model_file, "response_mask", core.sampling, "torch.arange(T, device=lengths.device)", "torch.arange(T)"),
    (model_file, "pad", core.sampling, "tokens.to(device), lengths.to(device)", "tokens, lengths.to(device)"),
    (core.sampling, "prefill", core.sampling, "device=device)[order]", ")[order]"),
    (core.sampling, "KVCache", core.sampling, "torch.arange(S, device=device)", "torch.arange(S)"),
    (core.sampling, "generate", ppo, "torch.ones(B, dtype=torch.bool, device=device)",
     "torch.ones(B, dtype=torch.bool)"),
    (ppo, "rollout", ppo, ".T.to(policy.transformer.wte.weight.device)", ".T"),
    (ppo, "gae", ppo, "torch.zeros_like(rewards)", "torch.zeros(rewards.shape)"),
]  # fmt: skip


@pytest.mark.parametrize("module, name, where, right, wrong", MISTAKES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_planted_mistake_is_found(module, name, where, right, wrong, monkeypatch):
    monkeypatch.setattr(where, name, planted(module, right, wrong)[name])
    with PretendCuda(), pytest.raises(DeviceMismatch):
        test_cuda.one_iteration("cuda")


# ---------------------------------------------------------------------------------------------------- who waits


def on_gpu(kind=GPT, **changes):
    return shaken(make(kind, **changes)).to("cuda")


def waits_by_step(monkeypatch, gpu, prompts, new, eot, **changes):
    """What the CPU waited for between one decoding step and the next. -> [[what]], lengths"""
    marks, decode = [], core.sampling.decode

    def marked(*arguments, **more):
        marks.append(len(gpu.waits))
        return decode(*arguments, **more)

    monkeypatch.setattr(core.sampling, "decode", marked)
    model = on_gpu(**changes)
    u = torch.rand(new, len(prompts), generator=torch.Generator().manual_seed(5)).to("cuda")
    gpu.waits.clear()
    _, lengths, _ = generate(model, prompts, new, eot, uniforms=u)
    return [gpu.waits[start:end] for start, end in zip(marks, marks[1:])], lengths


def test_sampling_asks_the_gpu_once_in_eight_tokens(monkeypatch):
    """Whether all rows have ended; where some have, it is one moment still, in which they are cut out."""
    with PretendCuda() as gpu:
        steps, lengths = waits_by_step(
            monkeypatch, gpu, [[i % 11, 2, 3] for i in range(16)], 40, 11, vocab_size=12, spread=3
        )
        assert len(steps) >= 24 and len(set(lengths.tolist())) > 4, "rows end at different times"
        cut = 0
        for step, asked in enumerate(steps, start=1):  # between the step-th decoding step and the next
            if (step + 1) % 8:
                assert asked == [], step
            else:
                assert asked in (["__int__"], ["__int__", "nonzero", "nonzero"]), step
                cut += len(asked) > 1
        assert cut > 0
        steps, _ = waits_by_step(monkeypatch, gpu, [[1]], 40, -1)
        assert steps == [["__int__"] if (step + 1) % 8 == 0 else [] for step in range(1, 39)]


def test_recorded_steps_are_on_the_gpu_too(monkeypatch):
    """With a recorder that calls again what a CUDA graph would replay."""

    def record(self, work, inputs):
        fixed = [x.clone() for x in inputs]
        result = work(*fixed)

        class Graph:
            def replay(graph):
                result.copy_(work(*fixed))

        return Graph(), fixed, result

    monkeypatch.setattr(core.sampling.CudaGraphs, "record", record)
    prompts, texts = [[i % 11, 2, 3] for i in range(16)], []
    with PretendCuda() as gpu:
        for capture in (False, True):
            model = on_gpu(vocab_size=12, spread=3)
            sampler = core.device.sampling_copy(model, ppo.Config(dtype="float32", capture=capture))
            u = torch.rand(40, 16, generator=torch.Generator().manual_seed(5)).to("cuda")
            gpu.waits.clear()
            texts.append(generate(sampler, prompts, 40, 11, uniforms=u)[0])
            assert gpu.waits.count("__int__") <= 1 + 40 // 8
        assert core.sampling._cuda_graphs[sampler].graphs
    assert torch.equal(*texts)


def test_reading_prompts_waits_for_their_copies_alone():
    """However many prompts there are: ids, lengths, repeats; and two orders of rows."""
    with PretendCuda() as gpu:
        model = on_gpu()
        counts = []
        for n in (4, 16):
            gpu.waits.clear()
            core.sampling.prefill(model, [[i, i] for i in range(n)] * 2, 4)
            counts.append(gpu.waits)
        assert counts[0] == counts[1] == ["to cuda"] * 5


def update_waits(gpu, n_rows, micro_batch_size):
    """What the CPU waits for in one update of the policy, and in one of the value model."""
    cfg = ppo.Config(ptx_coef=0.5, ptx_per_episode=2, ptx_window=8, micro_batch_size=micro_batch_size, max_new_tokens=6)
    policy, value_model = on_gpu(), on_gpu(ScalarModel)
    u = torch.Generator().manual_seed(1)
    episodes = ppo.rollout(policy, [[i + 1] for i in range(n_rows)], 299, cfg, u)
    scored = ppo.score_responses(episodes, policy, policy, value_model, value_model, cfg)
    episodes |= scored | {"advantages": scored["values"], "returns": scored["values"]}
    episodes["pretraining"] = torch.randint(299, (n_rows, 2, 9), device="cuda")
    average = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizers = adamw(policy, 1e-3), adamw(value_model, 1e-3)
    gpu.waits.clear()
    ppo.update_policy(policy, optimizers[0], average, episodes, 1e-3, cfg)
    of_policy = list(gpu.waits)
    gpu.waits.clear()
    ppo.update_values(value_model, optimizers[1], episodes, cfg)
    return of_policy, list(gpu.waits)


@pytest.mark.parametrize("micro_batch_size, parts", [(0, 1), (4, 2), (2, 4)])
def test_an_update_fetches_its_metrics_once(micro_batch_size, parts):
    """Per forward pass the CPU asks how long the longest response is and where its tokens are, before anything is
    computed; no loss and no metric is fetched until all of them are."""
    with PretendCuda() as gpu:
        of_policy, of_values = update_waits(gpu, 8, micro_batch_size)
    fetched_at_the_end = ["tolist", "item"]  # all metrics as one tensor; the norm of the gradient
    assert of_policy == ["tolist", "__bool__", "nonzero"] * parts + fetched_at_the_end
    assert of_values == ["tolist"] * parts + fetched_at_the_end


def test_rankings_go_to_the_gpu_in_one_piece():
    with PretendCuda() as gpu:
        model = on_gpu(ScalarModel)
        rankings = [reward.Ranking([[1, 2], [3], [4]], [1, 2, 2], [], "", "")] * 20
        gpu.waits.clear()
        reward.ranking_losses(model, rankings).sum().backward()
        assert gpu.waits == ["to cuda"] * 3, "ranks, tokens, lengths"
