"""``bigmodel checkpoint adapter``: low-rank adapters as a folder that Hugging Face's PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import BigmodelError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bigmodel_cli.engine.build.load import TrainedModel
    from bigmodel_cli.models.adapters.peft_format import Adapter

TOLERANCE = 1e-5  # of a logit
Run = Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint of finetune --lora, or its run folder.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="New folder to write.")]


def adapter(checkpoint: Run, out: Out, json: opt.Json = False) -> None:
    """Write the LoRA adapters of a fine-tuned hf: model in PEFT's format, without the base model.

    The folder appears only if the base model with it gives the checkpoint's logits to within 1e-5.

    Example:

        bigmodel checkpoint adapter runs/tuned --out adapter
    """
    import torch

    from bigmodel_cli.core.tokenizers.huggingface_json import write_tokenizer
    from bigmodel_cli.export.publish import check_target, draft, publish
    from bigmodel_cli.models.adapters.peft_format import merge_adapter, write_adapter

    for line in check_target(out, overwrite=False):
        console.note(line)
    trained, found, base = _read(checkpoint)
    fresh = _base_model(trained)
    inner, plain = trained.model.get_submodule("inner"), fresh.get_submodule("inner")
    whole = _changed(inner, plain, set(found))
    with draft(out) as folder:
        write_adapter(folder, inner, found, whole, trained.task.name, base)
        write_tokenizer(trained.task.spec, folder)
        merge_adapter(plain, folder)
        inputs = [x[:, -16:] for x in trained.task.example(2)]
        with torch.inference_mode():
            apart = float((trained.model(*inputs) - fresh(*inputs)).abs().max())
        if not apart <= TOLERANCE:
            raise BigmodelError(f"base and adapter differ from the checkpoint by {apart:.2g} of a logit")
        publish(folder, out)
    facts = {"folder": str(out), "base": base, "layers": len(found), "largest_difference": apart}
    if json:
        console.print_json(facts)
        return
    console.say(f"written: {out}: adapters of {len(found)} layers of {base}; logits equal to within {apart:.2g}")


def _read(path: Path) -> tuple[TrainedModel, dict[str, Adapter], str]:
    """The checkpoint, its adapters by layer, and the name of its base model.

    Raises:
        InputError: it has none that PEFT could use.
    """
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.engine.build.locate import checkpoint_file
    from bigmodel_cli.engine.checkpoint import checkpoint
    from bigmodel_cli.models.adapters.peft_format import adapters_in
    from bigmodel_cli.models.pretrained.wrapped import Wrapped

    trained = load_trained(path)
    state = checkpoint.load(checkpoint_file(path))
    found = adapters_in(state["model_ema"] or state["model"])
    base = str(trained.recipe.model.options.get("source") or "")
    if not isinstance(trained.model, Wrapped) or not base:
        what = f"{trained.path}: {trained.recipe.model.name} was not fine-tuned from a model of transformers"
        raise InputError(what, "expected a run of finetune hf:FOLDER --pretrained --lora R")
    if not found:
        quantized = trained.recipe.start.options.get("base", "exact") != "exact"
        expected = "base weights that are not quantized" if quantized else "a run of finetune --lora R"
        raise InputError(f"{trained.path}: no adapters that PEFT could use", f"expected {expected}")
    return trained, {name.removeprefix("inner."): value for name, value in found.items()}, base


def _base_model(trained: TrainedModel) -> nn.Module:
    """The model that training started from, with a head for the classes of the checkpoint."""
    from bigmodel_cli.engine.build.model import build_model
    from bigmodel_cli.engine.build.published_weights import load_pretrained
    from bigmodel_cli.engine.build.transfer import transfer

    model = build_model(trained.recipe, trained.task.spec)
    transfer(model, load_pretrained(trained.recipe), trained.task.spec)
    return model.eval()


def _changed(model: nn.Module, start: nn.Module, adapted: set[str]) -> dict[str, Tensor]:
    """The tensors outside the adapted layers that training changed, such as a head's."""
    import torch

    before = start.state_dict()
    found = {}
    for name, value in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if not (layer in adapted and kind == "weight") and not torch.equal(before[name], value):
            found[name] = value
    return found
