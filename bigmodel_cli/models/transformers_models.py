"""Text models of Hugging Face's ``transformers``, as ``hf:LlamaForCausalLM`` or ``hf:T5ForConditionalGeneration``.

A recipe holds the class and the full configuration, so a checkpoint needs neither the folder nor the Hub
repository it came from. The list of classes is read from the library's source. No other class is ever built,
and no code is loaded with a model. Shapes: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.special_tokens import END, PAD, START
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.adapters.peft_format import has_tokenizer, rows_of
from bigmodel_cli.models.layers.meta_init import init_on_meta
from bigmodel_cli.models.pretrained.auto_classes import head_attribute, task_of_class
from bigmodel_cli.models.pretrained.mean_pooling import MeanPooled, frozen_options
from bigmodel_cli.models.pretrained.published_text import read_published_text
from bigmodel_cli.models.pretrained.wrapped import Causal, Classifier, Seq2Seq, import_transformers

MAX_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 1024),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1024),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 1 << 17),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim"), 1 << 19),
    **dict.fromkeys(("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 1 << 19),
    "vocab_size": 1 << 20,
}
"""The largest size that is built, so that an untrusted configuration cannot exhaust memory."""
CONTEXT = 512  # tokens, where neither the data nor the model sets fewer


def model_names() -> tuple[str, ...]:
    return tuple(task_of_class())


def describe(member: str) -> dict[str, Any]:
    """Registration metadata. The task follows from the class; the head's name differs by model."""
    task = task_of_class().get(member, "language_modeling")
    return {
        "task": task,
        "head": "inner." + head_attribute(member, task),
        "backbone_first": "inner.embeddings",
        "load": load_pretrained,
        "load_spec": load_spec,
        **({"frozen_options": functools.partial(frozen_options, member)} if task == "text_classification" else {}),
    }


Languages = Annotated[
    tuple[str, str], Field(description="codes of the source's and the target's language, for mBART and NLLB")
]
Pooling = Annotated[
    Literal["own", "mean"],
    Field(description="of an encoder: what the head reads; own: as transformers has it, often the first token's state"),
]


@models.register("hf:*", task="language_modeling", members=model_names, describe=describe)
def transformers_model(
    spec: TextSpec,
    member: str,
    *,
    config: Annotated[str, Field(max_length=1 << 17, description="the configuration, as JSON")] = "",
    source: Annotated[str, Field(description="the folder or the Hub repository it came from")] = "",
    checkpointing: bool = False,
    languages: Languages | None = None,
    prefix: Annotated[str, Field(description="text before every source, for T5", max_length=1000)] = "",
    pooling: Pooling = "own",
) -> nn.Module:
    """A language model, classifier or translation model from transformers (Wolf et al. 2019).

    Raises:
        InputError: the configuration is missing, or does not fit the data.
    """
    return _wrap(_build(member, _parse_config(member, config), spec), spec, checkpointing, pooling)


def _wrap(inner: Any, spec: TextSpec, checkpointing: bool, pooling: str) -> nn.Module:
    """`inner` behind our interface.

    Raises:
        InputError: its context window is shorter than the data's.
    """
    longest = context_window(inner)
    if longest is not None and spec.context > longest:
        raise InputError(f"data.context is {spec.context}", f"the model's context window is {longest}")
    if checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    task = task_of_class()[type(inner).__name__]
    if task == "language_modeling":
        return Causal(inner, longest or 1 << 20)
    classifier = MeanPooled if pooling == "mean" else Classifier
    kind = classifier if task == "text_classification" else Seq2Seq
    return kind(inner, spec.context, int(inner.config.pad_token_id))


def context_window(inner: Any) -> int | None:
    """The most tokens that a model of transformers takes; None if it has no limit.

    RoBERTa and its kin number positions from the padding token's id plus one.
    """
    longest = getattr(inner.config, "max_position_embeddings", None)
    if longest is None:
        return None
    tables = [m for name, m in inner.named_modules() if name.endswith("position_embeddings")]
    offsets = [m.padding_idx + 1 for m in tables if isinstance(m, nn.Embedding) and m.padding_idx is not None]
    return int(longest) - max(offsets, default=0)


