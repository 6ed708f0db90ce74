"""Configuration: the tree, its loading, its rules."""

from comal_fast.config.load import known_keys, load_config, load_saved, to_dict
from comal_fast.config.schema import Config

__all__ = ["Config", "known_keys", "load_config", "load_saved", "to_dict"]
