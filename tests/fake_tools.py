"""Programs that tests put on the PATH in place of the machine's own."""

import stat


def write_tool(folder, name, script):
    """Write a shell script as the program `name` in `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def write_driver(folder, version):
    """Write an nvidia-smi that shows a GPU with this driver."""
    return write_tool(folder, "nvidia-smi", f"echo {version}")
