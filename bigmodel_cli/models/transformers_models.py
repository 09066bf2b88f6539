"""Causal and sequence-classification models of Hugging Face's ``transformers``, as ``hf:LlamaForCausalLM``.

A recipe holds the class and the whole configuration, so that a checkpoint needs neither the folder nor the
hub it once came from. Which classes there are is read from the library's source; nothing else is ever built,
and no code comes along with a model. Shapes: B batch, T tokens, V vocabulary, K classes.
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

CAUSAL, CLASSIFIES = "ForCausalLM", "ForSequenceClassification"
GPT2 = "GPT2LMHeadModel"  # causal, from before the names said so
MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 1024),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 1 << 17),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim"), 1 << 19),
    "vocab_size": 1 << 20,
}
"""A stranger's configuration stays a model that could be: of each size the most that is built."""


def library() -> Any:
    """``transformers``, without its progress bars and without what its imports have to say.

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
def _known() -> dict[str, str]:
    """Class -> family, as transformers' Auto classes list them; none where it is not installed."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    pairs = re.findall(r'\("(\w+)", "(\w+)"\)', source.read_text(encoding="utf-8"))
    return {name: family for family, name in pairs if name.endswith((CAUSAL, CLASSIFIES, GPT2))}


def names() -> tuple[str, ...]:
    return tuple(_known())


def describe(member: str) -> dict[str, Any]:
    """The task by the class's name; the head by the model itself, which calls it as it likes."""
    classifies = member.endswith(CLASSIFIES)
    return {
        "task": "text_classification" if classifies else "language_modeling",
        "head": "inner." + (_head(member) if classifies else "lm_head"),
        "backbone_first": "inner.embeddings",
        "load": pretrained,
    }


@functools.cache
def _head(member: str) -> str:
    """``classifier`` or ``score``, read from the class's source."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "models"
    for file in sorted(folder.glob(f"{_known()[member].replace('-', '_')}*/modeling_*.py")):
        body = re.search(rf"^class {member}\(.*?(?=^class |\Z)", file.read_text(encoding="utf-8"), re.M | re.S)
        found = body and re.search(r"self\.(classifier|score|classification_head|logits_proj)\b", body[0])
        if found:
            return found[1]
    return "score"  # transformers' generic head


@dataclass
class Cache:
    """transformers' own cache, with what :func:`bigmodel_cli.tasks.sampling.next_tokens` asks of one."""

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
            place = torch.arange(end, device=tokens.device).expand(len(tokens), -1)
            pad = torch.zeros(len(tokens), 1, device=tokens.device) if cache.pad is None else cache.pad[:, None]
            options = {
                "use_cache": True, "past_key_values": cache.inner, "attention_mask": (place >= pad).long(),
                "position_ids": (place - pad).clamp(min=0).long()[:, start:],
            }  # fmt: skip
            cache.length = end
        elif document is not None:
            _keeps_documents_apart(self.inner)
            options["position_ids"] = restart_positions(
                document
            )  # the library masks what is before a place that restarts
        logits = self.inner(input_ids=tokens, **options).logits
        if targets is None or loss is None:
            return logits  # type: ignore[no-any-return]
        found = loss(logits.flatten(0, 1).float(), targets.flatten().clamp(min=0)).view(targets.shape)
        return found * (targets >= 0)

    def new_cache(self, pad: Tensor | None = None) -> Cache:
        return Cache(library().DynamicCache(config=self.inner.config), pad)


def _keeps_documents_apart(inner: Any) -> None:
    """
    Raises:
        InputError: `inner` carries a state from token to token, or makes a mask of its own.
    """
    if getattr(inner, "_is_stateful", False) or not hasattr(sys.modules[type(inner).__module__], "create_causal_mask"):
        what = f"hf:{type(inner).__name__} reads a row as a whole"
        raise InputError(
            what, "expected documents that follow each other", "--set data.separate=false, or data.pack=false"
        )


class Classifier(Wrapped):
    """tokens (B,T), fill at the end -> logits (B,K)."""

    def __init__(self, inner: Any, context: int, pad: int) -> None:
        super().__init__(inner, context)
        self.pad = pad

    def forward(self, tokens: Tensor) -> Tensor:
        real = (tokens != self.pad).flip(1).cummax(1).values.flip(1)  # what is filled is at the end alone
        real = real | (torch.arange(tokens.shape[1], device=tokens.device) == 0)  # a text of nothing is not NaN
        return self.inner(input_ids=tokens, attention_mask=real.long()).logits  # type: ignore[no-any-return]


