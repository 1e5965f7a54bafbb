"""From checkpoints to label sets: metrics, decoders, predictions, ensembles, submissions."""
