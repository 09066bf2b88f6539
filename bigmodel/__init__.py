"""bigmodel from Python: train, fine-tune, evaluate, predict and export with the functions of the command line.

    import bigmodel

    run = bigmodel.train("resnet18", "digits", epochs=3)
    print(run.metrics)
    print(bigmodel.evaluate(run.folder, split="test")["metrics"])
    model = bigmodel.load(run.folder)
    print(model.predict("digit.png"))
    bigmodel.export(run.folder, "shipped", format="pt2")

Errors are :class:`InputError`, :class:`MachineError` and the others of the command line, with `hint` and `exit_code`.
Importing this package loads no torch; the first call does.
"""

from bigmodel.api import Prediction, Run, TrainedNetwork, evaluate, export, finetune, load, train
from bigmodel_cli import __version__
from bigmodel_cli.core.errors import BigmodelError, DivergedError, InputError, InterruptedRun, MachineError

__all__ = [
    "BigmodelError", "DivergedError", "InputError", "InterruptedRun", "MachineError", "Prediction", "Recipe", "Run",
    "TrainedNetwork", "__version__", "evaluate", "export", "finetune", "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "Recipe":  # pydantic, which it needs, is slow to import
        from bigmodel_cli.core.recipe import Recipe

        return Recipe
    raise AttributeError(f"module 'bigmodel' has no attribute {name!r}")