def _parse_config(member: str, text: str) -> dict[str, Any]:
    """The values of a configuration, without those that would load code.

    Raises:
        InputError: it is missing or not JSON, is for quantized weights, or a size is absurd.
    """
    if not text:
        raise InputError(f"hf:{member} without its configuration", "expected hf:FOLDER or hf:NAME on the Hub")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"model.config is not JSON: {error}", "expected a config.json") from None
    if not isinstance(values, dict):
        raise InputError("model.config is not a JSON object", "expected a config.json")
    if values.get("quantization_config"):
        raise InputError(f"hf:{member}: quantized weights", "expected unquantized weights")
    for key, most in MAX_SIZES.items():
        value = values.get(key)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            raise InputError(f"model.config: {key} is {value!r}", f"expected 1 to {most}")
    return {k: v for k, v in values.items() if k not in ("auto_map", "torch_dtype", "dtype", "architectures")}


def make_config(kind: Any, values: dict[str, Any], spec: TextSpec) -> Any:
    """The configuration object of the class `kind`, for the data's tokens and classes.

    Raises:
        InputError: the values are invalid, or do not fit the data.
    """
    known = tokenizer(spec)
    try:
        config = kind.config_class.from_dict(values)
    except Exception as error:  # each class validates in its own way
        raise InputError(f"model.config: {str(error).splitlines()[0]}", "expected a config.json") from None
    if known.size > config.vocab_size:
        what = f"the tokenizer has {known.size} tokens, the model {config.vocab_size}"
        raise InputError(what, "expected the model's own tokenizer", "--set data.tokenizer=PATH of its tokenizer.json")
    predicts = task_of_class()[kind.__name__] == "language_modeling"  # where padding takes part in nothing
    config.pad_token_id = known.special.get(PAD, None if predicts else 0)
    if config.is_encoder_decoder and {START, END} <= known.special.keys():
        config.decoder_start_token_id, config.eos_token_id = known.special[START], known.special[END]
    if spec.classes:
        config.id2label = dict(enumerate(spec.classes))
        config.label2id = {name: i for i, name in enumerate(spec.classes)}
    return config


def _build(member: str, values: dict[str, Any], spec: TextSpec) -> Any:
    kind = getattr(import_transformers(), member)
    config = make_config(kind, values, spec)
    try:
        return kind(config).float()
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"hf:{member}: {str(error).splitlines()[0]}", "expected a valid config.json") from None


def for_adapter(member: str, values: dict[str, Any], adapter: Path) -> dict[str, Any]:
    """The configuration `values` of a base model with as many tokens as `adapter` has embeddings, if it has its own.

    Raises:
        InputError: they are invalid, or the adapter is damaged.
    """
    kind = getattr(import_transformers(), member)
    known = _parse_config(member, json.dumps(values))
    try:
        with init_on_meta():
            inner = kind(kind.config_class.from_dict(known))
    except Exception as error:  # each class validates in its own way
        raise InputError(f"model.config: {str(error).splitlines()[0]}", "expected a config.json") from None
    table = inner.get_input_embeddings()
    name = next(name for name, module in inner.named_modules() if module is table)
    rows = rows_of(adapter, f"{name}.weight")
    return values if rows is None else {**values, "vocab_size": rows}


class Loaded(NamedTuple):
    """A model with published weights, lines for the user, and the names of the parameters that the weights lack.

    `resized` are the names, within transformers' model, of those that the weights have with another shape.
    """

    spec: TextSpec
    model: nn.Module
    notes: list[str]
    new: list[str]
    resized: list[str]


