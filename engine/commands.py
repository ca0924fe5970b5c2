"""How a command ends: exit status 0, or 2 with one clear message for what its user can mend."""

import os
import sys
import traceback
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "dataload", "kernels", "bench")
# typer carries a click of its own: the base class of its errors is found from one of them
_UsageProblem = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def run_command(app: typer.Typer, argv=None) -> int:
    """Run a typer application on `argv` and return the exit status.

    Errors that a user can mend are printed as `error: ...`, without a traceback, status 2. Those
    are ValueErrors that this project raises (its rule for user errors) and the system's refusals,
    such as a full disk. A ValueError from inside a library is a defect of ours and keeps its
    traceback.
    """
    command = typer.main.get_command(app)
    try:
        result = command.main(argv, standalone_mode=False)
    except typer.Abort:
        return 130
    except _UsageProblem as error:
        error.show()
        return 2
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _raised_here(error):
            raise
        # every rank meets the same refusal; one of them says so
        if os.environ.get("RANK", "0") == "0":
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def _raised_here(error):
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).is_relative_to(ROOT / name) for name in PACKAGES)


def load_model(model):
    """Return (TrainedModel, device) of a model's folder, on the GPU where there is one."""
    import torch

    from engine.pretrained import load_pretrained

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_pretrained(model, device), device
