"""Muon for the matrices of the blocks, AdamW for embedding and head, and their state as named tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.muon import Muon
from curtail_pipeline.training.ranks import ALONE, Ranks
from curtail_pipeline.training.schedule import MOMENTUM
from curtail_pipeline.training.sharding import share_as, whole

REFERENCE_WIDTH = 768
"""The model width at which nanochat tuned the learning rates of embedding and head; they scale with
(width / 768) ** -0.5."""

BETAS = (0.8, 0.95)
EPSILON = 1e-10
"""nanochat's settings of AdamW."""

FIELDS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
"""What each remembers of a parameter."""


@dataclass(frozen=True)
class _Field:
    """A tensor of the state, and where it is."""

    optimiser: torch.optim.Optimizer
    parameter: nn.Parameter
    name: str
    owner: int | None
    """The rank that has it; None where each has it, or its share."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size() if self.name == "step" else self.parameter.shape


class Optimisers:
    """Both optimisers of one model, stepped together.

    `state()` and `load()` carry what they remember as named tensors (`muon/NAME/momentum_buffer`,
    `adamw/NAME/exp_avg`), which a safetensors file holds.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings, ranks: Ranks = ALONE) -> None:
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
        muon = Muon(matrices, settings.matrix_lr, MOMENTUM, settings.weight_decay, ranks)
        self._names, self._ranks, self._muon = names, ranks, muon
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

    def _fields(self) -> Iterator[tuple[str, _Field]]:
        """The whole state's tensors by name, in the same order on every rank."""
        for name, optimiser in self._optimisers.items():
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    owner = self._muon.owner(parameter) if name == "muon" else None
                    for field in FIELDS[name]:
                        key = f"{name}/{self._names[id(parameter)]}/{field}"
                        yield key, _Field(optimiser, parameter, field, owner)

    def state(self) -> dict[str, torch.Tensor]:
        """What the optimisers remember, by name; empty before the first step.

        Of several ranks all have to ask, and rank 0 is answered; the others' answer is empty.
        """
        if not self._optimisers["adamw"].state:
            return {}
        found = {}
        for key, field in self._fields():
            value = whole(self._held(field))
            if field.owner is not None:
                self._ranks.broadcast(value, field.owner)
            if self._ranks.rank == 0:
                found[key] = value if self._ranks.size == 1 else value.to("cpu", copy=True)
        return found

    def _held(self, field: _Field) -> torch.Tensor:
        """What this rank has of a tensor, or room for what another one has."""
        if field.owner in (None, self._ranks.rank):
            value: torch.Tensor = field.optimiser.state[field.parameter][field.name]
            return value
        return torch.empty(field.shape, device=field.parameter.device)

    def check(self, state: Mapping[str, torch.Tensor], source: str) -> None:
        """Whether `load` would take it; `source` names it in errors.

        Raises:
            TrainingError: it belongs to another model.
        """
        expected = dict(self._fields())
        wrong = sorted(set(expected) ^ set(state)) or [
            name for name, field in expected.items() if field.name != "step" and state[name].shape != field.shape
        ]
        if wrong:
            raise TrainingError(
                f"{source} is not an optimiser state of this model ({wrong[0]!r} is missing, unknown or of another "
                "shape); it was written under other training settings: start the site from a fresh state"
            )

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a state that `state()` gave and `check` found right; of several ranks rank 0 has it."""
        self.reset()
        for name, field in self._fields():
            # AdamW's step stays float32 on the parameter's device; torch's fused kernel expects it there.
            device = field.parameter.device
            if self._ranks.rank == 0:
                value = state[name].to(device, copy=True)
            else:
                value = torch.empty(field.shape, device=device)
            self._ranks.broadcast(value, 0)
            if field.owner in (None, self._ranks.rank):
                shared = field.owner is None and field.name != "step"
                field.optimiser.state[field.parameter][field.name] = (
                    share_as(value, field.parameter) if shared else value
                )
