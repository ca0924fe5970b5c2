"""Every implementation that the loss benchmark compares, by name, built when it is asked for.

Others' packages are no dependencies of ours: one that is not installed is a row that says so. Each
was written against the source of the version named in its `checked`; units are those of
2 B^2 D floating-point operations per level for forward and backward together, 4 at best where
nothing of size B^2 is kept.

Shapes: K levels, B patients, D features.
"""

import contextlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.baselines import (
    both_ways,
    by_level,
    checkpoint_loss,
    eager_loss,
    under_autocast,
    with_scaled_gradients,
)
from kernels import tripartite_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a builder may need to know: `scale` is the value of all logit scales."""

    scale: float
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def half(self):
        """The 16-bit dtype for implementations that take no other: bfloat16 unless fed float16."""
        return torch.float16 if self.dtype == torch.float16 else torch.bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One implementation; `build` returns its loss, `around` what must hold in backward, too."""

    name: str
    build: Callable[[Setting], Callable]
    # what it is and what it lacks, for the table's foot
    about: str
    # distribution to install, and the version whose source the call was written against
    package: str | None = None
    checked: str | None = None
    license: str | None = None
    around: Callable = contextlib.nullcontext
    scale_gradient: bool = True
    approximate: bool = False
    # holds logits of B x B
    quadratic: bool = False
    # launches only what a CUDA graph can hold: no host synchronisation
    capturable: bool = True


def built(peer, setting):
    """Return (loss, None), or (None, one line that says why it cannot be had)."""
    try:
        return peer.build(setting), None
    except ModuleNotFoundError as error:
        ours = peer.package is None or importlib.util.find_spec(_module(peer)) is not None
        return None, first_line(error) if ours else f"not installed: pip install {peer.package}"
    # whatever another's package raises at import becomes its row
    except Exception as error:
        return None, first_line(error)


def first_line(error):
    """The kind of an exception and the first line of what it says."""
    if isinstance(error, torch.OutOfMemoryError):
        return "OutOfMemoryError"
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:200].removesuffix(": ")


def _module(peer):
    return {"open-clip-torch": "open_clip"}.get(peer.package, peer.package.replace("-", "_"))


def _ours(backend):
    def build(setting):
        return lambda *inputs: tripartite_loss(*inputs, backend=backend).total

    return build


def _gemm_override():
    from kernels import tuning

    return tuning.override(product="gemm")


def _chunked_cublas(setting):
    # says that this version has no such table before anything runs
    import kernels.tuning  # noqa: F401

    return _ours("triton")(setting)


def _compiled(loss):
    return lambda setting: torch.compile(loss)


def _open_clip(setting):
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    # the file alone: the package imports torchvision and timm, which its loss does not use
    path = Path(spec.submodule_search_locations[0]) / "loss.py"
    return by_level(load(path, "ClipLoss")())


def _open_clip_mixed(setting):
    return under_autocast(_open_clip(setting), torch.bfloat16)


def _memeff(setting):
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(
        temperature=1 / setting.scale, normalized_inputs=True, stable=False
    )
    return by_level(lambda image, text, scale: loss(image.to(setting.half), text.to(setting.half)))


def _inf_cl(setting):
    from inf_cl import cal_flash_loss

    # its blocks take a power of two that divides the features, 256 at most
    head = math.gcd(setting.width, 256)

    def level(image, text, scale):
        ways = ((image, text), (text, image))
        terms = [cal_flash_loss(*way, scale=scale, head_dim=head).mean() for way in ways]
        return (terms[0] + terms[1]) / 2

    return by_level(level)


def _cut_cross_entropy(**options):
    def build(setting):
        from cut_cross_entropy import linear_cross_entropy

        return both_ways(
            lambda rows, columns, own: linear_cross_entropy(rows, columns, own, **options),
            setting.half,
        )

    return build


def _liger(setting):
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
    return both_ways(lambda rows, columns, own: loss(columns, rows, own), setting.half)


