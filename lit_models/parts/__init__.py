"""Building blocks of models: the BERT encoder, metrics, Muon and layers for sequences."""
