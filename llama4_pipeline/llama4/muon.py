"""Muon, the optimizer that learns most from few steps: momentum whose matrices are made orthogonal.

Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024). torch.optim.Muon takes
two-dimensional weights only; this one takes stacks of experts too, and treats weights of one shape in one
batched product.
"""

from collections.abc import Iterable

import torch

_MOMENTUM = 0.95  # share of the last one that the next keeps
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Updates weights of two dimensions, or of three where the first counts experts.

    Args:
        parameters: The weights.
        lr: Root mean square of an update's elements, times five: the learning rate of AdamW fits as it is.
        weight_decay: Decoupled, as in AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape[-2:], []).append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group)

    def _step(self, parameters: list[torch.nn.Parameter], group: dict) -> None:
        rows, columns = parameters[0].shape[-2:]
        directions = [self._direction(parameter) for parameter in parameters]
        updates = orthogonal(torch.cat(directions)) * (0.2 * max(rows, columns) ** 0.5)
        counts = [len(direction) for direction in directions]
        for parameter, update in zip(parameters, updates.split(counts), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update.view_as(parameter), alpha=group["lr"])

    def _direction(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The gradient with Nesterov momentum, [matrices, rows, columns]."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        return parameter.grad.lerp(state["momentum"], _MOMENTUM).view(-1, *parameter.shape[-2:])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Brings the singular values of matrices [matrices, rows, columns] near one, by Newton-Schulz iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
