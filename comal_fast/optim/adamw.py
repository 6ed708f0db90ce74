"""AdamW a parameter at a time: any kind of moments, anywhere, for parameters of any dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from comal_fast.config.schema import OptimizerState
from comal_fast.optim.host import HostState
from comal_fast.optim.moments import Moments, choose_moments, local
from comal_fast.optim.rounding import round_stochastically

SLICE = 1 << 23  # elements worked on at once: bounds the memory of float32 copies and of host state


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101), whose `update` steps one parameter, from a gradient hook if wished.

    A group's `lr` and `seed` are those of the step. Random numbers depend on the seed and on the
    parameter's position, not on the order of the updates, so every way of stepping gives the same
    weights, and so does a resumed run.

    state: dtype of the moments: "model" that of the parameter (all of torch's AdamW), "float32", or
        "8bit" (parameters of less than 4096 elements: float32).
    stochastic_rounding: write bfloat16 parameters without bias instead of rounding to nearest.
    offload: the moments live in (pinned) host memory.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        state: OptimizerState = "model",
        stochastic_rounding: bool = False,
        offload: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": 0}
        super().__init__(parameters, defaults)
        self.stochastic_rounding = stochastic_rounding
        self.host: HostState | None = None
        self._moments: dict[Tensor, Moments] = {}
        self._place: dict[Tensor, tuple[int, dict[str, Any]]] = {}  # position and group
        self._generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self._place[parameter] = len(self._place), group
                moments = choose_moments(state, parameter)
                self._moments[parameter] = moments
                tensors = moments.zeros(parameter)
                if offload:
                    self.host = self.host or HostState(parameter.device)
                    tensors = {name: self.host.home(local(x)) for name, x in tensors.items()}
                self.state[parameter] = {"step": 0, **tensors}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for parameter in self._place:
            if parameter.grad is not None:
                self.update(parameter)
        self.finish()

    @torch.no_grad()
    def update(self, parameter: Tensor) -> None:
        """Update one parameter by its gradient, which may be let go of afterwards.

        `finish` belongs after the last one of a step.
        """
        assert parameter.grad is not None
        position, group = self._place[parameter]
        moments, state = self._moments[parameter], self.state[parameter]
        state["step"] += 1
        weights, gradient = local(parameter.detach()).view(-1), local(parameter.grad).reshape(-1)
        rounded = self.stochastic_rounding and weights.dtype is torch.bfloat16
        dtype = torch.float32 if rounded else moments.working_dtype(parameter)
        generator = self._generator(weights.device, group["seed"] + position) if rounded else None
        with self.host.updating(gradient) if self.host else nullcontext():
            for w, g, slices in self._slices(weights, gradient, state, moments):
                with self._at_hand(slices) as lent:
                    working = w.to(dtype)
                    moments.update(working, g.to(dtype), lent, state["step"], group)
                    if generator:
                        round_stochastically(w, working, generator)
                    elif working is not w:
                        w.copy_(working)

    def finish(self) -> None:
        """Let what follows, on the device, see the updated parameters."""
        if self.host:
            self.host.finish()

    def state_dict(self) -> dict[str, Any]:
        """As any optimiser's, once the host has it."""
        if self.host:
            self.host.synchronize()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copied into the state that is here: dtypes and places stay, unlike in the base class."""
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for parameter, key in zip(self._place, names, strict=True):
            mine = self.state[parameter]
            for name, value in state_dict["state"][key].items():
                if isinstance(value, Tensor):
                    mine[name].copy_(value)
                else:
                    mine[name] = value

    def _slices(
        self, weights: Tensor, gradient: Tensor, state: dict[str, Any], moments: Moments
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Weights, gradient and the moments' tensors, SLICE elements of the parameter at a time."""
        flat = {
            name: local(state[name]).view(-1).split(SLICE // n) for name, n in moments.per.items()
        }
        for i, (w, g) in enumerate(zip(weights.split(SLICE), gradient.split(SLICE), strict=True)):
            yield w, g, {name: parts[i] for name, parts in flat.items()}

    def _at_hand(self, state: dict[str, Tensor]) -> AbstractContextManager[dict[str, Tensor]]:
        return self.host.lent(state) if self.host else nullcontext(state)

    def _generator(self, device: torch.device, seed: int) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(seed)
