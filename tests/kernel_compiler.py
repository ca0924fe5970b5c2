"""Compile every kernel that the fused loss launches, for a GPU that is not here, and report on it.

    python tests/kernel_compiler.py sm_90

Prints a JSON list with one entry by kernel and variant: registers, spilled bytes, shared memory,
whether tensor core instructions are there, whether wgmma had to be serialised. The launches are
recorded from the loss itself, on the CPU with the architecture's own tiles, so that what is
compiled is what ships. Needs Triton's compiler, no GPU; not under Triton's interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import (
    contrastive,
    contrastive_backward,
    contrastive_features,
    contrastive_forward,
    tuning,
)

KERNELS = {
    "other_sums_kernel": contrastive_forward,
    "online_sums_kernel": contrastive_forward,
    "weights_kernel": contrastive_backward,
    "stored_weights_kernel": contrastive_backward,
    "operand_kernel": contrastive_features,
    "own_cosine_kernel": contrastive_features,
    "gradient_kernel": contrastive_features,
}
TENSOR_CORES = re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma")
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


class Recorder:
    """Stands in for a kernel: notes the arguments of its launches instead of running."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *values, **named: self.launches.append((self.kernel, values, named))


def record_launches(choice, *, masks, same_report, workspace_bytes, dtype=torch.bfloat16):
    """Return (kernel, arguments, named arguments) of one forward and backward, each kernel once."""
    launches = []
    for name, module in KERNELS.items():
        setattr(module, name, Recorder(module.__dict__[name], launches))
    try:
        size, width = 2048 + 3, 512
        features = [torch.zeros(3, size, width, dtype=dtype, requires_grad=True) for _ in "it"]
        scale = torch.ones(3, requires_grad=True)
        options = {"same_report": same_report, "workspace_bytes": workspace_bytes}
        if masks:
            options["present"] = torch.ones(3, size, dtype=torch.bool)
        if same_report != "negative":
            options["report_id"] = torch.zeros(size, dtype=torch.int64)
        with tuning.override(choice):
            contrastive.fused_levels(*features, scale, **options).sum().backward()
    finally:
        for name, module in KERNELS.items():
            setattr(module, name, module.__dict__[name].kernel)
    return list({kernel.__name__: (kernel, *rest) for kernel, *rest in launches}.values())


def describe_arguments(kernel, values, named):
    """Return Triton's signature, constants and attributes for a launch, and its options."""
    bound = dict(zip(kernel.arg_names, values, strict=False)) | named
    options = {key: bound.pop(key) for key in ("num_warps", "num_stages") if key in bound}
    signature, constants, attributes = {}, {}, {}
    for place, param in enumerate(kernel.params):
        value = bound[param.name]
        if param.is_constexpr or value is None:
            signature[param.name], constants[(place,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[param.name] = f"*{TYPES[value.dtype]}"
            divisible = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[param.name], divisible = "fp32", False
        else:
            signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
            divisible = value % 16 == 0 and not param.do_not_specialize
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes, options


def compile_launch(kernel, values, named, capability):
    """Compile one launch for a compute capability (90 for sm_90); return its report."""
    signature, constants, attributes, options = describe_arguments(kernel, values, named)
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assembly = made.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "shared_bytes": made.metadata.shared,
        "tensor_cores": bool(TENSOR_CORES.search(assembly)),
        **_assemble(assembly, capability),
    }


def _assemble(assembly, capability):
    """What ptxas says of PTX: registers by thread, spilled bytes, serialised wgmma."""
    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(assembly)
        words = [
            tool,
            "-v",
            f"--gpu-name=sm_{capability}{suffix}",
            path,
            "-o",
            path.with_suffix(".o"),
        ]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", done.stderr)]
    return {
        "registers": max(int(count) for count in re.findall(r"Used (\d+) registers", done.stderr)),
        "spilled_bytes": sum(spills),
        "serialised": "serializ" in done.stderr,
    }


VARIANTS = {
    "plain": {"masks": False, "same_report": "negative", "workspace_bytes": 512 << 20},
    "recomputed": {"masks": False, "same_report": "negative", "workspace_bytes": 16 << 20},
    "masked": {"masks": True, "same_report": "ignore", "workspace_bytes": 16 << 20},
    "positive": {"masks": True, "same_report": "positive", "workspace_bytes": 512 << 20},
}


def report(capability, choice, variants=tuple(VARIANTS)):
    """Return the reports of every kernel of these variants, each distinct launch once."""
    rows = []
    for variant in variants:
        for kernel, values, named in record_launches(choice, **VARIANTS[variant]):
            row = compile_launch(kernel, values, named, capability)
            rows.append({"architecture": f"sm_{capability}", "variant": variant, **row})
    return rows


def main(arguments):
    """Print the reports of one architecture with its table's tiles, or another Choice as JSON."""
    name, *choice = arguments
    chosen = tuning.from_dict(json.loads(choice[0])) if choice else tuning.tables()[name]
    print(json.dumps(report(int(name.removeprefix("sm_")), chosen)))


if __name__ == "__main__":
    main(sys.argv[1:])
