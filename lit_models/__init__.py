"""LightningModules. A config chooses a model by the name of its file."""
