"""AdamW a parameter at a time: any kind of moments, anywhere, for parameters of any dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from comal_fast.config.training import OptimizerState
from comal_fast.optim.gradients import HostGradients
from comal_fast.optim.host import HostState
from comal_fast.optim.moments import Moments, choose_moments, runs_kernel
from comal_fast.optim.norms import gradient_norms
from comal_fast.optim.rounding import round_stochastically
from comal_fast.optim.slices import first_element, local, slices


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101), whose `update` steps one parameter, from a gradient hook if wished.

    A group's `lr` and `seed` are those of the step. Random numbers depend on the seed and on the
    parameter's position, not on the order of the updates, so every way of stepping gives the same
    weights, and so does a resumed run.

    state: dtype of the moments: "model" that of the parameter (all of torch's AdamW), "float32", or
        "8bit" (where `choose_moments` does not hold to float32).
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
        self.gradients: HostGradients | None = None
        self.grad_scale: Tensor | None = None  # () float32, as torch's fused AdamW has it
        self._moments: dict[Tensor, Moments] = {}
        self._by_kernel: set[Tensor] = set()
        self._place: dict[Tensor, tuple[int, dict[str, Any]]] = {}  # position and group
        self._generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self._place[parameter] = len(self._place), group
                moments = choose_moments(state, parameter)
                self._moments[parameter] = moments
                if runs_kernel(parameter, moments, self._rounds(parameter)):
                    self._by_kernel.add(parameter)
                tensors = moments.zeros(parameter)
                if offload:
                    tensors = {name: self._home(x) for name, x in tensors.items()}
                self.state[parameter] = {"step": 0, **tensors}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; divides gradients by `grad_scale` first."""
        for parameter in self._place:
            if parameter.grad is not None:
                self._update(parameter, parameter.grad, measured=False)
        self.finish()

    @torch.no_grad()
    def update(self, parameter: Tensor) -> Tensor:
        """Update one parameter by its gradient, and by what `put_away` put away.

        The gradient may be let go of afterwards. `finish` belongs after the last one of a step,
        and before the norm is read.

        Returns:
            () float32, the norm of this rank's part of the gradient.
        """
        assert parameter.grad is not None
        norm = self._update(parameter, parameter.grad, measured=True)
        assert norm is not None
        return norm

    def _update(self, parameter: Tensor, gradient: Tensor, measured: bool) -> Tensor | None:
        """Update a parameter; the norm of its gradient where it is measured."""
        self.state[parameter]["step"] += 1
        with self._updating(gradient):
            if self.gradients and self.gradients.holds(parameter):
                self.gradients.take(parameter, gradient)
            if parameter in self._by_kernel:
                return self._update_by_kernel(parameter, gradient, measured)
            norm = gradient_norms([gradient])[0] if measured else None
            self._update_by_library(parameter, gradient)
        return norm

    def _update_by_kernel(
        self, parameter: Tensor, gradient: Tensor, measured: bool
    ) -> Tensor | None:
        """One launch, or one for each slice of moments in host memory."""
        from comal_fast.optim.adamw_kernel import BLOCK, update_slice

        position, group = self._place[parameter]
        blocks = max(1, -(-local(parameter).numel() // BLOCK))
        size = None if self.host else blocks * BLOCK
        squares = torch.zeros(blocks, device=parameter.device) if measured else None
        first = first_element(parameter)
        for i, (w, g, state) in enumerate(self._slices(parameter, gradient, size)):
            with self._at_hand(state) as lent:
                update_slice(
                    w,
                    g,
                    lent,
                    step=self.state[parameter]["step"],
                    group=group,
                    first=first,
                    seed=group["seed"] + position if self.stochastic_rounding else None,
                    divisor=self.grad_scale,
                    squares=None if squares is None else slices(squares, BLOCK, size)[i],
                )
            first += w.numel()
        return None if squares is None else squares.sum(dtype=torch.float64).sqrt().float()

    def _update_by_library(self, parameter: Tensor, gradient: Tensor) -> None:
        """Slice by slice, through copies in the dtype that the library wants."""
        moments, (position, group) = self._moments[parameter], self._place[parameter]
        rounded = self._rounds(parameter)
        dtype = torch.float32 if rounded else moments.working_dtype(parameter)
        seed = group["seed"] + position
        generator = self._generator(parameter.device, seed) if rounded else None
        step = self.state[parameter]["step"]
        for w, g, state in self._slices(parameter, gradient):
            with self._at_hand(state) as lent:
                working = w.to(dtype)
                moments.update(working, g.to(dtype), lent, step, group, self.grad_scale)
                if generator:
                    round_stochastically(w, working, generator)
                elif working is not w:
                    w.copy_(working)

    def _slices(
        self, parameter: Tensor, gradient: Tensor, size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """(weights, gradient, moments) of each `size` elements, flat."""
        state, per = self.state[parameter], self._moments[parameter].per
        parts = {name: slices(state[name], per[name], size) for name in per}
        pairs = zip(slices(parameter.detach(), 1, size), slices(gradient, 1, size), strict=True)
        for i, (w, g) in enumerate(pairs):
            yield w, g, {name: part[i] for name, part in parts.items()}

    def _rounds(self, parameter: Tensor) -> bool:
        return self.stochastic_rounding and parameter.dtype is torch.bfloat16

    @torch.no_grad()
    def put_away(self, parameter: Tensor) -> None:
        """Add its gradient, which may be let go of, to a sum in host memory (`offload` only)."""
        assert parameter.grad is not None and self.gradients is not None
        with self._updating(parameter.grad):
            self.gradients.put(parameter, parameter.grad)

    def finish(self) -> None:
        """Let what follows, on the device, see the updated parameters."""
        if self.host:
            self.host.finish()

    def state_dict(self) -> dict[str, Any]:
        """The state, as any optimiser gives it, once the host has it."""
        if self.host:
            self.host.synchronize()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy into the state that is here: dtypes and places stay, unlike in the base class."""
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for parameter, key in zip(self._place, names, strict=True):
            mine = self.state[parameter]
            for name, value in state_dict["state"][key].items():
                if isinstance(value, Tensor):
                    mine[name].copy_(value)
                else:
                    mine[name] = value

    def _home(self, tensor: Tensor) -> Tensor:
        if self.host is None:
            self.host = HostState(tensor.device)
            self.gradients = HostGradients(self.host)
        return self.host.empty(tensor).copy_(tensor)

    def _updating(self, gradient: Tensor) -> AbstractContextManager[None]:
        return self.host.updating(gradient) if self.host else nullcontext()

    def _at_hand(self, state: dict[str, Tensor]) -> AbstractContextManager[dict[str, Tensor]]:
        return self.host.lent(state) if self.host else nullcontext(state)

    def _generator(self, device: torch.device, seed: int) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(seed)
