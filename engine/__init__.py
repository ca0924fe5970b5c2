"""Encoders, training step, checkpoints, evaluation and the command line of RET-CLIP."""
