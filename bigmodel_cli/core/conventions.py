"""How the owners of published text models use them: special tokens, what stands around a text, the chat template."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bigmodel_cli.core.errors import InputError

MAX_TEMPLATE = 1 << 18  # characters; the longest templates of public models have some 20,000
GENERATION = {
    "do_sample": bool, "temperature": float, "top_k": int, "top_p": float, "repetition_penalty": float,
    "max_new_tokens": int, "num_beams": int,
}  # fmt: skip
"""The settings of a generation_config.json that are used, and their types: a checkpoint holds all as numbers."""
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Conventions:
    """What the files beside published weights say on their use, as plain values.

    Args:
        special: our name of a special token (``<pad>``) and its id, where the owners name one.
        names: a role in the chat template (``bos_token``) and the text of its token.
        before: ids that stand before every text, such as the beginning-of-sequence token.
        after: ids that stand after every text; a text to continue has none.
        target_before: of a sequence-to-sequence model, ids that every target begins with.
        target_after: ids that every target ends with.
        prefix: text that stands before every source, such as T5's "translate English to German: ".
        ends: the ids that end a generation.
        template: the chat template, in Jinja; empty if there is none.
        generation: settings of ``generate``, of those in :data:`GENERATION`.
    """

    special: tuple[tuple[str, int], ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    before: Ids = ()
    after: Ids = ()
    target_before: Ids = ()
    target_after: Ids = ()
    prefix: str = ""
    ends: Ids = ()
    template: str = ""
    generation: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The values as stored in a checkpoint, with lists for tuples."""

        def plain(value: Any) -> Any:
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {key: plain(value) for key, value in asdict(self).items()}

    def check(self) -> None:
        """Check the values, which may come from an untrusted checkpoint.

        Raises:
            InputError: one is out of range.
        """
        ids = [*self.before, *self.after, *self.target_before, *self.target_after, *self.ends]
        ids += [i for _, i in self.special]
        if len(ids) > 1000 or any(not 0 <= i < 1 << 21 for i in ids):
            raise InputError("input.conventions: a token id out of range", "expected ids of the vocabulary")
        if len(self.template) > MAX_TEMPLATE:
            raise InputError(f"a chat template of {len(self.template)} characters", f"expected at most {MAX_TEMPLATE}")
        unknown = [name for name, value in self.generation if name not in GENERATION or not math.isfinite(value)]
        if unknown:
            raise InputError(
                f"input.conventions: generation setting {unknown[0][:40]!r}", "one of " + ", ".join(GENERATION)
            )
