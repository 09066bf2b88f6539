"""``python -m bigmodel_cli`` and ``torchrun -m bigmodel_cli``: the same command."""

from bigmodel_cli.cli import main

if __name__ == "__main__":
    main()
