"""TRL with this library's losses: `ProxTrainer` in place of `DPOTrainer`, `fuse_grpo` for RL."""

from comal_kernels.integrations.trl.version import known_trl

known_trl()

from comal_kernels.integrations.trl.config import ProxConfig  # noqa: E402
from comal_kernels.integrations.trl.grpo import fuse_grpo  # noqa: E402
from comal_kernels.integrations.trl.trainer import ProxTrainer  # noqa: E402
from comal_kernels.packing.collator import PreferenceCollator  # noqa: E402

__all__ = ["PreferenceCollator", "ProxConfig", "ProxTrainer", "fuse_grpo"]
