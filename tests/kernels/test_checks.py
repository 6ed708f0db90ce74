"""Each wrong argument is a ValueError that names it, before any work is done."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import comal_kernels
from comal_kernels import execution, linear_logprob, prox_loss
from comal_kernels.execution import BACKENDS, Execution

T, H, V, S, P = 10, 4, 7, 4, 3


def base() -> dict[str, object]:
    return {
        "hidden": torch.randn(T, H),
        "weight": torch.randn(V, H),
        "target": torch.arange(T) % V,
        "cu_seqlens": torch.tensor([0, 3, 5, 8, 10], dtype=torch.int32),
        "loss": "inpo",
        "chosen": torch.tensor([0, 1, 2]),
        "rejected": torch.tensor([1, 2, 3]),
        "ref_logp": torch.zeros(S),
        "last_logp": torch.zeros(S),
        "eta": 0.1,
        "tau_eta_ratio": 0.3,
    }


PER_RESPONSE = {
    "loss": "dro",
    "rejected": None,
    "last_logp": None,
    "eta": None,
    "tau_eta_ratio": None,
    "tau": 0.1,
    "reward": torch.zeros(S),
    "group": torch.zeros(S, dtype=torch.int64),
}
HEAD = {
    "hidden shape": ({"hidden": torch.randn(T)}, "hidden"),
    "hidden type": ({"hidden": [1.0]}, "hidden"),
    "hidden dtype": ({"hidden": torch.ones(T, H, dtype=torch.int64)}, "hidden"),
    "weight width": ({"weight": torch.randn(V, H + 1)}, "weight"),
    "weight dtype": ({"weight": torch.ones(V, H, dtype=torch.int64)}, "weight"),
    "weight device": ({"weight": torch.empty(V, H, device="meta")}, "weight"),
    "weight empty": ({"weight": torch.randn(0, H)}, "weight"),
    "bias shape": ({"bias": torch.randn(V + 1)}, "bias"),
    "bias dtype": ({"bias": torch.ones(V, dtype=torch.int64)}, "bias"),
    "target length": ({"target": torch.zeros(T - 1, dtype=torch.int64)}, "target"),
    "target dtype": ({"target": torch.zeros(T)}, "target"),
    "target too large": ({"target": torch.full((T,), V)}, "target"),
    "target negative": ({"target": torch.full((T,), -1)}, "target"),
    "cu start": ({"cu_seqlens": torch.tensor([1, 3, 5, 8, T])}, "cu_seqlens"),
    "cu end": ({"cu_seqlens": torch.tensor([0, 3, 5, 8, T - 1])}, "cu_seqlens"),
    "cu falls": ({"cu_seqlens": torch.tensor([0, 5, 3, 8, T])}, "cu_seqlens"),
    "cu dtype": ({"cu_seqlens": torch.tensor([0.0, T])}, "cu_seqlens"),
    "cu empty": ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, "cu_seqlens"),
    "softcap zero": ({"softcap": 0.0}, "softcap"),
    "logit_scale": ({"logit_scale": float("inf")}, "logit_scale"),
    "temperature": ({"temperature": 0}, "temperature"),
    "temperature type": ({"temperature": "1"}, "temperature"),
    "ignore_index": ({"ignore_index": 1.5}, "ignore_index"),
    "workspace": ({"workspace": 0}, "workspace"),
    "backend": ({"backend": "cuda"}, "backend"),
}
LOSS = {
    "loss": ({"loss": "kto"}, "loss"),
    "chosen range": ({"chosen": torch.tensor([0, 1, S])}, "chosen"),
    "chosen dtype": ({"chosen": torch.zeros(P)}, "chosen"),
    "chosen empty": ({"chosen": torch.zeros(0, dtype=torch.int64)}, "chosen"),
    "rejected length": ({"rejected": torch.tensor([1, 2])}, "rejected"),
    "rejected range": ({"rejected": torch.tensor([1, 2, -1])}, "rejected"),
    "rejected missing": ({"rejected": None}, "rejected"),
    "rejected is chosen": ({"rejected": torch.tensor([0, 2, 3])}, "rejected"),
    "rejected unused": ({**PER_RESPONSE, "rejected": torch.tensor([1, 2, 3])}, "rejected"),
    "ref missing": ({"ref_logp": None}, "ref_logp"),
    "ref shape": ({"ref_logp": torch.zeros(S + 1)}, "ref_logp"),
    "ref dtype": ({"ref_logp": torch.zeros(S, dtype=torch.int64)}, "ref_logp"),
    "ref twice": (
        {"ref_hidden": torch.randn(T, H), "ref_weight": torch.randn(V, H)},
        "ref_logp",
    ),
    "ref alone": ({"ref_logp": None, "ref_hidden": torch.randn(T, H)}, "ref_hidden"),
    "ref head alone": ({"ref_logp": None, "ref_weight": torch.randn(V, H)}, "ref_weight"),
    "ref rows": (
        {"ref_logp": None, "ref_hidden": torch.randn(T + 1, H), "ref_weight": torch.randn(V, H)},
        "ref_hidden",
    ),
    "ref vocabulary": (
        {"ref_logp": None, "ref_hidden": torch.randn(T, H), "ref_weight": torch.randn(V + 1, H)},
        "ref_weight",
    ),
    "ref bias": (
        {
            "ref_logp": None,
            "ref_hidden": torch.randn(T, H),
            "ref_weight": torch.randn(V, H),
            "bias": torch.randn(V),
        },
        "ref_bias",
    ),
    "ref bias alone": ({"ref_bias": torch.randn(V)}, "ref_bias"),
    "last missing": ({"last_logp": None}, "last_logp"),
    "last unused": ({"loss": "ipo", "tau_eta_ratio": None}, "last_logp"),
    "reward unused": ({"reward": torch.zeros(S)}, "reward"),
    "reward missing": ({**PER_RESPONSE, "reward": None}, "reward"),
    "preference range": ({"preference": torch.tensor([0.5, 1.2, 0.0])}, "preference"),
    "preference shape": ({"preference": torch.zeros(S)}, "preference"),
    "preference unused": ({**PER_RESPONSE, "preference": torch.zeros(P)}, "preference"),
    "pair_weight": ({"pair_weight": torch.zeros(S)}, "pair_weight"),
    "eta zero": ({"eta": 0.0}, "eta"),
    "eta negative": ({"eta": -1.0}, "eta"),
    "eta nan": ({"eta": float("nan")}, "eta"),
    "eta missing": ({"eta": None}, "eta"),
    "ratio above 1": ({"tau_eta_ratio": 1.01}, "tau_eta_ratio"),
    "ratio below 0": ({"tau_eta_ratio": -0.01}, "tau_eta_ratio"),
    "unknown": ({"beta": 0.1}, "beta"),
    "group unused": ({"group": torch.zeros(S, dtype=torch.int64)}, "group"),
    "group missing": ({**PER_RESPONSE, "group": None}, "group"),
    "group shape": ({**PER_RESPONSE, "group": torch.zeros(P, dtype=torch.int64)}, "group"),
    "group and value": ({**PER_RESPONSE, "value": torch.zeros(S)}, "group"),
    "value shape": ({**PER_RESPONSE, "group": None, "value": torch.zeros(P)}, "value"),
    "value grad": (
        {**PER_RESPONSE, "group": None, "value": torch.zeros(S, requires_grad=True)},
        "value",
    ),
}
KEPT_NONE = {"eta"}  # refused as a value; elsewhere None means: left out


def call(change: dict[str, object]) -> object:
    args = {**base(), **change}
    if "tau" in change:  # a per-response loss has neither of the pair's hyperparameters
        args.pop("eta")
    args = {k: v for k, v in args.items() if v is not None or k in KEPT_NONE}
    return prox_loss(**args)


@pytest.mark.parametrize("case", HEAD)
def test_head_arguments(case) -> None:
    change, name = HEAD[case]
    with pytest.raises(ValueError, match=rf"^{name}: "):
        call(change)
    names = ("hidden", "weight", "target", "cu_seqlens")
    args = {**{k: v for k, v in base().items() if k in names}, **change}
    with pytest.raises(ValueError, match=rf"^{name}: "):
        linear_logprob(**args)


@pytest.mark.parametrize("case", LOSS)
def test_loss_arguments(case) -> None:
    change, name = LOSS[case]
    with pytest.raises(ValueError, match=rf"^{name}\b.*: "):
        call(change)


def test_the_right_arguments_pass() -> None:
    call({})
    call(PER_RESPONSE)
    call({**PER_RESPONSE, "group": None, "value": torch.zeros(S)})


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="dpo, ipo, inpo, sppo, dro, rebel"):
        call({"loss": "INPO"})
    with pytest.raises(ValueError, match="eta, tau_eta_ratio"):
        call({"temp": 1.0})


def test_triton_that_cannot_run(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"^backend: .*CUDA.*TRITON_INTERPRET"):
        call({"backend": "triton"})
    with pytest.raises(ValueError, match="float64"):
        double = {"hidden": torch.randn(T, H).double(), "weight": torch.randn(V, H).double()}
        call({**double, "backend": "triton"})


def test_import_is_light() -> None:
    """Transformers is not imported, triton not needed, nor any GPU looked for."""
    code = (
        "import sys; sys.modules['triton'] = None;"  # importing it fails
        "import torch, comal_kernels;"
        "comal_kernels.linear_logprob(torch.ones(1, 1), torch.ones(2, 1), torch.tensor([0]));"
        "bad = {'transformers', 'comal_fast'} & set(sys.modules);"
        "assert not bad and not torch.cuda.is_initialized(), bad"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(comal_kernels.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BOUNDS = st.lists(st.integers(-2, T + 2), max_size=6)
INDEX = st.lists(st.integers(-1, S), min_size=P, max_size=P)


@settings(max_examples=100, deadline=None)
@given(BOUNDS, INDEX, INDEX, st.floats(-1, 1), st.floats(-0.5, 1.5))
def test_fuzz(bounds, chosen, rejected, eta, ratio) -> None:
    """Whatever comes: a finite result, or a ValueError that begins with an argument's name."""
    change = {
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
        "chosen": torch.tensor(chosen),
        "rejected": torch.tensor(rejected),
        "ref_logp": torch.zeros(max(0, len(bounds) - 1)),
        "last_logp": torch.zeros(max(0, len(bounds) - 1)),
        "eta": eta,
        "tau_eta_ratio": ratio,
    }
    legal = (
        len(bounds) > 0
        and bounds == sorted(bounds)
        and bounds[0] == 0
        and bounds[-1] == T
        and all(0 <= i < len(bounds) - 1 for i in chosen + rejected)
        and all(a != b for a, b in zip(chosen, rejected, strict=True))
        and eta > 0
        and 0 <= ratio <= 1
    )
    if legal:
        assert not call(change).loss.isnan()
        return
    with pytest.raises(ValueError) as caught:
        call(change)
    assert re.match("|".join(change), str(caught.value))


