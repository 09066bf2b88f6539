"""The length of fine-tuning a model that predicts tokens, its batch and its rate: as finetune_defaults, in tokens.

The number of steps is that of classifiers; the rates of published weights are those in common use (Devlin et al. 2018
for all weights, ten times that for low-rank adapters), and for translation what benchmarks/RESULTS-text.md measured.
"""

from __future__ import annotations

from typing import Any

from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods, models, tasks
from bigmodel_cli.core.types import Spec
from bigmodel_cli.engine.build.finetune_defaults import Length, suitable_length
from bigmodel_cli.engine.build.huggingface_hub import base_and_adapter

MOST_TOKENS = 8192
"""Tokens of a batch: the logits of all of them are in memory, each as wide as the vocabulary."""


def predicts_tokens(recipe: Recipe) -> bool:
    """Whether the model continues or translates texts: then the tokens of a sample decide how many make a batch."""
    return bool(tasks.get(models.get(recipe.model.name).meta["task"]).meta.get("predicts_tokens", False))


def suitable_token_length(samples: int, tokens: int, batch_size: int | None = None) -> Length:
    """The length for `samples` windows, rows or pairs of about `tokens` tokens each.

    `batch_size` is the batch to use, if it is given.
    """
    size = suitable_length(samples).batch_size
    return suitable_length(samples, batch_size or max(min(size, MOST_TOKENS // max(tokens, 1)), 1))


def suitable_token_lr(recipe: Recipe, published: bool) -> float:
    """The method's learning rate; for `published` weights a gentler one, if the method has it.

    A method that trains those weights themselves takes the task's rate, where the task has one.
    """
    meta, task = methods.get(recipe.start.method).meta, tasks.get(models.get(recipe.model.name).meta["task"]).meta
    gentle = meta.get("lr_of_published_text")
    if gentle is None and "lr_without_batchnorm" in meta:
        gentle = task.get("lr_of_published", meta["lr_without_batchnorm"])
    return float(gentle if published and gentle is not None else meta["lr"])


def published_text_spec(recipe: Recipe) -> Spec | None:
    """The spec of the published weights that the recipe starts from, without reading them; None if they have none.

    Raises:
        InputError: their tokenizer is missing or damaged.
        MachineError: they are not on this machine and cannot be downloaded.
    """
    meta, options = models.get(recipe.model.name).meta, recipe.model.options
    if not recipe.start.pretrained or "load_spec" not in meta:
        return None
    folder, adapter = base_and_adapter(options["source"], weights=True)
    return meta["load_spec"](meta["member"], folder, recipe.data.options.get("context"), options, adapter)  # type: ignore[no-any-return]


def suitable_pooling(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Options of published weights that suit a method which trains nothing below a new head, and a line on them."""
    suits = models.get(recipe.model.name).meta.get("frozen_options")
    frozen = bool(methods.get(recipe.start.method).meta.get("features"))
    options = suits(recipe.model.options) if suits is not None and recipe.start.pretrained and frozen else {}
    line = "the head reads the mean of a text's token states (model.pooling=own: what transformers' own head reads)"
    return options, [line] if options else []
