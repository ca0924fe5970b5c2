"""What the core does without the training extra: run by test_core.py in a process of its own.

    python tests/core_only.py FOLDER [--hide]

`--hide` makes this process meet what Linux with the whole installation has and others lack: modules
of the training extra and of POSIX cannot be imported, calls that Windows has not are gone. Prints
the names of the training extra's packages that were importable, which should be none.
"""

import importlib.abc
import importlib.util
import os
import runpy
import sys
from pathlib import Path

TRAINING = ("triton", "deepspeed", "nvidia", "tensorboard")
POSIX = ("fcntl", "resource", "termios", "pwd", "grp")
POSIX_CALLS = ("pread", "sched_getaffinity", "O_CLOEXEC", "O_DIRECTORY", "fork", "getuid")


class Absent(importlib.abc.MetaPathFinder):
    """Finds nothing of the hidden modules, before others do."""

    def find_spec(self, name, path=None, target=None):
        """Raise ModuleNotFoundError for a hidden module; leave the others to other finders."""
        if name.partition(".")[0] in (*TRAINING, *POSIX):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide():
    """Hide from this process what other systems and the core alone lack."""
    # libraries choose by platform when they are imported; ours by what is there when it is needed
    import multiprocessing.util  # noqa: F401

    import matplotlib  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401

    for name in [*sys.modules]:
        if name.partition(".")[0] in (*TRAINING, *POSIX):
            del sys.modules[name]
    sys.meta_path.insert(0, Absent())
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: (
        None if name in (*TRAINING, *POSIX) else find(name, package)
    )
    for name in POSIX_CALLS:
        delattr(os, name)
    # Windows has it; here the file must be removed by hand
    os.O_TEMPORARY = 0


def use_model(folder):
    """Build shards, embed, search, classify and evaluate with a tiny model, by `retclip`."""
    from tiny_cohort import write_tiny_cohort
    from tiny_trained import write_tiny_trained

    from engine.cli import main

    manifest = write_tiny_cohort(folder / "cohort", patients=6)
    model = write_tiny_trained(folder / "model")
    features = folder / "features.npy"
    photograph = next(manifest.parent.rglob("*.jpg"))
    for words in (
        ["manifest", "check", manifest],
        ["shards", "build", manifest, folder / "shards", "--workers", 1],
        ["embed", manifest, "--model", model, "--out", features],
        ["search", "glaucoma", "--index", features, "--model", model],
        ["classify", photograph, "--model", model],
    ):
        assert main([str(word) for word in words]) == 0, words


def compute_loss():
    """Import kernels and differentiate the loss."""
    import torch

    from kernels import tripartite_loss

    image, text = torch.nn.functional.normalize(torch.randn(2, 3, 4, 16), dim=-1)
    loss = tripartite_loss(image.requires_grad_(), text, torch.full((3,), 10.0))
    loss.total.backward()
    assert image.grad.isfinite().all()


def train(folder):
    """Start the demo and training, which must end with status 2 and a line."""
    from engine.cli import main

    assert main(["demo", "--output", str(folder / "run")]) == 2 and not (folder / "run").exists()
    script = Path(__file__).parents[1] / "engine" / "train.py"
    sys.argv = [str(script), "--config", str(folder / "model" / "config.yaml")]
    sys.argv += ["--data", str(folder / "shards" / "train"), "--output", str(folder / "run")]
    sys.argv += ["--tokenizer", str(folder / "model" / "tokenizer.model")]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        assert ended.code == 2 and not (folder / "run").exists(), ended.code


def main(folder, *options):
    """Run everything in `folder`."""
    folder = Path(folder)
    if options:
        hide()
    compute_loss()
    use_model(folder)
    train(folder)
    present = [name for name in TRAINING if importlib.util.find_spec(name) is not None]
    print("training packages:", present)


if __name__ == "__main__":
    # the repository, before tests/ where this script lies
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(*sys.argv[1:])
