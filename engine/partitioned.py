"""Parameters that ZeRO-3 has cut up among the ranks: built that way, and put together for a while.

Under DeepSpeed's zero.Init a module's parameters are partitioned as soon as it is made, so that no
rank ever holds a whole model that would not fit. What is then read or drawn needs them whole.
"""

import contextlib

from engine.world import deepspeed_config, import_deepspeed


@contextlib.contextmanager
def construction(config, world):
    """Build models inside: cut up from the start where `training.zero_init` says so."""
    if not config.training.zero_init:
        yield
        return
    zero = import_deepspeed().zero
    # fp32 by the dictionary: DeepSpeed 0.19.8 takes a `dtype` of fp32 for bf16 on a CPU
    with zero.Init(config_dict_or_path=deepspeed_config(config, world)):
        yield


@contextlib.contextmanager
def whole(module):
    """Let a module's parameters be read and changed whole; every rank enters, with equal values."""
    cut = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not cut:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(cut, modifier_rank=0):
        yield


def whole_shape(parameter):
    """Return the shape (torch.Size) of a parameter, of which ZeRO-3 leaves an empty tensor."""
    return getattr(parameter, "ds_shape", parameter.shape)