def load_pretrained(
    member: str, folder: Path, context: int | None, options: Mapping[str, Any], adapter: Path | None = None
) -> Loaded:
    """The model with the safetensors weights in `folder`; transformers itself loads them.

    `adapter` is the folder of an adapter that is to be merged into it. Its tokenizer is read, if it has one.
    `context` is the data's; None: the model's own, up to :data:`CONTEXT`.

    Raises:
        InputError: the weights are missing, or do not fit.
    """
    kind = getattr(import_transformers(), member)
    spec, config = _published(member, folder, context, options, adapter)
    try:
        inner, report = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=adapter is not None,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise InputError(f"{folder}: {reason}", "expected model.safetensors") from None
    if context is None:
        spec = spec.with_(context=_own_context(inner))
    resized, theirs = sorted({str(name) for name, *_ in report["mismatched_keys"]}), set(inner.state_dict())
    model = _wrap(inner, spec, options["checkpointing"], options.get("pooling", "own"))
    ours = set(inner.state_dict())
    head = head_attribute(member, task_of_class()[member]) + "."
    own_head = {name for name in ours if isinstance(model, MeanPooled) and name.startswith(head)}
    missing = set(report["missing_keys"])
    notes = _loading_notes((missing & ours) | own_head, (theirs - ours - missing).union(report["unexpected_keys"]))
    if adapter is not None and has_tokenizer(adapter):
        notes.append(f"tokenizer of the adapter, {tokenizer(spec).size:,} tokens, not of the base model")
    return Loaded(spec, model, notes, sorted(f"inner.{name}" for name in (missing & ours) | own_head), resized)


def load_spec(
    member: str, folder: Path, context: int | None, options: Mapping[str, Any], adapter: Path | None = None
) -> TextSpec:
    """The spec of :func:`load_pretrained`, without the weights."""
    spec, config = _published(member, folder, context, options, adapter)
    if context is not None:
        return spec
    with init_on_meta():
        return spec.with_(context=_own_context(getattr(import_transformers(), member)(config)))


def _own_context(inner: Any) -> int:
    return min(context_window(inner) or CONTEXT, CONTEXT)


def _published(
    member: str, folder: Path, context: int | None, options: Mapping[str, Any], adapter: Path | None
) -> tuple[TextSpec, Any]:
    """The spec and the configuration of the model in `folder`; without `context`, that of the spec is yet to be set."""
    kind, values = getattr(import_transformers(), member), _parse_config(member, options["config"])
    task = task_of_class()[member]
    own = adapter if adapter is not None and has_tokenizer(adapter) else None
    text = read_published_text(folder, task == "translation", options["languages"], options["prefix"], own)
    classes: tuple[str, ...] = ()
    saved = json.loads(options["config"]).get("architectures") or ()
    if task == "text_classification" and member in saved and options.get("pooling", "own") == "own":
        labels = kind.config_class.from_dict(values).id2label
        classes = tuple(str(labels[i]) for i in sorted(labels))
    spec = TextSpec("bpe", text.vocabulary, context or 1, classes, conventions=text.conventions)
    spec = _with_padding(spec) if task == "text_classification" else spec
    return spec, make_config(kind, values, spec)


def _with_padding(spec: TextSpec) -> TextSpec:
    """`spec` with a token to pad texts with, where the owners have none: a decoder needs none until it classifies.

    It is the token that ends a document, which no text holds, unless every text ends with it. The id 0, which stands
    in for a missing one elsewhere, is an exclamation mark with Llama 3.
    """
    special, known = tokenizer(spec).special, spec.conventions
    if known is None or PAD in special or END not in special or special[END] in known.after:
        return spec
    return spec.with_(conventions=replace(known, special=(*known.special, (PAD, special[END]))))


def _loading_notes(missing: Collection[str], unexpected: Collection[str]) -> list[str]:
    """What the weights lack, and what of them the model does not use, by the names of tensors."""
    new, unused = (sorted({name.rpartition(".")[0] for name in names}) for names in (missing, unexpected))
    notes = [f"new, since the published weights have none: {', '.join(new[:4])}"] if new else []
    return notes + ([f"not used of the published weights: {', '.join(unused[:4])}"] if unused else [])
