"""The language of experiments: YAML and ``key=value``, checked before anything heavy is imported.

A leaf of the project: it imports no torch, no Lightning and no other package of ours, so that ``--help`` and every user
error are answered at once.
"""

from configs.command_line import parse
from configs.config import Config
from configs.loading import load_config
from configs.nodes import ConfigError
from configs.run_folder import close_run_folder, discard, open_run_folder, rank

__all__ = ["Config", "ConfigError", "close_run_folder", "discard", "load_config", "open_run_folder", "parse", "rank"]
