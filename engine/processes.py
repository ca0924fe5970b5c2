"""What Linux says of other processes of this machine."""

from pathlib import Path


def parent_of(process):
    """Return the parent of a process id, None if that process is no more."""
    return _number(process, 4)


def born(process):
    """Return when a process began, in ticks since the boot; None if it is no more."""
    return _number(process, 22)


def _number(process, field):
    """Return a field of /proc/PID/stat by proc(5)'s numbers, of those behind the name."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # the name, the second field, stands in parentheses and may hold anything
    return int(status.rpartition(")")[2].split()[field - 3])
