"""Gradients that add up in host memory over the backward passes of a step."""

from __future__ import annotations

from torch import Tensor

from comal_fast.optim.host import HostState
from comal_fast.optim.slices import local, slices


class HostGradients:
    """Sums in the gradients' own dtype, added to on the device: those that autograd makes there.

    `put` and `take` belong inside `host.updating`.
    """

    def __init__(self, host: HostState) -> None:
        self.host = host
        self._sums: dict[Tensor, Tensor] = {}  # kept from step to step: pinning memory is slow
        self._held: set[Tensor] = set()

    def holds(self, parameter: Tensor) -> bool:
        """Whether something was put for the parameter and not yet taken."""
        return parameter in self._held

    def put(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add a gradient to the parameter's sum."""
        if parameter not in self._sums:
            self._sums[parameter] = self.host.empty(local(gradient))
        for g, there in zip(slices(gradient), slices(self._sums[parameter]), strict=True):
            if parameter in self._held:
                with self.host.lent({"gradient": there}) as lent:
                    lent["gradient"].add_(g)
            else:
                there.copy_(g, non_blocking=True)
        self._held.add(parameter)

    def take(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add the parameter's sum to a gradient, and forget it."""
        for g, there in zip(slices(gradient), slices(self._sums[parameter]), strict=True):
            with self.host.lent({"gradient": there}, back=False) as lent:
                g.add_(lent["gradient"])
        self._held.remove(parameter)
