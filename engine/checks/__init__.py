"""Checks of data and model for ``--check``."""
