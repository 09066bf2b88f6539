"""The web page, and a content security policy that allows only its own script and style."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _policy(page: str) -> str:
    """A content security policy that allows the page's own script and style by SHA-256, and forbids everything else."""
    parts = ["default-src 'none'", "img-src blob:", "connect-src 'self'", "form-action 'self'"]
    parts += ["base-uri 'none'", "frame-ancestors 'none'"]
    for tag in ("script", "style"):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        parts.append(f"{tag}-src " + " ".join(f"'sha256-{digest}'" for digest in hashes))
    return "; ".join(parts)


POLICY = _policy(PAGE)
