"""Log sinks: who else is told what a run measures. metrics.jsonl needs none.

`logging: [tensorboard, wandb]` names those of `sinks/`; a plugin registers one of its own.
"""

from comal_fast.sinks.follow import following, register

__all__ = ["following", "register"]
