"""Optional parts that a GPU machine may have: each is used once there, or named as missing.

    python -m bench.gpu_probes flash-attn

Prints one line. Exit status 0: it works; 77: it is not installed; else it is there and fails.
"""

import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path

# what test suites exit with where they skip; pytest has no such status of its own
MISSING = 77
# what is imported first, by probe
PACKAGES = {"flash-attn": "flash_attn", "DALI GPU decode": "nvidia.dali", "DeepSpeed": "deepspeed"}


def flash_attn() -> str:
    """Run flash-attn on a few rows and hold it against torch's attention."""
    import torch
    import torch.nn.functional as F
    from flash_attn import flash_attn_func

    shape = (2, 64, 4, 32)
    query, key, value = (torch.randn(shape, device="cuda").half() for _ in range(3))
    found = flash_attn_func(query, key, value)
    heads_first = (part.transpose(1, 2).float() for part in (query, key, value))
    wanted = F.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    off = (found.float() - wanted).abs().max().item()
    # two roundings of half precision at values near 1
    if not off < 1e-2:
        raise RuntimeError(f"flash-attn is off torch's attention by {off:.1e}")
    return f"{importlib.metadata.version('flash-attn')}, off torch's attention by {off:.0e}"


def dali_decode() -> str:
    """Decode two rendered photographs on the GPU, and on the CPU beside it."""
    import numpy as np
    import torch
    from nvidia.dali import fn, pipeline_def

    from dataload.synthetic import make_cohort
    from engine.jpeg_engines import jpeg_engines

    with tempfile.TemporaryDirectory() as folder:
        make_cohort(Path(folder), patients=2, workers=1)
        files = [path.read_bytes() for path in sorted(Path(folder).glob("photos/*.jpg"))[:2]]

    @pipeline_def(batch_size=len(files), num_threads=2, device_id=0)
    def decoding(device):
        encoded = fn.external_source(
            lambda: [np.frombuffer(file, dtype=np.uint8) for file in files], batch=True
        )
        return fn.decoders.image(encoded, device=device, jpeg_fancy_upsampling=True)

    images = []
    for device in ("mixed", "cpu"):
        (found,) = decoding(device).run()
        images.append([np.asarray(one.as_cpu()) for one in found])
    off = max(np.abs(gpu.astype(int) - cpu).max() for gpu, cpu in zip(*images, strict=True))
    engines = jpeg_engines(torch.device("cuda", 0)) or {"engines": "unknown number of"}
    version = importlib.metadata.version(_dali())
    return f"{version}, off the CPU's by {off} of 255, {engines['engines']} JPEG engines"


def _dali():
    names = importlib.metadata.packages_distributions()["nvidia"]
    return next(name for name in names if name.startswith("nvidia-dali"))


def deepspeed() -> str:
    """Import DeepSpeed; its own start is part of the tests."""
    import deepspeed

    return deepspeed.__version__


PROBES = {"flash-attn": flash_attn, "DALI GPU decode": dali_decode, "DeepSpeed": deepspeed}


def installed(name: str) -> bool:
    """Return whether a probe's package can be found, without importing all of it."""
    try:
        return importlib.util.find_spec(PACKAGES[name]) is not None
    except ModuleNotFoundError:
        # the folder that it lies in is not there either
        return False


def main(argv=None) -> int:
    """Run one probe by its name; return the exit status."""
    (name,) = sys.argv[1:] if argv is None else argv
    if not installed(name):
        print("not installed")
        return MISSING
    print(PROBES[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
