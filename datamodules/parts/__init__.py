"""Batches, augmentation, downloads, text files and tokens for datamodules."""
