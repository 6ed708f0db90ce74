"""From sequences or padded batches to what the losses take: rows without padding."""

from comal_kernels.packing.bins import fill_bins
from comal_kernels.packing.collator import PreferenceCollator
from comal_kernels.packing.responses import pack_responses
from comal_kernels.packing.sequences import Packed, PromptResponse, pack, pack_prompts

__all__ = [
    "Packed",
    "PreferenceCollator",
    "PromptResponse",
    "fill_bins",
    "pack",
    "pack_prompts",
    "pack_responses",
]
