"""The recipe's data section as keyword arguments of dataload.loader.build_loader."""

import dataclasses

from dataload.augment import Augmentation


def loader_settings(config) -> dict:
    """Return what training and evaluation give build_loader alike: sizes, colours, back end."""
    data = config.data
    return {
        "context_length": data.context_length,
        "image_size": config.model.image_size,
        "interpolation": data.interpolation,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "augmentation": Augmentation(**dataclasses.asdict(data.augmentation)),
        "backend": data.backend,
        "threads": data.threads,
        "cache": data.cache,
        "find_field": data.find_field,
        "hw_decoder_load": data.hw_decoder_load,
    }