def test_a_loss_scale_is_a_power_of_two() -> None:
    """Any other would round gradients."""
    half = {"hidden": torch.randn(T, H).half(), "weight": torch.randn(V, H).half()}
    half["hidden"].requires_grad_()
    for right in (None, 2.0**16, 0.5):
        assert call({**half, "loss_scale": right}).loss.requires_grad
    for wrong in (3.0, 0.0, -2.0, float("inf"), True):
        with pytest.raises(ValueError, match=r"^loss_scale: "):
            call({**half, "loss_scale": wrong})


class _OnCuda:
    """Stands for states on a GPU that is not here, of which `Execution.resolved` reads these."""

    is_cuda, dtype, device = True, torch.bfloat16, torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "hip", "why"),
    [((9, 0), "6.3", "this torch is built for ROCm"), ((7, 5), None, "and this one has 7.5")],
)
def test_gpus_without_kernels_take_torch(capability, hip, why, monkeypatch) -> None:
    """`auto` falls back; `triton` is refused in one line that says why."""
    monkeypatch.setattr(execution, "triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert Execution("auto").resolved(_OnCuda).backend == "torch"
    with pytest.raises(ValueError, match=f'^backend: "triton" .*{why}; use "torch"$'):
        Execution("triton").resolved(_OnCuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert Execution("auto").resolved(_OnCuda).backend == "triton"


def test_no_gradients_are_filtered_on_cuda(monkeypatch) -> None:
    monkeypatch.setattr(execution, "triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="^grad_filter: .* on CUDA it takes longer .*leave it"):
            Execution(backend, grad_filter=2.0**-12).resolved(_OnCuda)
    assert Execution(grad_filter=2.0**-12).resolved(torch.ones(1)).backend == "torch"
