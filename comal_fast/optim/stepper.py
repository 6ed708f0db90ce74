"""When parameters are updated: after the backward passes of a step, or inside the last one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from comal_fast.optim.adamw import AdamW
from comal_fast.optim.norms import gradient_norms, total_norm


class Stepper:
    """Steps after the backward passes, by gradients clipped to a global norm (0: not clipped).

    For each step: `arm` before each of its backward passes, `step` after the last.
    """

    def __init__(self, inner: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.inner, self.max_grad_norm = inner, max_grad_norm
        self.parameters: list[Tensor] = [p for g in inner.param_groups for p in g["params"]]

    def arm(self, rate: float, seed: int, last: bool) -> None:
        """Set the step's learning rate, what seeds its random numbers, whether no pass follows."""
        for group in self.inner.param_groups:
            group["lr"], group["seed"] = rate, seed

    def step(self) -> float:
        """Update the parameters and let go of their gradients.

        Nothing is updated where the norm is no finite number: the host waits to see it. Clipping
        is no sweep of its own: the update divides the gradients.

        Returns:
            The norm of the gradients before clipping.
        """
        norm = 0.0
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            norm = float(total_norm(gradient_norms(gradients), self.parameters[0]))
        if math.isfinite(norm):
            self.inner.grad_scale = self._divisor(norm)  # type: ignore[attr-defined]
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return norm

    def _divisor(self, norm: float) -> Tensor | None:
        """() float32 that clips gradients of that norm, as torch's clip_grad_norm_ would."""
        excess = (norm + 1e-6) / (self.max_grad_norm or math.inf)
        if excess <= 1:
            return None
        return torch.full((), excess, dtype=torch.float32, device=self.parameters[0].device)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if nothing had happened."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.inner.load_state_dict(state_dict)


class BackwardStepper(Stepper):
    """Steps inside the last backward pass: each parameter as soon as its gradient is complete.

    The gradient is let go of at once, so those of about one layer are alive at a time. Where a step
    has several backward passes, gradients add up over them as they always do, with the same result:
    in host memory where the moments are there too, else on the device, where they all are alive
    until the last pass, so that only one pass a step saves their memory.
    The norm of all gradients is known at the end, too late for clipping.
    """

    inner: AdamW

    def __init__(self, inner: AdamW) -> None:
        super().__init__(inner, max_grad_norm=0)
        self._hooks: list[Any] = []
        self._norms: dict[Tensor, Tensor] = {}

    def arm(self, rate: float, seed: int, last: bool) -> None:
        super().arm(rate, seed, last)
        self._disarm()
        if last or self.inner.gradients:
            hook = self._take if last else self._put_away
            self._hooks = [p.register_post_accumulate_grad_hook(hook) for p in self.parameters]

    def step(self) -> float:
        self._disarm()
        for parameter in self.parameters:  # those that the last pass had no gradient of
            if self.inner.gradients and self.inner.gradients.holds(parameter):
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                self._take(parameter)
        self.inner.finish()
        norms = [self._norms[p] for p in self.parameters if p in self._norms]
        self._norms.clear()
        return float(total_norm(norms, self.parameters[0]))

    def _disarm(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.inner.finish()

    def _put_away(self, parameter: Tensor) -> None:
        self.inner.put_away(parameter)
        parameter.grad = None

    def _take(self, parameter: Tensor) -> None:
        self._norms[parameter] = self.inner.update(parameter)
        parameter.grad = None
