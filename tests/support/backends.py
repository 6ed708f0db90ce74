"""What the loss library's tests run on: (backend, dtype), for the fixture `backend`."""

import torch

BACKENDS = [
    ("torch", torch.float64),
    ("torch", torch.float32),
    ("torch", torch.bfloat16),
    ("torch", torch.float16),
    ("triton", torch.float32),
    ("triton", torch.float16),
    ("triton softened", torch.float32),
    ("triton", torch.bfloat16),
    ("triton softened", torch.bfloat16),
]
