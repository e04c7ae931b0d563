"""What models are built from: the BERT encoder, metrics, Muon, sequences."""
