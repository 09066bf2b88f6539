"""``python -m bigmodel_cli`` and ``torchrun -m bigmodel_cli``: the same command."""

from bigmodel_cli.cli import main
from bigmodel_cli.engine.device.ranks import die_with_launcher

if __name__ == "__main__":
    die_with_launcher()
    main()
