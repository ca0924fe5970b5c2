"""How a command ends: exit status 0, or 2 with one clear message for what its user can mend."""

import sys

import click
import typer

from dataload.records import ManifestError
from dataload.reports import TokenizerError
from dataload.shards import ShardError
from engine.checkpoint import CheckpointError
from engine.config import ConfigError
from engine.weights import WeightsError

# what a user can mend; everything else is a defect of ours and keeps its traceback
USER_ERRORS = (
    ConfigError,
    ManifestError,
    ShardError,
    TokenizerError,
    WeightsError,
    CheckpointError,
    OSError,
)


def run_command(app: typer.Typer, argv=None) -> int:
    """Run a typer application on `argv` and return the exit status.

    Errors that a user can mend are printed as `error: ...`, without a traceback.
    """
    command = typer.main.get_command(app)
    try:
        result = command.main(argv, standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except USER_ERRORS as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0
