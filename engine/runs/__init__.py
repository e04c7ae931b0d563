"""The folder of a run: how it is created, locked, resumed, listed and compared."""
