"""The language of experiments: YAML and ``key=value``, checked before anything heavy is imported.

A leaf of the project: it imports no torch, no Lightning and no other package of ours, so that ``--help`` and every user
error are answered at once.
"""

from configs.command_line import parse
from configs.config import Config
from configs.loading import load_config
from configs.nodes import ConfigError
from configs.run_folder import rank, run_folder

__all__ = ["Config", "ConfigError", "load_config", "parse", "rank", "run_folder"]
