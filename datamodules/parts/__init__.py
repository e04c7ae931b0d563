"""What datamodules are built from: batches, augmentation, downloads, text files, tokens."""
