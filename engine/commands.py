"""How a command ends: exit status 0, or 2 with one clear message for what its user can mend."""

import importlib.util
import os
import sys
import traceback
from pathlib import Path

import typer

from dataload.owner_only import owner_only

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "dataload", "kernels", "bench")
# what the extra `train` of pyproject.toml brings; the core does without
TRAINING_PACKAGES = ("deepspeed", "nvidia", "tensorboard", "triton")
# characters of an error's line
LONGEST = 1000
# typer carries a click of its own: the base class of its errors is found from one of them
_UsageProblem = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def run_command(app: typer.Typer, argv=None) -> int:
    """Run a typer application on `argv` and return the exit status.

    What it writes is readable by its owner alone. Errors that a user can mend are printed as
    `error: ...`, without a traceback, status 2. Those are ValueErrors that this project raises (its
    rule for user errors) and the system's refusals, such as a full disk. A ValueError from inside a
    library is a defect of ours and keeps its traceback.
    """
    command = typer.main.get_command(app)
    try:
        with owner_only():
            result = command.main(argv, standalone_mode=False)
    except typer.Abort:
        return 130
    except _UsageProblem as error:
        error.show()
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_PACKAGES:
            raise
        _say(f"this needs {package}, for training on Linux: pip install 'retclip-engine[train]'")
        return 2
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _raised_here(error):
            raise
        _say(str(error))
        return 2
    return result if isinstance(result, int) else 0


def _say(message):
    # every rank meets the same refusal; one of them says so
    if os.environ.get("RANK", "0") == "0":
        for line in message.splitlines():
            if len(line) > LONGEST:
                # what a damaged file holds may be long; what helps stands at the end
                line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
            print(f"error: {line}", file=sys.stderr)


def _raised_here(error):
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).is_relative_to(ROOT / name) for name in PACKAGES)


def warn(line):
    """Tell the user something that stops nothing."""
    print(f"warning: {line}", file=sys.stderr)


def require_training():
    """Raise ModuleNotFoundError, which `run_command` explains, where training cannot be started."""
    for name in ("deepspeed", "tensorboard"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load_model(model):
    """Return (TrainedModel, device) of a model's folder, on the GPU where there is one."""
    from engine.devices import default_device
    from engine.pretrained import load_pretrained

    device = default_device(warn)
    return load_pretrained(model, device), device
