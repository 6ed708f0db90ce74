"""In the place of Liger's `LigerFusedLinearDPOLoss`: its arguments and outputs, without Liger.

Beyond it: `ipo`, cached reference log-probs, packed sequences, and heads with a cap or a factor.
The logits of ignored positions are never computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from comal_kernels.linear_logprob.api import linear_logprob
from comal_kernels.prox_loss.api import prox_loss

# u = β (w − r), w and r: gains of the chosen and of the rejected response on the reference, (P,)
Formula = Callable[[Tensor, Tensor, Any], Tensor]


def _exo(w: Tensor, r: Tensor, o: Any) -> Tensor:
    u = o.beta * (w - r)
    label = torch.tensor(o.label_smoothing, dtype=u.dtype, device=u.device)
    right = u.sigmoid() * (logsigmoid(u) - torch.log1p(-label))
    return right + (-u).sigmoid() * (logsigmoid(-u) - label.log())


def _robust(w: Tensor, r: Tensor, o: Any) -> Tensor:
    u, e = o.beta * (w - r), o.label_smoothing
    return (e * logsigmoid(-u) - (1 - e) * logsigmoid(u)) / (1 - 2 * e)


def _discopop(w: Tensor, r: Tensor, o: Any) -> Tensor:
    u = o.beta * (w - r)
    mix = (u / o.discopop_tau).sigmoid()
    return mix * (-u).exp() - (1 - mix) * logsigmoid(u)


FORMULAS: dict[str, Formula] = {
    "sigmoid": lambda w, r, o: -logsigmoid(o.beta * (w - r)),  # DPO, 2305.18290
    "ipo": lambda w, r, o: (w - r - 0.5 / o.beta).square(),  # 2310.12036
    "hinge": lambda w, r, o: (1 - o.beta * (w - r)).relu(),  # SLiC, 2309.06657
    "robust": _robust,  # 2403.00409
    "exo_pair": _exo,  # 2402.00856
    "nca_pair": lambda w, r, o: (  # 2402.05369
        -logsigmoid(o.beta * w) - 0.5 * (logsigmoid(-o.beta * w) + logsigmoid(-o.beta * r))
    ),
    "bco_pair": lambda w, r, o: -logsigmoid(o.beta * w) - logsigmoid(-o.beta * r),  # 2404.04656
    "sppo_hard": lambda w, r, o: (  # 2405.00675
        (w - 0.5 / o.beta).square() + (r + 0.5 / o.beta).square()
    ),
    "apo_zero": lambda w, r, o: 1 - (o.beta * w).sigmoid() + (o.beta * r).sigmoid(),  # 2408.06266
    "apo_down": lambda w, r, o: (o.beta * w).sigmoid() + (o.beta * (r - w)).sigmoid(),
    "discopop": _discopop,  # 2406.08414
}
FUSED = {"sigmoid": ("dpo", "beta"), "ipo": ("ipo", "eta")}  # one pass for loss and gradients


class FusedLinearDPOLoss(nn.Module):
    """Liger's options, by its names; `compiled` and `chunk_size` change nothing here.

    Raises ValueError for a loss that is not known, or whose label smoothing is out of range.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        compute_nll_loss: bool = False,
        compiled: bool = True,
        use_ref_model: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
        *,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if loss_type not in FORMULAS:
            raise ValueError(f"loss_type: {loss_type!r}; expected one of {', '.join(FORMULAS)}")
        if loss_type == "exo_pair" and not 0 < label_smoothing < 1:
            raise ValueError(f"label_smoothing: {label_smoothing}; exo_pair needs one in (0, 1)")
        if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: {label_smoothing}; robust needs one in [0, 0.5)")
        self.ignore_index, self.beta, self.alpha = ignore_index, beta, alpha
        self.compute_nll_loss, self.use_ref_model = compute_nll_loss, use_ref_model
        self.average_log_prob, self.loss_type = average_log_prob, loss_type
        self.label_smoothing, self.discopop_tau = label_smoothing, discopop_tau
        self.compiled, self.chunk_size = compiled, chunk_size
        self.options: dict[str, Any] = {
            "softcap": softcap,
            "logit_scale": logit_scale,
            "backend": backend,
        }

    def forward(
        self,
        lin_weight: Tensor,
        _input: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        ref_logp: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss, and (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean,
        nll_loss, chosen_rewards, rejected_rewards), all but the loss detached.

        Args:
            lin_weight: (V, H); bias: (V,).
            _input: (2 P, L, H), the P chosen sequences before the P rejected ones; or packed (T, H)
                with cu_seqlens (2 P + 1,) int32, in the same order.
            target: (2 P, L) or (T,) int64, shifted already; ignore_index where nothing counts.
            ref_input: the reference's states, as Liger takes them, with
            ref_weight: its head, and
            ref_bias: the head's bias. Or
            ref_logp: (2 P,) the reference's log-probs, kept from before: sums, or means with
                average_log_prob.

        Means of logits are over all positions and words, as Liger's, without cap and factor.
        """
        sequences, bounds = self._bounds(_input, target, cu_seqlens)
        reference = self._reference(target, bounds, ref_input, ref_weight, ref_bias, ref_logp)
        pairs, counts = sequences // 2, self._counts(target, bounds)
        lengths = counts.clamp(min=1).to(_input.device)
        nll = _input.new_zeros((), dtype=torch.float32)
        # float16's gradients wait for the upstream factor, as of a scaler: less would underflow
        is_half = _input.dtype == torch.float16
        if self.loss_type in FUSED and not self.compute_nll_loss and not is_half:
            loss, logp = self._fused(lin_weight, _input, target, bias, bounds, reference, lengths)
        else:
            sums = self._sums(_input, lin_weight, target, bias, bounds)
            logp = sums / lengths if self.average_log_prob else sums
            gain = logp - reference
            each = FORMULAS[self.loss_type](gain[:pairs], gain[pairs:], self)
            loss = each.sum() / pairs
            if self.compute_nll_loss:
                nll = -sums[:pairs].sum() / counts[:pairs].sum().to(sums.device)
                loss = loss + self.alpha * nll
        logp, rewards = logp.detach(), self.beta * (logp.detach() - reference)
        means = self._logit_means(_input, lin_weight, bias, bounds, pairs)
        halves = (logp[:pairs], logp[pairs:], *means, nll.detach())
        return loss, (*halves, rewards[:pairs], rewards[pairs:])

    def _bounds(
        self, hidden: Tensor, target: Tensor, cu_seqlens: Tensor | None
    ) -> tuple[int, Tensor]:
        """(sequences, their bounds on the host where that costs nothing)."""
        if cu_seqlens is None:
            if hidden.dim() != 3 or target.shape != hidden.shape[:2]:
                raise ValueError(
                    f"_input: shape {tuple(hidden.shape)} with target {tuple(target.shape)}; "
                    "expected (2 P, L, H) with (2 P, L), or cu_seqlens with (T, H) and (T,)"
                )
            cu_seqlens = torch.arange(len(target) + 1) * target.shape[1]
        sequences = len(cu_seqlens) - 1
        if sequences % 2 or not sequences:
            raise ValueError(
                f"_input: {sequences} sequences; expected the chosen ones, then as many rejected"
            )
        return sequences, cu_seqlens

    def _counts(self, target: Tensor, bounds: Tensor) -> Tensor:  # (2 P,) targets that count
        upto = (target.flatten() != self.ignore_index).cumsum(0)
        upto = torch.cat([upto.new_zeros(1), upto])[bounds.long().to(target.device)]
        return upto.diff()

    def _sums(
        self, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, bounds: Tensor
    ) -> Tensor:  # (2 P,)
        return linear_logprob(
            hidden.reshape(-1, hidden.shape[-1]),
            weight,
            target.reshape(-1),
            bias=bias,
            cu_seqlens=bounds,
            ignore_index=self.ignore_index,
            **self.options,
        )

    @torch.no_grad()
    def _reference(
        self,
        target: Tensor,
        bounds: Tensor,
        hidden: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        logp: Tensor | None,
    ) -> Tensor:  # (2 P,) as the policy's are compared
        if not self.use_ref_model:
            return torch.zeros(len(bounds) - 1, device=target.device)
        if logp is not None:
            if hidden is not None or logp.shape != (len(bounds) - 1,):
                raise ValueError(
                    f"ref_logp: shape {tuple(logp.shape)}; expected ({len(bounds) - 1},), and no "
                    "ref_input beside it"
                )
            return logp
        if hidden is None or weight is None:
            raise ValueError("ref_input: missing; expected it with ref_weight, or ref_logp")
        sums = self._sums(hidden, weight, target, bias, bounds)
        if not self.average_log_prob:
            return sums
        return sums / self._counts(target, bounds).clamp(min=1).to(sums.device)

    def _fused(
        self,
        weight: Tensor,
        hidden: Tensor,
        target: Tensor,
        bias: Tensor | None,
        bounds: Tensor,
        reference: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(loss, log-probs (2 P,)): loss and gradients by one pass over the states."""
        (name, strength), pairs = FUSED[self.loss_type], len(lengths) // 2
        hyper: dict[str, Any] = {strength: self.beta}
        cached = reference * lengths if self.average_log_prob else reference
        out = prox_loss(
            hidden.reshape(-1, hidden.shape[-1]),
            weight,
            target.reshape(-1),
            bounds,
            loss=name,
            chosen=torch.arange(pairs),
            rejected=torch.arange(pairs, 2 * pairs),
            ref_logp=cached,
            bias=bias,
            ignore_index=self.ignore_index,
            average_log_prob=self.average_log_prob,
            **hyper,
            **self.options,
        )
        return out.loss, out.logp / lengths if self.average_log_prob else out.logp

    @torch.no_grad()
    def _logit_means(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, bounds: Tensor, pairs: int
    ) -> tuple[Tensor, Tensor]:
        """Of the chosen and of the rejected sequences: the mean word's logit, by linearity."""
        states, middle = hidden.reshape(-1, hidden.shape[-1]), int(bounds[pairs])
        word = weight.float().mean(0)
        offset = 0.0 if bias is None else bias.float().mean()
        chosen, rejected = states[:middle], states[middle:]
        means = (part.float().mean(0) @ word + offset for part in (chosen, rejected))
        return next(means), next(means)
