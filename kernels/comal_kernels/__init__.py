"""Exact log-probs and prox losses from hidden states and the head weight, without T x V logits.

Depends on torch and numpy; triton is imported by the triton backend alone, on its first use.
"""

from comal_kernels.linear_logprob.api import LogprobOutput, linear_logprob
from comal_kernels.packing import pack_responses
from comal_kernels.prox import PROX, register
from comal_kernels.prox_loss.api import ProxOutput, prox_loss
from comal_kernels.row import Hyper, Prox, Terms

__version__ = "0.2.0"
__all__ = [
    "PROX",
    "Hyper",
    "LogprobOutput",
    "Prox",
    "ProxOutput",
    "Terms",
    "linear_logprob",
    "pack_responses",
    "prox_loss",
    "register",
]
