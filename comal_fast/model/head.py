"""A model's head as `comal_kernels` takes it, and whether that is the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from comal_fast.errors import InputError
from comal_kernels import linear_logprob

# what a configuration calls the factor on the logits, and its power there
FACTORS = {"logit_scale": 1, "lm_head_multiplier": 1, "output_multiplier": 1, "logits_scaling": -1}
# families that mean another power by such a name
ODD = {"hyperclovax": {"logits_scaling": 1}}
# what a configuration calls the cap
CAPS = ("final_logit_softcapping", "logits_soft_cap")

TOKENS, WORDS = 2, 64  # that a probe runs, and the words of the head that it keeps
ROUNDINGS, SUMMING = 4.0, 1e-4  # what a right head may be off by, relative to the largest logit


def head_arguments(model: Any) -> dict[str, Any]:
    """`weight`, `bias`, `softcap`, `logit_scale` of the model's head, for comal_kernels."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = 1.0
    for name, power in (FACTORS | ODD.get(config.model_type, {})).items():
        scale *= float(getattr(config, name, None) or 1.0) ** power
    return {
        "weight": head.weight,
        "bias": getattr(head, "bias", None),
        "softcap": next((cap for n in CAPS if (cap := getattr(config, n, None))), None),
        "logit_scale": scale,
    }


@torch.inference_mode()
def check_head(model: Any, name: str) -> None:
    """Raise InputError, with the difference seen, for a model whose head is not reproduced.

    A few tokens go through the model and through what training makes of it. Compared is all that
    comes after the layers (final norm, scale, cap, bias), so these are passed over where the model
    lets itself run without, and the head keeps some of its words only.
    """
    where, kind = f"model {name}", type(model).__name__
    if model.get_output_embeddings() is None:
        raise InputError(f"{where}: {kind} has no head over words")
    with _few_words(model.get_output_embeddings()):
        try:
            states, logits = _probe(model)  # (TOKENS, H), (TOKENS, WORDS)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: {kind} does not run on token ids alone ({type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), '')})"
            ) from error
        if not bool(logits.isfinite().all()):
            raise InputError(
                f"{where}: logits of {kind} are not finite; its weights are damaged, or too large "
                f"for model.dtype={str(model.dtype).removeprefix('torch.')}"
            )
        words = torch.arange(logits.shape[1], device=logits.device)
        ours = linear_logprob(
            states.repeat_interleave(len(words), 0),
            target=words.repeat(len(states)),
            backend="torch",  # the model is asked about, not the kernels
            **head_arguments(model),
        )
    wanted = logits.log_softmax(-1).flatten()
    off = (ours.double() - wanted).abs()
    slack = ROUNDINGS * torch.finfo(model.dtype).eps + SUMMING
    if bool((off <= slack * (1 + logits.abs().max())).all()):
        return
    at = int(off.nan_to_num(torch.inf).argmax())
    raise InputError(
        f"{where}: the head of {kind} is not reproduced: log-prob {ours[at]:.5g} instead of "
        f"{wanted[at]:.5g}; between its hidden states and its logits comes something that "
        "comal_fast/model/head.py does not know"
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
        setattr(head, name, torch.nn.Parameter(few, requires_grad=False))
    try:
        yield
    finally:
        for name, parameter in own.items():
            setattr(head, name, parameter)


@contextmanager
def _no_layers(model: Any) -> Iterator[None]:
    """Within the block the lists of decoder layers are empty."""
    lists = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList)
        and any(isinstance(layer, GradientCheckpointingLayer) for layer in child)
    ]
    with ExitStack() as undo:
        for parent, name, child in lists:
            undo.callback(setattr, parent, name, child)
            setattr(parent, name, torch.nn.ModuleList())
        yield