def _torch_linear(setting):
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        raise LookupError(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    half = setting.half if setting.device.type == "cuda" else None
    return both_ways(lambda rows, columns, own: function(rows, columns, own, options=options), half)


def _plain(loss):
    return lambda setting: loss


_MIXED = {
    name: under_autocast(eager_loss, dtype)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
}
_CCE = {"package": "cut-cross-entropy", "checked": "25.1.1", "license": "Apple (permissive)"}
_OPEN_CLIP = {"package": "open-clip-torch", "checked": "3.3.0", "license": "MIT"}

_PEERS = (
    Peer(name="triton", build=_ours("triton"), about="ours, fused"),
    Peer(name="torch", build=_ours("torch"), about="ours, bounded memory on any device"),
    Peer(
        name="chunked-cublas",
        build=_chunked_cublas,
        around=_gemm_override,
        about="ours with every product a cuBLAS call and Triton between them",
    ),
    Peer(
        name="eager",
        build=_plain(eager_loss),
        quadratic=True,
        about="PyTorch's operators in the dtype of the features",
    ),
    Peer(
        name="eager-amp-bf16",
        build=_plain(_MIXED["bf16"]),
        quadratic=True,
        about="eager under autocast",
    ),
    Peer(
        name="eager-amp-fp16",
        build=_plain(with_scaled_gradients(_MIXED["fp16"])),
        quadratic=True,
        about="eager under autocast, gradients scaled",
    ),
    Peer(
        name="compiled",
        build=_compiled(eager_loss),
        quadratic=True,
        about="torch.compile of eager",
    ),
    Peer(
        name="compiled-amp-bf16",
        build=_compiled(_MIXED["bf16"]),
        quadratic=True,
        about="torch.compile of eager under autocast",
    ),
    Peer(
        name="checkpoint-chunked",
        build=_plain(checkpoint_loss),
        about="torch.utils.checkpoint over blocks of 2,048 rows, both ways; 8 units",
    ),
    Peer(
        name="open-clip",
        build=_open_clip,
        quadratic=True,
        about="ClipLoss of one process, which makes both logit matrices; 6 units",
        **_OPEN_CLIP,
    ),
    Peer(
        name="open-clip-amp-bf16",
        build=_open_clip_mixed,
        quadratic=True,
        about="ClipLoss under autocast",
        **_OPEN_CLIP,
    ),
    Peer(
        name="memeff",
        build=_memeff,
        package="memeff",
        checked="0.3.1",
        license="Apache-2.0",
        scale_gradient=False,
        about="stable=False, 16-bit features; no gradient of the scale, a Python number; 5 units",
    ),
    Peer(
        name="inf-cl",
        build=_inf_cl,
        package="inf-cl",
        checked="1.2.1",
        license="MIT",
        about="cal_flash_loss both ways, TF32; 10 units",
    ),
    Peer(
        name="cce-exact",
        build=_cut_cross_entropy(filter_eps=None),
        about="linear_cross_entropy(filter_eps=None) both ways, 16-bit features; 8 units",
        # finds the valid targets by nonzero(), which waits for the GPU
        capturable=False,
        **_CCE,
    ),
    Peer(
        name="cce-default",
        build=_cut_cross_entropy(),
        approximate=True,
        about="approximate: leaves out blocks of small gradients, here most negatives",
        capturable=False,
        **_CCE,
    ),
    Peer(
        name="liger",
        build=_liger,
        package="liger-kernel",
        checked="0.8.5",
        license="BSD-2-Clause",
        # counts the targets by .item()
        capturable=False,
        about="LigerFusedLinearCrossEntropyLoss(accum_dtype=float32) both ways; gradients made in "
        "forward; 6 units",
    ),
    Peer(
        name="torch-linear-ce",
        build=_torch_linear,
        about="PyTorch's chunked linear_cross_entropy both ways, 16-bit features on a GPU",
    ),
)

REGISTRY = {peer.name: peer for peer in _PEERS}
# without a GPU: those of the README's table; Triton would run in its interpreter
ON_CPU = ("eager", "torch")


def load(path, name):
    """Return attribute `name` of the Python file at `path`.

    Raises ValueError if there is no such file or no such attribute.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name}")
    return getattr(module, name)


def from_file(where):
    """Return the Peer of "file.py:function", any callable of image, text and logit_scale.

    Raises ValueError if there is no such function.
    """
    path, _, name = where.rpartition(":")
    if not path:
        raise ValueError(f"--impl is {where!r}; expected file.py:function")
    loss = load(path, name)
    return Peer(name=where, build=_plain(loss), about="given by --impl")
