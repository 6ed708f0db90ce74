"""torch.cuda for a device that is not there: one H100, whose every answer is at hand."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch

from cuda_standin.graphs import CUDAGraph, graph

GIB = 1 << 30
PROPERTIES = SimpleNamespace(
    name="stand-in for an H100",
    major=9,
    minor=0,
    total_memory=79 * GIB,
    multi_processor_count=132,
    L2_cache_size=50 << 20,
    shared_memory_per_block_optin=232448,
    warp_size=32,
)
HERE = torch.device("cuda", 0)


class Event:
    """A moment, which is over."""

    def __init__(self, *given: Any, **named: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class Stream:
    """The one queue, always empty."""

    device, cuda_stream, priority = HERE, 0, 0

    def __init__(self, *given: Any, **named: Any) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        return event or Event()

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


def install() -> None:
    """Answer for torch.cuda."""
    numbers = dict.fromkeys(
        ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0
    )
    answers: dict[str, Any] = {name: _says(value) for name, value in numbers.items()}
    generator = torch.Generator(device="cuda")
    answers |= {
        "is_available": _says(True),
        "is_initialized": _says(True),
        "is_bf16_supported": _says(True),
        "is_current_stream_capturing": _says(False),
        "device_count": _says(1),
        "current_device": _says(0),
        "set_device": _says(None),
        "_lazy_init": _says(None),
        "init": _says(None),
        "empty_cache": _says(None),
        "synchronize": _says(None),
        "_sleep": _says(None),
        "reset_peak_memory_stats": _says(None),
        "set_per_process_memory_fraction": _says(None),
        "memory_stats": _says({}),
        "mem_get_info": _says((78 * GIB, 79 * GIB)),
        "get_device_properties": _says(PROPERTIES),
        "get_device_capability": _says((9, 0)),
        "get_device_name": _says(PROPERTIES.name),
        "get_arch_list": _says(["sm_90"]),
        "manual_seed": generator.manual_seed,
        "manual_seed_all": generator.manual_seed,
        "get_rng_state": lambda device=None: generator.get_state(),
        "set_rng_state": lambda state, device=None: generator.set_state(state),
        "current_stream": _says(Stream()),
        "default_stream": _says(Stream()),
        "stream": lambda stream: contextlib.nullcontext(),
        "device": _Nowhere,
        "device_of": _Nowhere,
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for kernels in ("flash", "mem_efficient", "cudnn"):  # SDPA's on CUDA: plain products are left
        getattr(torch.backends.cuda, f"enable_{kernels}_sdp")(False)
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]


class _Nowhere(contextlib.nullcontext):
    """torch.cuda.device: there is one."""

    def __init__(self, device: Any = None) -> None:
        super().__init__()


def _says(answer: Any) -> Any:
    return lambda *given, **named: answer
