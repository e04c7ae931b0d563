"""The machine behind `train.py`: everything that is not a model, a dataset or a callback."""

from engine.memory import keep_freed_memory
from engine.threads import limit_spinning

# here, because every command imports this package before torch
limit_spinning()
keep_freed_memory()
