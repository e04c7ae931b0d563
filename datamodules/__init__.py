"""LightningDataModules: one dataset family a file, found by the file's name."""
