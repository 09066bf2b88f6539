"""A folder that ``transformers`` loads: config.json, model.safetensors and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.registry import exports
from bigmodel_cli.core.tokenizers.huggingface_json import generation_settings
from bigmodel_cli.export.folder import Run
from bigmodel_cli.export.runtime import Runtime
from bigmodel_cli.export.transformers_folder import check_huggingface
from bigmodel_cli.models.pretrained.auto_classes import task_of_class
from bigmodel_cli.models.pretrained.wrapped import import_transformers, real_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

RUNTIME = Runtime(
    needs=("torch>=2.11", "transformers>=5"),
    imports="""\
import torch
import transformers
from transformers import AutoTokenizer""",
    run="""\
text = sys.argv[1] if len(sys.argv) > 1 else "The"
about = (here / "config.json").read_text(encoding="utf-8")
classifies, translates = "ForSequenceClassification" in about, '"is_encoder_decoder": true' in about
kind = "SequenceClassification" if classifies else "Seq2SeqLM" if translates else "CausalLM"
model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(here, trust_remote_code=False)
tokenizer = AutoTokenizer.from_pretrained(here, trust_remote_code=False)
ids = torch.tensor([tokenizer(text).input_ids or [0]])
if classifies:
    print(model.config.id2label[int(model(ids).logits.argmax())])
else:
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60 if translates else 8)
    print(tokenizer.decode(found[0], skip_special_tokens=True))""",
    answers=False,
)


AUTO_CLASSES = {
    "language_modeling": "AutoModelForCausalLM",
    "text_classification": "AutoModelForSequenceClassification",
    "translation": "AutoModelForSeq2SeqLM",
}


def run_huggingface(path: Path, build: Callable[[], nn.Module]) -> Run:
    """Load the folder of `path` with transformers' Auto classes, from local files only."""
    import torch

    transformers = import_transformers()
    # Not the default, None: it asks on standard input whether to run code of the folder.
    config = transformers.AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    task = task_of_class()[config.architectures[0]]
    auto = getattr(transformers, AUTO_CLASSES[task])
    model = auto.from_pretrained(
        path.parent, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    transformers.AutoTokenizer.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)

    def run(*inputs: Any) -> Any:
        ids = torch.from_numpy(inputs[0])
        given: dict[str, Any] = {"input_ids": ids}
        if task != "language_modeling":
            given["attention_mask"] = real_tokens(ids, config.pad_token_id)
        if task == "translation":
            given["decoder_input_ids"] = torch.from_numpy(inputs[1])
        with torch.inference_mode():
            return model(**given).logits.float().numpy()

    return run


