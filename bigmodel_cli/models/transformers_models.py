"""Causal and sequence-classification models of Hugging Face's ``transformers``, as ``hf:LlamaForCausalLM``.

A recipe holds the class and the full configuration, so a checkpoint needs neither the folder nor the Hub
repository it came from. The list of classes is read from the library's source. No other class is ever built,
and no code is loaded with a model. Shapes: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.special_tokens import PAD
from bigmodel_cli.core.text_files import read_text
from bigmodel_cli.core.tokens import tokenizer
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.models.layers.document_mask import restart_positions

CAUSAL, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"
GPT2 = "GPT2LMHeadModel"  # causal, but named before the convention
MAX_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 1024),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 1 << 17),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim"), 1 << 19),
    "vocab_size": 1 << 20,
}
"""The largest size that is built, so that an untrusted configuration cannot exhaust memory."""


def import_transformers() -> Any:
    """Import ``transformers`` with its progress bars and import warnings silenced.

    Raises:
        MachineError: it is not installed.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        import transformers
    except ImportError:
        hint = "pip install 'bigmodel[huggingface]'"
        raise MachineError("transformers is not installed", "hf:... needs the extra huggingface", hint) from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@functools.cache
def _class_families() -> dict[str, str]:
    """Class -> family, as transformers' Auto classes list them; empty if it is not installed."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    pairs = re.findall(r'\("(\w+)", "(\w+)"\)', source.read_text(encoding="utf-8"))
    return {name: family for family, name in pairs if name.endswith((CAUSAL, CLASSIFIER, GPT2))}


def model_names() -> tuple[str, ...]:
    return tuple(_class_families())


def describe(member: str) -> dict[str, Any]:
    """Registration metadata. The task follows from the class name; the head's name differs by model."""
    classifies = member.endswith(CLASSIFIER)
    return {
        "task": "text_classification" if classifies else "language_modeling",
        "head": "inner." + (_head(member) if classifies else "lm_head"),
        "backbone_first": "inner.embeddings",
        "load": load_pretrained,
    }


@functools.cache
def _head(member: str) -> str:
    """``classifier`` or ``score``, read from the class's source."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "models"
    for file in sorted(folder.glob(f"{_class_families()[member].replace('-', '_')}*/modeling_*.py")):
        body = re.search(rf"^class {member}\(.*?(?=^class |\Z)", file.read_text(encoding="utf-8"), re.M | re.S)
        found = body and re.search(r"self\.(classifier|score|classification_head|logits_proj)\b", body[0])
        if found:
            return found[1]
    return "score"  # transformers' generic head


@dataclass
class Cache:
    """transformers' own cache, with the fields that :func:`bigmodel_cli.tasks.sampling.next_tokens` needs."""

    inner: Any
    pad: Tensor | None
    length: int = 0


class Wrapped(nn.Module):
    """A model of transformers, `inner`, that takes up to `context` tokens."""

    def __init__(self, inner: Any, context: int) -> None:
        super().__init__()
        self.inner, self.context = inner, context

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()  # type: ignore[no-any-return]


class Causal(Wrapped):
    """tokens (B,T) -> logits (B,T,V); or with targets and a loss, each token's loss (B,T), 0 where it is negative."""

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        cache: Cache | None = None,
        document: Tensor | None = None,
    ) -> Tensor:
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            start, end = cache.length, cache.length + tokens.shape[1]
            positions = torch.arange(end, device=tokens.device).expand(len(tokens), -1)
            pad = torch.zeros(len(tokens), 1, device=tokens.device) if cache.pad is None else cache.pad[:, None]
            options = {
                "use_cache": True, "past_key_values": cache.inner, "attention_mask": (positions >= pad).long(),
                "position_ids": (positions - pad).clamp(min=0).long()[:, start:],
            }  # fmt: skip
            cache.length = end
        elif document is not None:
            _check_documents_separable(self.inner)
            # The library masks out whatever precedes a position that restarts.
            options["position_ids"] = restart_positions(document)
        logits = self.inner(input_ids=tokens, **options).logits
        if targets is None or loss is None:
            return logits  # type: ignore[no-any-return]
        losses = loss(logits.flatten(0, 1).float(), targets.flatten().clamp(min=0)).view(targets.shape)
        return losses * (targets >= 0)

    def new_cache(self, pad: Tensor | None = None) -> Cache:
        return Cache(import_transformers().DynamicCache(config=self.inner.config), pad)


def _check_documents_separable(inner: Any) -> None:
    """
    Raises:
        InputError: `inner` is recurrent, or builds its own attention mask.
    """
    if getattr(inner, "_is_stateful", False) or not hasattr(sys.modules[type(inner).__module__], "create_causal_mask"):
        what = f"hf:{type(inner).__name__} cannot mask documents from each other"
        raise InputError(what, "expected one document per row", "--set data.separate=false, or --set data.pack=false")


class Classifier(Wrapped):
    """tokens (B,T), fill at the end -> logits (B,K)."""

    def __init__(self, inner: Any, context: int, pad: int) -> None:
        super().__init__(inner, context)
        self.pad = pad

    def forward(self, tokens: Tensor) -> Tensor:
        real = (tokens != self.pad).flip(1).cummax(1).values.flip(1)  # only padding at the end is masked
        real = real | (torch.arange(tokens.shape[1], device=tokens.device) == 0)  # an empty text must not give NaN
        return self.inner(input_ids=tokens, attention_mask=real.long()).logits  # type: ignore[no-any-return]


@models.register("hf:*", task="language_modeling", members=model_names, describe=describe)
def transformers_model(
    spec: TextSpec,
    member: str,
    *,
    config: Annotated[str, Field(max_length=1 << 17, description="the configuration, as JSON")] = "",
    source: Annotated[str, Field(description="the folder or the Hub repository it came from")] = "",
    checkpointing: bool = False,
) -> nn.Module:
    """A causal or sequence-classification model from transformers (Wolf et al. 2019).

    Raises:
        InputError: the configuration is missing, or does not fit the data.
    """
    return _wrap(_build(member, _parse_config(member, config), spec), spec, checkpointing)


def _wrap(inner: Any, spec: TextSpec, checkpointing: bool) -> nn.Module:
    if checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    if not type(inner).__name__.endswith(CLASSIFIER):
        return Causal(inner, spec.context)
    return Classifier(inner, spec.context, int(inner.config.pad_token_id))


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
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and spec.context > longest:
        raise InputError(f"data.context is {spec.context}", f"the model's context window is {longest}")
    config.pad_token_id = known.special.get(PAD, 0)
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


def load_pretrained(member: str, folder: Path, context: int, options: Mapping[str, Any]) -> tuple[TextSpec, nn.Module]:
    """The spec, and the model with the safetensors weights in `folder`, loaded by transformers itself.

    Raises:
        InputError: the weights are missing, or do not fit.
    """
    kind, values = getattr(import_transformers(), member), _parse_config(member, options["config"])
    labels = kind.config_class.from_dict(values).id2label if member.endswith(CLASSIFIER) else {}
    classes = tuple(str(labels[i]) for i in sorted(labels))
    spec = TextSpec("bpe", (read_text(folder / "tokenizer.json"),), context, classes)
    config = make_config(kind, values, spec)
    try:
        inner = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise InputError(f"{folder}: {reason}", "expected model.safetensors") from None
    return spec, _wrap(inner, spec, options["checkpointing"])
