"""What holds for every child process.

It imports nothing from the working folder, where a downloaded ``typer.py`` or ``pickle.py`` may lie; and how it ends is
known here, whatever this process was started with.
"""

from __future__ import annotations

import os
import signal


def isolate_children() -> None:
    """Set what every Python process below this one inherits: no working folder, nor the script's, on its path.

    ``python -m`` and ``python -c`` put the working folder first, and so do multiprocessing, torch's launcher, its
    compile workers and whatever a library starts.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


def hear_of_children() -> None:
    """Undo an ignored SIGCHLD, which a daemon may pass on: the system would then tell nobody how a child ended.

    A crashed child would count as one that ended well, or be waited for without end.
    """
    number = getattr(signal, "SIGCHLD", None)
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
