"""Datamodules. A config selects a datamodule by the name of its file."""
