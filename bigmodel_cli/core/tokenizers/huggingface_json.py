"""Converts our tokenizers to Hugging Face's ``tokenizer.json``, with the same ids for any text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bigmodel_cli.core.conventions import GENERATION
from bigmodel_cli.core.messages import ROLES
from bigmodel_cli.core.special_tokens import END, PAD, START, UNKNOWN
from bigmodel_cli.core.tokenizers.framing import conventions
from bigmodel_cli.core.tokenizers.tokens import target_tokenizer, tokenizer
from bigmodel_cli.core.types import TextSpec

TARGETS = "target_tokenizer.json"
"""The tokenizer of targets in a folder for transformers, which has one for both there; it is for our own use of it."""
SAMPLING = ("temperature", "top_k", "top_p")
CONFIG_IDS = ("pad_token_id", "bos_token_id", "decoder_start_token_id")
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ @system@ + message['content'] + '\\n' }}
{%- elif message['role'] == 'user' -%}{{ @user@ + message['content'] + '\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ @assistant@ }}{% generation %}{{ message['content'] }}@end@{% endgeneration %}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ @assistant@ }}{%- endif -%}
"""
"""The prefixes of our roles as a chat template; the words between @ are filled in."""


def tokenizer_json(spec: TextSpec) -> str:
    """The tokenizer in `spec` as JSON for Hugging Face's tokenizers.

    Raises:
        MachineError: the extra ``text`` is not installed.
    """
    return tokenizer(spec).to_json()


def tokenizer_config(spec: TextSpec) -> dict[str, Any]:
    """The contents of ``tokenizer_config.json``."""
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": spec.context}
    if spec.conventions is not None and spec.conventions.names:
        return plain | dict(spec.conventions.names)
    known = tokenizer(spec)
    names = {i: name for name, i in json.loads(tokenizer_json(spec))["model"]["vocab"].items()} if known.special else {}
    roles = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END}
    return plain | {role: names.get(known.special[s], s) for role, s in roles.items() if s in known.special}


def generation_settings(spec: TextSpec, config: Any) -> dict[str, Any]:
    """The contents of ``generation_config.json``: what ends a text, and the owners' settings.

    `config` is the model's own.
    """
    known, use = tokenizer(spec), conventions(spec)
    ends = list(use.ends) or ([known.special[END]] if END in known.special else [])
    settings = {key: value for key, value in config.to_dict().items() if key in CONFIG_IDS}
    if config.is_encoder_decoder and use.target_before:
        settings["forced_bos_token_id"] = use.target_before[0]
    never = known.special.get(PAD)
    if config.is_encoder_decoder and never is not None and never not in ends:
        settings["bad_words_ids"] = [[never]]
    if ends:
        settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    owners = {name: GENERATION[name](value) for name, value in use.generation}
    unused = () if owners.get("do_sample") else SAMPLING  # without effect there, and refused in a new file
    return settings | {name: value for name, value in owners.items() if name not in unused}


def chat_template(spec: TextSpec) -> str:
    """The chat template in Jinja: the published one, or one for the prefixes of the roles; empty if there is none."""
    if not spec.chat:
        return conventions(spec).template
    end = "{{ eos_token }}" if END in tokenizer(spec).special else "{{ '\\n' }}"
    filled = {role: json.dumps(prefix) for role, prefix in zip(ROLES, spec.chat, strict=True)} | {"end": end}
    return re.sub("@(\\w+)@", lambda found: filled[found[1]], TEMPLATE)


def write_tokenizer(spec: TextSpec, folder: Path) -> str:
    """Write tokenizer.json, which is returned, tokenizer_config.json and chat_template.jinja into `folder`.

    The tokenizer of targets, where it is another one, is in TARGETS.
    """
    text, template = tokenizer_json(spec), chat_template(spec)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    if (targets := target_tokenizer(spec).to_json()) != text:
        (folder / TARGETS).write_text(targets, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(spec), indent=2), encoding="utf-8")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return text
