"""What torch and nvJPEG say of the GPUs, as one line of JSON: `python -m engine.gpu_facts`.

A program of its own, so that whoever asks outlives a driver that brings the process down.
"""

import json
import sys

import torch

from engine.jpeg_engines import jpeg_engines


def gpu_facts() -> dict:
    """Return torch's CUDA version (None for a CPU build) and a dictionary for each GPU, opened.

    Raises RuntimeError, torch's, where a GPU is seen and cannot be used.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"cuda": torch.version.cuda, "gpus": [_describe(index) for index in range(count)]}


def _describe(index):
    device = torch.device("cuda", index)
    # the first kernel is what a wrong build of torch fails at
    torch.ones(1, device=device).add(1).item()
    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "free_bytes": free,
        "total_bytes": total,
        "jpeg": jpeg_engines(device),
    }


def main() -> int:
    """Print the facts."""
    print(json.dumps(gpu_facts()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
