"""Child processes import nothing from the working folder, where a downloaded ``typer.py`` or ``pickle.py`` may lie."""

from __future__ import annotations

import os


def isolate_children() -> None:
    """Set what every Python process below this one inherits: no working folder, nor the script's, on its path.

    ``python -m`` and ``python -c`` put the working folder first, and so do multiprocessing, torch's launcher, its
    compile workers and whatever a library starts.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
