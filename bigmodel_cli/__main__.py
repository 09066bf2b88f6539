"""``python -m bigmodel_cli`` and ``torchrun -m bigmodel_cli``: the same command."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109  # before any other import
    del sys.path[0]  # as `bigmodel` has it: a downloaded typer.py in the working folder is not imported

from bigmodel_cli.cli import main
from bigmodel_cli.engine.device.ranks import die_with_launcher

if __name__ == "__main__":
    die_with_launcher()
    main()
