"""Models of transformers behind the interfaces of our own. Shapes: B batch, S source and T target tokens, V vocabulary.

K is the number of classes, N the number of texts being decoded.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.models.layers.document_mask import restart_positions
from bigmodel_cli.models.layers.dropout import Dropout, share_draws
from bigmodel_cli.models.layers.sdpa import attend_and_drop, in_fp32


def import_transformers() -> Any:
    """Import ``transformers`` with its progress bars and import warnings silenced.

    Raises:
        MachineError: it is not installed.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        import transformers
    except ImportError:
        hint = install_line("huggingface")
        raise MachineError("transformers is not installed", "hf:... needs the extra huggingface", hint) from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@functools.cache
def _register_attention() -> None:
    """Let models of the library attend as our own do, with their dropout where it is a :class:`Dropout`."""
    interface = import_transformers().AttentionInterface
    known = interface()["sdpa"]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        own, given = getattr(module, "dropout", None), {name for name, value in options.items() if value is not None}
        plain = given <= {"dropout", "scaling", "position_ids"} and query.shape[1] == key.shape[1]
        if isinstance(own, Dropout) and options.get("dropout") == own.p and plain and not module.is_causal:
            attended = attend_and_drop(query, key, value, attention_mask, own, options.get("scaling"))
            return attended.transpose(1, 2).contiguous(), None

        def library_kernel(*qkv_and_mask: Tensor) -> Tensor:
            return known(module, *qkv_and_mask, **options)[0]  # type: ignore[no-any-return]

        return in_fp32(library_kernel, query, key, value, attention_mask), None

    interface.register("sdpa", attention)


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
        _register_attention()
        share_draws(inner)
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
        return self.inner(input_ids=tokens, attention_mask=real_tokens(tokens, self.pad)).logits  # type: ignore[no-any-return]


@dataclass
class DecoderCache:
    """Texts (N) being decoded: the encoder's output, the mask of the sources (N,S), and transformers' own cache."""

    encoded: Any
    mask: Tensor
    inner: Any

    def select(self, rows: Tensor) -> DecoderCache:
        """The cache of the texts at `rows` (N',), which may repeat."""
        self.inner.reorder_cache(rows)
        return DecoderCache((self.encoded[0][rows],), self.mask[rows], self.inner)


class Seq2Seq(Wrapped):
    """source (B,S) and target (B,T) int64 -> logits (B,T,V); given labels and a loss, the per-token loss (B,T)."""

    def __init__(self, inner: Any, context: int, pad: int) -> None:
        super().__init__(inner, context)
        self.pad = pad

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        labels: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss is 0 where `labels` (B,T) hold the padding token."""
        mask = real_tokens(source, self.pad)
        logits = self.inner(input_ids=source, attention_mask=mask, decoder_input_ids=target, use_cache=False).logits
        if labels is None or loss is None:
            return logits  # type: ignore[no-any-return]
        losses = loss(logits.flatten(0, 1).float(), labels.flatten()).view(labels.shape)
        return losses * (labels != self.pad)

    def start_decoding(self, source: Tensor) -> DecoderCache:
        """Encode `source` (N,S) and return the cache for :meth:`step`, with no target tokens yet."""
        library, mask = import_transformers(), real_tokens(source, self.pad)
        encoded = self.inner.get_encoder()(input_ids=source, attention_mask=mask, return_dict=True)
        cache = library.EncoderDecoderCache(library.DynamicCache(), library.DynamicCache())
        return DecoderCache((encoded.last_hidden_state,), mask, cache)

    def step(self, token: Tensor, cache: DecoderCache) -> Tensor:
        """Feed one `token` (N,) per text and return the next token's logits (N,V), equal to :meth:`forward`'s."""
        out = self.inner(
            encoder_outputs=cache.encoded, attention_mask=cache.mask, decoder_input_ids=token[:, None],
            past_key_values=cache.inner, use_cache=True,
        )  # fmt: skip
        return out.logits[:, -1]  # type: ignore[no-any-return]


def real_tokens(tokens: Tensor, pad: int) -> Tensor:
    """(B,T) int64 mask: 0 for padding at the end. The first token counts always: an empty text must not give NaN."""
    real = (tokens != pad).long().flip(1).cumsum(1).flip(1) > 0  # ONNX has no cummax
    return (real | (torch.arange(tokens.shape[1], device=tokens.device) == 0)).long()
