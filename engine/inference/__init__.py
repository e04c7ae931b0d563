"""What comes after training: load the model of a run, predict and evaluate."""
