"""Muon for the matrices of the blocks, AdamW for embedding and head, and their state as named tensors."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.schedule import MOMENTUM

REFERENCE_WIDTH = 768
"""The model width at which nanochat tuned the learning rates of embedding and head; they scale with
(width / 768) ** -0.5."""

BETAS = (0.8, 0.95)
EPSILON = 1e-10
"""nanochat's settings of AdamW."""


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with Newton-Schulz in float32 on a CPU and for all matrices of a shape at once elsewhere.

    torch's takes one matrix after the other in bfloat16. A CPU without bfloat16 units emulates that at a third of the
    speed; a GPU would wait between kernels too small to fill it.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.device.type == "cpu":
                    self._step_matrix(parameter, group)
                else:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for parameters in shapes.values():
                self.step_stack(parameters, group, torch.bfloat16)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum_buffer"]
        return momentum

    def _step_matrix(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        a, b, c = group["ns_coefficients"]
        momentum, gradient = self._momentum(parameter), cast(torch.Tensor, parameter.grad)
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"])
        rows, columns = update.shape
        x = update.T if rows > columns else update
        x = x / x.norm().clamp(min=group["eps"])
        for _ in range(group["ns_steps"]):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = math.sqrt(max(1.0, rows / columns))
        parameter.add_(x.T if rows > columns else x, alpha=-group["lr"] * scale)

    @torch.no_grad()
    def step_stack(self, parameters: list[torch.Tensor], group: dict[str, Any], dtype: torch.dtype) -> None:
        """Step matrices of one shape together, with Newton-Schulz in this type."""
        a, b, c = group["ns_coefficients"]
        momenta = [self._momentum(parameter) for parameter in parameters]
        gradients = [cast(torch.Tensor, parameter.grad) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        update = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        rows, columns = update.shape[1:]
        x = (update.mT if rows > columns else update).to(dtype)
        x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
        for _ in range(group["ns_steps"]):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        steps = (x.mT if rows > columns else x).to(update.dtype).unbind()
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, steps, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


class Optimisers:
    """Both optimisers of one model, stepped together.

    `state()` and `load()` carry what they remember as named tensors (`muon/NAME/momentum_buffer`,
    `adamw/NAME/exp_avg`), which a safetensors file holds.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings) -> None:
        names = {id(p): name for name, p in model.named_parameters()}
        head = model.get_parameter("lm_head.weight")
        embedding = model.get_parameter("model.embed_tokens.weight")
        matrices = [p for p in model.parameters() if p is not head and p is not embedding]
        scale = (embedding.shape[1] / REFERENCE_WIDTH) ** -0.5
        adamw = torch.optim.AdamW(
            [
                {"params": [embedding], "lr": settings.embedding_lr * scale},
                {"params": [head], "lr": settings.unembedding_lr * scale},
            ],
            betas=BETAS,
            eps=EPSILON,
            weight_decay=0.0,
            fused=True,
        )
        muon = Muon(matrices, lr=settings.matrix_lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)
        self._names = names
        self._optimisers: dict[str, torch.optim.Optimizer] = {"adamw": adamw, "muon": muon}
        self._rates = {name: [g["lr"] for g in o.param_groups] for name, o in self._optimisers.items()}

    def set_multiplier(self, multiplier: float) -> None:
        """Set every learning rate to its base value times the multiplier."""
        for name, optimiser in self._optimisers.items():
            for group, rate in zip(optimiser.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * multiplier

    @property
    def matrix_lr(self) -> float:
        """Muon's learning rate as it is set."""
        return float(self._optimisers["muon"].param_groups[0]["lr"])

    def set_momentum(self, momentum: float) -> None:
        """Set Muon's."""
        for group in self._optimisers["muon"].param_groups:
            group["momentum"] = momentum

    def step(self) -> None:
        for optimiser in self._optimisers.values():
            optimiser.step()

    def reset(self) -> None:
        """Forget everything: the state called `fresh`."""
        for optimiser in self._optimisers.values():
            optimiser.state.clear()

    def state(self) -> dict[str, torch.Tensor]:
        """What the optimisers remember, by name; empty before the first step."""
        return {
            f"{name}/{self._names[id(parameter)]}/{field}": value
            for name, optimiser in self._optimisers.items()
            for parameter, fields in optimiser.state.items()
            for field, value in fields.items()
        }

    def load(self, state: Mapping[str, torch.Tensor], source: str) -> None:
        """Take over a state that `state()` gave; `source` names it in errors.

        Raises:
            TrainingError: it belongs to another model.
        """
        fields = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
        expected: dict[str, tuple[torch.optim.Optimizer, torch.Tensor, str]] = {
            f"{name}/{self._names[id(parameter)]}/{field}": (optimiser, parameter, field)
            for name, optimiser in self._optimisers.items()
            for group in optimiser.param_groups
            for parameter in group["params"]
            for field in fields[name]
        }
        wrong = sorted(set(expected) ^ set(state)) or [
            name for name, (_, p, field) in expected.items() if field != "step" and state[name].shape != p.shape
        ]
        if wrong:
            raise TrainingError(
                f"{source} is not an optimiser state of this model ({wrong[0]!r} is missing, unknown or of another "
                "shape); it was written under other training settings: start the site from a fresh state"
            )
        self.reset()
        for name, (optimiser, parameter, field) in expected.items():
            # AdamW's step stays float32 on the parameter's device; torch's fused kernel expects it there.
            optimiser.state[parameter][field] = state[name].to(parameter.device, copy=True)
