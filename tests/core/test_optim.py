"""Adam's groups, the learning rate over time, one step with a clipped gradient."""

import math

import pytest
import torch
from small_models import make

from core.optim import adamw, cosine_to_tenth, optimizer_step


def test_only_matrices_decay():
    model = make()
    optimizer = adamw(model, 1e-3, 0.1)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95) and group["lr"] == 1e-3
        assert all((p.dim() >= 2) == (group["weight_decay"] == 0.1) for p in group["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_cosine_goes_from_the_peak_down_to_a_tenth():
    rates = [cosine_to_tenth(step, 40, 2.0) for step in range(41)]
    assert rates[0] == 2.0 and rates[40] == pytest.approx(0.2) and rates[20] == pytest.approx(1.1)
    assert all(a > b for a, b in zip(rates, rates[1:]))
    for step in range(41):  # the half circle, walked along
        height = math.sin(math.pi / 2 - math.pi * step / 40)  # 1 … -1
        assert rates[step] == pytest.approx(0.2 + 1.8 * (height + 1) / 2)
    assert cosine_to_tenth(99, 40, 2.0) == pytest.approx(0.2) and cosine_to_tenth(0, 0, 2.0) == 2.0


def test_optimizer_step_clips_steps_and_clears():
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    (3 * model.weight[0, 0] + 4 * model.weight[0, 1]).backward()
    assert optimizer_step(optimizer, model, 0.5, max_grad_norm=1.0) == pytest.approx(5)  # before clipping
    torch.testing.assert_close(before - model.weight, 0.5 * torch.tensor([[0.6, 0.8]]))
    assert model.weight.grad is None


def test_a_small_gradient_is_not_clipped():
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    (0.3 * model.weight[0, 0]).backward()
    assert optimizer_step(torch.optim.SGD(model.parameters()), model, 1.0, 1.0) == pytest.approx(0.3)
    torch.testing.assert_close(before - model.weight, torch.tensor([[0.3, 0.0]]))


def test_adam_moves_every_weight_by_about_the_learning_rate_at_first():
    """m / sqrt(v) is the sign of the gradient in the first step; what decays shrinks by rate x decay first."""
    model = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, 99.0, weight_decay=0.1)
    signs = {name: torch.randn_like(p).sign() for name, p in model.named_parameters()}
    sum((p * signs[name]).sum() for name, p in model.named_parameters()).backward()
    optimizer_step(optimizer, model, 1e-2, max_grad_norm=1e9)
    for name, p in model.named_parameters():
        kept = 1 - 1e-2 * 0.1 if p.dim() >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * kept - 1e-2 * signs[name], atol=1e-6, rtol=1e-4)