@exports.register(suffix=".safetensors", run=run_huggingface, check=check_huggingface, runtime=RUNTIME, tolerance=1e-5)
def huggingface(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """A folder that `transformers` loads: weights, tokenizer, chat template and generation settings of a text model.

    A gpt in GPT-2's layout becomes a ``GPT2LMHeadModel``, one in Llama's a ``LlamaForCausalLM``.

    Raises:
        InputError: transformers has no architecture equivalent to this model.
    """
    from bigmodel_cli.core.types import TextSpec

    transformers = import_transformers()
    about = carry["preprocess"]
    if "tokenizer" not in about:
        raise InputError(f"--format huggingface: {carry['arch']} takes no text", hint="--format onnx")
    keys = ("tokenizer", "vocabulary", "context", "chat", "conventions")
    spec = TextSpec.from_dict({key: about[key] for key in keys if key in about})
    theirs = _to_transformers(transformers, model, spec, carry)
    theirs.config.pad_token_id = (
        _special(spec, "<pad>") if theirs.config.pad_token_id is None else theirs.config.pad_token_id
    )
    if theirs.can_generate():
        theirs.generation_config = transformers.GenerationConfig(**generation_settings(spec, theirs.config))
    theirs.save_pretrained(path.parent, max_shard_size="1TB")
    _write_tokenizer(spec, path.parent, example[0])


def _to_transformers(transformers: Any, model: nn.Module, spec: Any, carry: dict[str, Any]) -> Any:
    """The model as one of transformers', with its weights."""
    from bigmodel_cli.models.gpt import GPT
    from bigmodel_cli.models.pretrained.gpt2 import to_gpt2
    from bigmodel_cli.models.pretrained.llama import to_llama
    from bigmodel_cli.models.pretrained.mean_pooling import MeanPooled
    from bigmodel_cli.models.pretrained.wrapped import Wrapped

    if isinstance(model, MeanPooled):
        what = f"--format huggingface: {type(model.inner).__name__} does not read the mean of the token states there"
        raise InputError(what, "--format onnx, pt2 or safetensors", "finetune with --set model.pooling=own")
    if isinstance(model, Wrapped):  # hf:...: it is one already
        return model.inner

    if not isinstance(model, GPT):
        what = f"--format huggingface: transformers has no architecture like {carry['arch']}"
        raise InputError(what, "expected a gpt or hf:... model", "--format onnx, pt2 or safetensors")
    state = model.state_dict()
    shape = model.shape
    shared: dict[str, Any] = {
        "vocab_size": model.token.num_embeddings, "tie_word_embeddings": model.head.weight is model.token.weight,
        "bos_token_id": _special(spec, "<end>"), "eos_token_id": _special(spec, "<end>"),
    }  # fmt: skip
    if model.position is not None and shape.norm == "layer" and shape.mlp != "swiglu" and shape.groups == shape.heads:
        config = transformers.GPT2Config(
            n_positions=model.context, n_embd=shape.width, n_layer=len(model.blocks), n_head=shape.heads,
            n_inner=shape.ffn_dim, layer_norm_epsilon=shape.eps, resid_pdrop=shape.dropout, embd_pdrop=shape.dropout,
            activation_function="gelu_new" if shape.mlp == "gelu-tanh" else "gelu", attn_pdrop=shape.dropout, **shared,
        )  # fmt: skip
        return _with_weights(transformers.GPT2LMHeadModel, config, to_gpt2(state, shape.heads))
    if model.position is None and shape.norm == "rms" and shape.mlp == "swiglu":
        config = transformers.LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.ffn_dim, num_hidden_layers=len(model.blocks),
            num_attention_heads=shape.heads, num_key_value_heads=shape.groups, max_position_embeddings=model.context,
            rms_norm_eps=shape.eps, attention_bias=shape.bias, mlp_bias=shape.bias, attention_dropout=shape.dropout,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_base}, **shared,
        )  # fmt: skip
        return _with_weights(transformers.LlamaForCausalLM, config, to_llama(state, shape.heads, shape.groups))
    what = "--format huggingface: neither GPT-2's layout (learned, layer, gelu) nor Llama's (rope, rms, swiglu)"
    raise InputError(what, hint="--format onnx, pt2 or safetensors")


def _with_weights(kind: Any, config: Any, state: dict[str, torch.Tensor]) -> Any:
    theirs = kind(config).eval()
    theirs.load_state_dict({k: v.contiguous() for k, v in state.items()})
    return theirs


def _special(spec: Any, name: str) -> int | None:
    from bigmodel_cli.core.tokenizers.tokens import tokenizer

    return tokenizer(spec).special.get(name)


def _write_tokenizer(spec: Any, folder: Path, tokens: Tensor) -> None:
    """Write the tokenizer's files, and compare it with ours on the text of `tokens` (B,T).

    Raises:
        BigmodelError: it tokenizes this text differently.
    """
    from bigmodel_cli.core.tokenizers.huggingface_json import write_tokenizer
    from bigmodel_cli.core.tokenizers.tokens import require_package as text_extra
    from bigmodel_cli.core.tokenizers.tokens import tokenizer

    text = write_tokenizer(spec, folder)
    known, theirs = tokenizer(spec), text_extra("tokenizers").Tokenizer.from_str(text)
    sample = known.decode(tokens[0].tolist())
    if list(known.encode(sample)) != theirs.encode(sample, add_special_tokens=False).ids:
        raise BigmodelError(f"the exported tokenizer encodes {sample[:40]!r} differently from ours")
