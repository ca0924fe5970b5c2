"""A warning where Hugging Face's `kernels` is installed too: one folder, two owners.

Both distributions put their files into a package of this name, and neither can refuse to be
installed over the other. What they did to each other `retclip doctor` finds.
"""

import os
import warnings
from importlib import metadata

NEIGHBOUR = "kernels"
WAY_OUT = (
    "keep one of them in an environment: `pip uninstall kernels`, then "
    "`pip install --force-reinstall --no-deps retclip-engine`, as the first takes files of both"
)


def warn_of_neighbour():
    """Warn where a distribution named kernels is installed, which is not this engine's."""
    # the ranks of one machine share their environment
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        version = metadata.version(NEIGHBOUR)
    except metadata.PackageNotFoundError:
        return
    warnings.warn(
        "the package `kernels` has two owners here, retclip-engine and Hugging Face's kernels "
        f"{version}; {WAY_OUT}; `retclip doctor` names the files that were overwritten",
        # whoever imports the package
        stacklevel=3,
    )
