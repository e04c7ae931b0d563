"""LightningModules: one model family a file, found by the file's name."""
