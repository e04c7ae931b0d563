"""Checks of data and model that run before a training with ``--check``."""
