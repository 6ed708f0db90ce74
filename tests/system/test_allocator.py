"""The GPU's allocator is set for training, and what a user set stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from comal_fast.system import allocator
from comal_fast.system.allocator import configure_cuda_allocator, merge_settings

GROW, EXACT = "expandable_segments:True", "pinned_max_cached_size_mb:16"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings that torch is given, on a machine whose user set nothing."""
    for name in allocator._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    given: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", given.append, raising=False)
    return given


def test_segments_grow_and_pinned_buffers_are_exact(seen: list[str]) -> None:
    configure_cuda_allocator()
    assert seen == [f"{GROW},{EXACT}"]


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("", f"{GROW},{EXACT}"),
        ("expandable_segments:False", f"expandable_segments:False,{EXACT}"),
        (
            "roundup_power2_divisions:[256:1,512:2],pinned_max_cached_size_mb: 4",
            f"roundup_power2_divisions:[256:1,512:2],pinned_max_cached_size_mb: 4,{GROW}",
        ),
        (f"{EXACT}, {GROW}", f"{EXACT}, {GROW}"),
        ("backend:cudaMallocAsync", "backend:cudaMallocAsync"),
    ],
)
def test_a_user_s_own_settings_stay(given, settings, seen, monkeypatch) -> None:
    assert merge_settings(given, (GROW, EXACT)) == settings
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", given)
    configure_cuda_allocator()
    assert seen == ([] if settings == given else [settings])


def test_no_growth_where_it_is_not_supported(seen, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.3")
    configure_cuda_allocator()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(sys, "platform", "win32")
    configure_cuda_allocator()
    assert seen == [EXACT, EXACT]


def test_an_older_torch_goes_without_what_it_does_not_know(seen, monkeypatch) -> None:
    def older(settings: str) -> None:
        if EXACT in settings:
            raise ValueError("Unrecognized key 'pinned_max_cached_size_mb'")
        seen.append(settings)

    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", older)
    configure_cuda_allocator()
    assert seen == [GROW]


def test_torch_takes_the_settings() -> None:
    """The real call, in a process of its own: nothing is raised, with a GPU or without."""
    code = (
        "from comal_fast.system.allocator import configure_cuda_allocator as f; f(); "
        "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    )
    env = {k: v for k, v in os.environ.items() if k not in allocator._VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert GROW in done.stdout and EXACT in done.stdout
