"""Muon makes updates orthogonal and treats stacked experts as separate matrices."""

import pytest
import torch

from llama4_pipeline.llama4.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 24, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(*shape)))
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_stack_of_experts_is_updated_like_its_matrices():
    torch.manual_seed(0)
    stack = torch.randn(3, 16, 24)
    gradient = torch.randn_like(stack)
    stacked = torch.nn.Parameter(stack.clone())
    single = [torch.nn.Parameter(matrix.clone()) for matrix in stack]
    optimizers = [Muon([stacked], lr=0.1), Muon(single, lr=0.1)]
    for _ in range(2):
        stacked.grad = gradient.clone()
        for parameter, part in zip(single, gradient, strict=True):
            parameter.grad = part.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stacked.detach(), torch.stack([parameter.detach() for parameter in single]))


def test_a_step_looks_ahead_along_the_momentum():
    """Nesterov: the direction is nineteen twentieths of the new momentum and one of the gradient."""
    torch.manual_seed(0)
    start, first, second = torch.randn(3, 16, 24)
    weight = torch.nn.Parameter(start.clone())
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = first.clone()
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = second.clone()
    optimizer.step()
    momentum = 0.95 * 0.05 * first + 0.05 * second
    update = orthogonal((0.05 * second + 0.95 * momentum)[None])[0] * 0.2 * 24**0.5
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * update, rtol=0, atol=1e-4)


def test_it_descends():
    torch.manual_seed(0)
    target = torch.randn(12, 12)
    weight = torch.nn.Parameter(torch.zeros(12, 12))
    optimizer = Muon([weight], lr=0.05)
    for _ in range(300):
        loss = (weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * target.square().sum().item()