@models.register("hf:*", task="language_modeling", members=names, describe=describe)
def transformers_model(
    spec: TextSpec,
    member: str,
    *,
    config: Annotated[str, Field(max_length=1 << 17, description="the configuration, as JSON")] = "",
    source: Annotated[str, Field(description="the folder or the name on the hub that it came from")] = "",
    checkpointing: bool = False,
) -> nn.Module:
    """A causal or sequence-classification model from transformers (Wolf et al. 2019).

    Raises:
        InputError: it has no configuration, or one of another size than the data's.
    """
    return _wrapped(_built(member, _checked(member, config), spec), spec, checkpointing)


def _wrapped(inner: Any, spec: TextSpec, checkpointing: bool) -> nn.Module:
    if checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    if not type(inner).__name__.endswith(CLASSIFIES):
        return Causal(inner, spec.context)
    return Classifier(inner, spec.context, int(inner.config.pad_token_id))


def _checked(member: str, text: str) -> dict[str, Any]:
    """The configuration's values.

    Raises:
        InputError: it is not JSON, asks for code or for another library, or for an absurd size.
    """
    if not text:
        raise InputError(f"hf:{member} without its configuration", "expected hf:FOLDER or hf:NAME of the hub")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"model.config is not JSON: {error}", "expected a config.json") from None
    if not isinstance(values, dict):
        raise InputError("model.config is no object", "expected a config.json")
    if values.get("quantization_config"):
        raise InputError(f"hf:{member}: quantised weights", "expected plain ones")
    for key, most in MOST.items():
        value = values.get(key)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            raise InputError(f"model.config: {key} is {value!r}", f"expected 1 to {most}")
    return {k: v for k, v in values.items() if k not in ("auto_map", "torch_dtype", "dtype", "architectures")}


def configuration(kind: Any, values: dict[str, Any], spec: TextSpec) -> Any:
    """The configuration object of the class `kind`, for the data's tokens and classes.

    Raises:
        InputError: it does not fit them.
    """
    known = tokenizer(spec)
    try:
        config = kind.config_class.from_dict(values)
    except Exception as error:  # each class checks its own values in its own way
        raise InputError(f"model.config: {str(error).splitlines()[0]}", "expected a config.json") from None
    if known.size > config.vocab_size:
        what = f"the tokenizer has {known.size} tokens, the model {config.vocab_size}"
        raise InputError(what, "expected the model's own", "--set data.tokenizer=PATH of its tokenizer.json")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and spec.context > longest:
        raise InputError(f"data.context is {spec.context}", f"the model takes at most {longest}")
    config.pad_token_id = known.special.get(PAD, 0)
    if spec.classes:
        config.id2label = dict(enumerate(spec.classes))
        config.label2id = {name: i for i, name in enumerate(spec.classes)}
    return config


def _built(member: str, values: dict[str, Any], spec: TextSpec) -> Any:
    kind = getattr(library(), member)
    config = configuration(kind, values, spec)
    try:
        return kind(config).float()
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"hf:{member}: {str(error).splitlines()[0]}", "expected a config.json that fits") from None


def pretrained(member: str, folder: Path, context: int, options: Mapping[str, Any]) -> tuple[TextSpec, nn.Module]:
    """The spec and the model with the weights in `folder`, from safetensors alone, loaded by the library itself.

    Raises:
        InputError: they are not there, or do not fit.
    """
    kind, values = getattr(library(), member), _checked(member, options["config"])
    labels = kind.config_class.from_dict(values).id2label if member.endswith(CLASSIFIES) else {}
    classes = tuple(str(labels[i]) for i in sorted(labels))
    spec = TextSpec("bpe", (read_text(folder / "tokenizer.json"),), context, classes)
    about = configuration(kind, values, spec)
    try:
        inner = kind.from_pretrained(
            folder, config=about, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise InputError(f"{folder}: {reason}", "expected model.safetensors") from None
    return spec, _wrapped(inner, spec, options["checkpointing"])
