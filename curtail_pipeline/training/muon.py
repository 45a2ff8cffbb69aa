"""Muon (https://kellerjordan.github.io/posts/muon/), its matrices shared out over the ranks."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch

from curtail_pipeline.training.ranks import ALONE, Ranks
from curtail_pipeline.training.sharding import local, share_of, whole


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with Newton-Schulz in float32 on a CPU and for all matrices of a shape at once elsewhere.

    torch's takes one matrix after the other in bfloat16. A CPU without bfloat16 units emulates that at a third of the
    speed; a GPU would wait between kernels too small to fill it.

    Of several ranks each has the momenta of its share of the matrices, orthogonalises these, and tells the others the
    directions: what a step costs in arithmetic and memory is divided by the number of ranks.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._ranks = ranks
        self._shapes: list[list[torch.nn.Parameter]] = []
        self._owners: dict[torch.Tensor, int] = {}
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for parameters_of_shape in by_shape.values():
            self._shapes.append(parameters_of_shape)
            for parameter in parameters_of_shape:  # dealt on from shape to shape, so that no rank has many more
                self._owners[parameter] = len(self._owners) % ranks.size

    def owner(self, parameter: torch.Tensor) -> int:
        """The rank that has the matrix's momentum."""
        return self._owners[parameter]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for parameters in self._shapes:
            if parameters[0].device.type != "cpu":
                self.step_shape(parameters, group, torch.bfloat16)
            elif self._ranks.size > 1:
                self.step_shape(parameters, group)
            else:  # one direction at a time is held
                for parameter in parameters:
                    self.step_shape([parameter], group)

    @torch.no_grad()
    def step_shape(
        self, parameters: list[torch.nn.Parameter], group: dict[str, Any], dtype: torch.dtype | None = None
    ) -> None:
        """Step matrices of one shape, with Newton-Schulz in this type for all at once, or for one after the other."""
        mine, updates = [], []
        for parameter in parameters:
            gradient = whole(cast(torch.Tensor, parameter.grad))  # which every rank takes part in
            if self._owners[parameter] == self._ranks.rank:
                mine.append(parameter)
                updates.append(self._momentum_step(parameter, gradient, group))
        if dtype is None or not mine:
            found = [orthogonal(update, group) for update in updates]
        else:
            found = list(orthogonal(torch.stack(updates).to(dtype), group).unbind())
        directions = self._tell(parameters, dict(zip(mine, found, strict=True)), dtype)
        rows, columns = parameters[0].shape
        shares = [local(parameter) for parameter in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(shares, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(shares, directions, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))

    def _momentum_step(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """What is orthogonalised: the gradient towards its mean, by Nesterov."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: torch.Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"])

    def _tell(
        self, parameters: list[torch.nn.Parameter], mine: dict[torch.Tensor, torch.Tensor], dtype: torch.dtype | None
    ) -> list[torch.Tensor]:
        """What this rank has of each parameter's direction, once each owner has told the others."""
        directions = []
        for parameter in parameters:
            direction = mine.get(parameter)
            if direction is None:
                direction = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=parameter.device)
            self._ranks.broadcast(direction, self._owners[parameter])
            directions.append(share_of(direction, parameter).to(parameter.dtype))
        return directions


def orthogonal(update: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """The nearest semi-orthogonal matrix by Newton-Schulz, of one (rows, columns) or of each in (n, rows, columns)."""
    a, b, c = group["ns_coefficients"]
    rows, columns = update.shape[-2:]
    x = update.mT if rows > columns else update
    if update.ndim == 2:
        x = x / x.norm().clamp(min=group["eps"])
        for _ in range(group["ns_steps"]):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
        for _ in range(group["ns_steps"]):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if rows > columns else x).contiguous()
