"""The address of the Hugging Face hub, and its cache on this disk."""

from __future__ import annotations

import os
from pathlib import Path

HUB = "https://huggingface.co"
HUB_TIMEOUT = 3.0  # seconds until the first answer: without a network the error should come quickly


def hub_cache() -> Path:
    """The folder in which huggingface_hub caches downloads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
