"""Reads YAML files and ``key=value`` overrides into one checked config. Imports no torch and no Lightning."""
