"""safetensors files written one tensor at a time, so that no more than that one is in memory.

The format: the header's length in 8 bytes, little endian; the header, JSON with each tensor's type,
shape and place; the tensors' bytes. https://github.com/huggingface/safetensors#format
"""

import json

import torch

TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# readers map the file: a tensor must begin where its type may, so wide types come first
ALIGNMENT = 8


def layout_of(tensors):
    """Return {name: (dtype, shape)} of what has both, in the order in which a file holds them."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered}


def write_tensors(write, layout, tensors):
    """Pass a file's bytes to `write(data)`.

    layout: of layout_of; tensors: one for each of its names, in its order, on any device.
    """
    write(_header(layout))
    for (name, (dtype, shape)), tensor in zip(layout.items(), tensors, strict=True):
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), name
        write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(layout):
    entries, place = {}, 0
    for name, (dtype, shape) in layout.items():
        end = place + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": TYPES[dtype], "shape": [*shape], "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
