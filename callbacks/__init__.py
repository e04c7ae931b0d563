"""Callbacks. A config selects a callback by the name of its file."""
