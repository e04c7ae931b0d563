"""The machine behind `train.py`: everything that is not a model, a dataset or a callback."""

from engine.threads import limit_spinning

limit_spinning()  # here, because every command imports this package before torch
