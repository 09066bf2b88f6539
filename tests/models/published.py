"""Small random models of transformers with real tokenizers, saved as their owners save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers as tk
import torch
import transformers

TEXT = ["who are you? I am a model, and we answer.\n" * 3, "the quick brown fox", "a fine film", "a dull film"]
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)


def byte_level(template: str) -> Any:
    """GPT-2's kind, with the tokens of ChatML and no beginning-of-sequence token before a text."""
    raw = tk.Tokenizer(tk.models.BPE())
    raw.pre_tokenizer, raw.decoder = tk.pre_tokenizers.ByteLevel(add_prefix_space=False), tk.decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], tk.pre_tokenizers.ByteLevel.alphabet()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    known = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=special[0], bos_token=special[0], eos_token=special[2]
    )
    known.chat_template = template
    return known


def sentencepiece(template: str) -> Any:
    """Llama 2's kind: blanks are part of tokens, unknown characters become bytes, and ``<s>`` begins a text."""
    raw = tk.Tokenizer(tk.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    blank = "\u2581"
    raw.normalizer = tk.normalizers.Sequence([tk.normalizers.Prepend(blank), tk.normalizers.Replace(" ", blank)])
    raw.decoder = tk.decoders.Sequence([
        tk.decoders.Replace(blank, " "), tk.decoders.ByteFallback(), tk.decoders.Fuse(), tk.decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    raw.train_from_iterator(TEXT, tk.trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    raw.post_processor = tk.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    known = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="</s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    known.chat_template = template
    return known


def framed() -> Any:
    """An encoder's: ``<s>`` and ``</s>`` around a text."""
    raw = tk.Tokenizer(tk.models.BPE())
    raw.pre_tokenizer, raw.decoder = tk.pre_tokenizers.ByteLevel(add_prefix_space=False), tk.decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>", "<mask>"], tk.pre_tokenizers.ByteLevel.alphabet()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    raw.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save(folder: Path, kind: str, config: Any, known: Any, **generation: Any) -> Any:
    """Save a random model of the class `kind` with its tokenizer and generation settings; the model."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.08)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    known.save_pretrained(folder)
    return model


SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 12}
LAYOUTS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "GPT2": ({"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}, byte_level, CHATML),
    "Llama": (GROUPED, sentencepiece, LLAMA),
    "Qwen2": (GROUPED, byte_level, CHATML),
    "Qwen3": (GEMMA, byte_level, GENERATION),
    "Gemma": (GEMMA, sentencepiece, LLAMA),
    "Gemma2": (GEMMA | {"sliding_window": 16}, sentencepiece, LLAMA),
    "Phi": (SIZES, byte_level, CHATML),
    "Phi3": (GROUPED, sentencepiece, LLAMA),
    "Mistral": (GROUPED | {"sliding_window": 16}, sentencepiece, LLAMA),
}
"""Layout -> sizes, tokenizer, chat template."""


def causal(folder: Path, layout: str, **generation: Any) -> Any:
    """A language model of `layout`, saved in `folder`."""
    sizes, kind, template = LAYOUTS[layout]
    known = kind(template)
    ids = {f"{role}_token_id": getattr(known, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{layout}Config")(vocab_size=400, **sizes, **ids)
    name = "GPT2LMHeadModel" if layout == "GPT2" else f"{layout}ForCausalLM"
    return save(folder, name, config, known, **{"eos_token_id": [known.eos_token_id, 77], **generation})
