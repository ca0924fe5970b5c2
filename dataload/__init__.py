"""Manifests, shards, decoded batches and tokenizers: photographs and reports become tensors."""
