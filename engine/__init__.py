"""The machine behind `train.py`: everything that is not a model, a dataset or a callback."""
