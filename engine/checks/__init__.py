"""The checks that ``--check`` runs before a training."""
