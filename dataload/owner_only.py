"""What is made of patients' data is readable by its owner alone, whatever the shell's umask says.

Photographs, reports, features and weights trained on them are no files for everybody on a cluster;
whoever passes them on does so by chmod. The mask is the process's: workers that are started
meanwhile inherit it.
"""

import contextlib
import os


@contextlib.contextmanager
def owner_only():
    """Make new folders 0700 and new files 0600 while entered, or while a function runs.

    Modes of what is there already are left alone. Windows has no such modes: there a folder's
    permissions pass on to what is made in it.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
