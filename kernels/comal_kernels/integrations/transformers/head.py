"""The head of a transformers model, as this library's functions take it, and whether it is that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comal_kernels.errors import ModelError
from comal_kernels.linear_logprob.api import linear_logprob

# what a configuration calls the factor on the logits, and its power there
FACTORS = {"logit_scale": 1, "lm_head_multiplier": 1, "output_multiplier": 1, "logits_scaling": -1}
# families that mean another power by such a name
ODD = {"hyperclovax": {"logits_scaling": 1}}
# what a configuration calls the cap
CAPS = ("final_logit_softcapping", "logits_soft_cap")

TOKENS, WORDS = 2, 64  # that a probe runs, and the words of the head that it keeps
ROUNDINGS, SUMMING = 4.0, 1e-4  # what a right head may be off by, relative to the largest logit


@dataclass(frozen=True)
class LMHead:
    """What comes after a model's last hidden states, as this library's functions take it."""

    weight: Tensor  # (V, H), the model's own parameter, tied or not
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    logit_scale: float = 1.0

    @classmethod
    def from_model(cls, model: Any, *, check: bool = True) -> LMHead:
        """The head of a transformers model, a peft model included.

        check: run a few tokens through it and compare. Raises ModelError for a model without a
        head over words, one that does not run on token ids alone, and one between whose hidden
        states and logits comes something that is not known here.
        """
        model = plain(model)
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"model: {type(model).__name__} has no head over words")
        config, scale = model.config.get_text_config(), 1.0
        for name, power in (FACTORS | ODD.get(config.model_type, {})).items():
            scale *= float(getattr(config, name, None) or 1.0) ** power
        cap = next((cap for n in CAPS if (cap := getattr(config, n, None))), None)
        if check:
            _check(model)
        return cls(head.weight, getattr(head, "bias", None), cap, scale)

    def arguments(self) -> dict[str, Any]:
        """As keywords of `linear_logprob` and `prox_loss`."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "softcap": self.softcap,
            "logit_scale": self.logit_scale,
        }

    def logprob(self, hidden: Tensor, target: Tensor, **options: Any) -> Any:
        """`linear_logprob` with this head."""
        return linear_logprob(hidden, target=target, **self.arguments(), **options)


def plain(model: Any) -> Any:
    """The transformers model inside of a peft model; any other as it is."""
    inside = getattr(model, "get_base_model", None)
    return inside() if callable(inside) else model


@torch.inference_mode()
def _check(model: Any) -> None:
    """ValueError, with the difference seen, for a model whose head is not reproduced.

    Compared is all that comes after the layers (final norm, scale, cap, bias), so these are passed
    over where the model lets itself run without, and the head keeps some of its words only.
    """
    kind = type(model).__name__
    with _few_words(model.get_output_embeddings()):
        try:
            states, logits = _probe(model)  # (TOKENS, H), (TOKENS, WORDS)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            first = next(iter(str(error).splitlines()), "")
            raise ModelError(
                f"model: {kind} does not run on token ids alone ({type(error).__name__}: {first})"
            ) from error
        if not bool(logits.isfinite().all()):
            raise ModelError(
                f"model: logits of {kind} are not finite; its weights are damaged, or too large "
                f"for {str(model.dtype).removeprefix('torch.')}"
            )
        words = torch.arange(logits.shape[1], device=logits.device)
        ours = LMHead.from_model(model, check=False).logprob(
            states.repeat_interleave(len(words), 0),
            words.repeat(len(states)),
            backend="torch",  # the model is asked about, not the kernels
        )
    wanted = logits.log_softmax(-1).flatten()
    off = (ours.double() - wanted).abs()
    slack = ROUNDINGS * torch.finfo(model.dtype).eps + SUMMING
    if bool((off <= slack * (1 + logits.abs().max())).all()):
        return
    at = int(off.nan_to_num(torch.inf).argmax())
    raise ModelError(
        f"model: the head of {kind} is not reproduced: log-prob {ours[at]:.5g} instead of "
        f"{wanted[at]:.5g}; between its hidden states and its logits comes something that "
        "comal_kernels.integrations.transformers does not know"
    )


def _probe(model: Any) -> tuple[Tensor, Tensor]:
    """Final states (n, H), as training has them, and logits (n, words) float64, by one pass."""
    ids = torch.arange(1, TOKENS + 1, device=model.device)[None]
    try:
        with _no_layers(model):
            return _states_and_logits(model, ids)
    except Exception:  # a model that can't do without its layers
        return _states_and_logits(model, ids)


def _states_and_logits(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if not seen:  # its head rests on something else than its base model
        seen.append(model.base_model(input_ids=ids, use_cache=False))
    return seen[-1].last_hidden_state[0], logits[0].double()


@contextmanager
def _few_words(head: Any) -> Iterator[None]:
    """Within the block the head holds WORDS of its words, evenly spread."""
    own = {name: p for name in ("weight", "bias") if (p := getattr(head, name, None)) is not None}
    vocab = len(own["weight"])
    count = min(WORDS, vocab)
    words = torch.arange(count, device=own["weight"].device) * vocab // count
    for name, parameter in own.items():
        few = parameter.detach().index_select(0, words)
        setattr(head, name, nn.Parameter(few, requires_grad=False))
    try:
        yield
    finally:
        for name, parameter in own.items():
            setattr(head, name, parameter)


@contextmanager
def _no_layers(model: Any) -> Iterator[None]:
    """Within the block the lists of decoder layers are empty."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lists = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList)
        and any(isinstance(layer, GradientCheckpointingLayer) for layer in child)
    ]
    with ExitStack() as undo:
        for parent, name, child in lists:
            undo.callback(setattr, parent, name, child)
            setattr(parent, name, nn.ModuleList())
        yield
