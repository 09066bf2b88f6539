"""``bigmodel generate``: text from a language model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.arguments.options import RunOptions
from bigmodel_cli.commands.arguments.recipe_layers import checkpoint_recipe
from bigmodel_cli.commands.arguments.signatures import takes_options
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from pathlib import Path

    from bigmodel_cli.core.tasks import Generates
    from bigmodel_cli.core.types import TextSpec
    from bigmodel_cli.engine.build.load import TrainedModel

Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="Text to continue; repeat for several at once.  [default: a line break]",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Generate at most N tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0,
        help="Sampling temperature; 0 always takes the most likely token.  [default: the model's, or 0.8]",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        min=1,
        help="Sample from the K most likely tokens.  [default: the model's, or all]",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        min=0.01,
        max=1,
        help="Nucleus sampling: sample from the smallest set of tokens whose probabilities sum to P.  "
        "[default: the model's, or 1]",
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Treat each prompt as a user message and generate the reply.")]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System message of the conversation; implies --chat.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Sampling seed; the same seed repeats the text.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print text as it is generated; for one prompt.")]


@commands.register(order=90)
@takes_options("generate", device="the checkpoint's", precision="the checkpoint's")
def generate(
    *,
    checkpoint: opt.Checkpoint,
    prompts: Prompts = None,
    max_tokens: MaxTokens = 200,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    chat: Chat = False,
    system: System = None,
    seed: Seed = 0,
    stream: Stream = False,
    pretrained: opt.Pretrained = False,
    options: RunOptions,
    json: opt.Json = False,
) -> None:
    """Continue a text, or reply to a message, with a language model.

    Examples:

        bigmodel generate runs/gpt-nano-tinyshakespeare-1 --prompt "ROMEO:"

        bigmodel generate ckpt.pt --prompt "To be" --temperature 0.7 --stream

        bigmodel generate ckpt.pt --chat --prompt "Who are you?"

        bigmodel generate hf:gpt2 --pretrained --prompt "To be"
    """
    import torch

    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process

    prompts = prompts or ["\n"]
    if stream and (len(prompts) > 1 or json):
        raise InputError("--stream prints a single text", "expected one --prompt, and no --json")
    trained, task = _open_language_model(checkpoint, pretrained)
    placement = choose_placement(checkpoint_recipe(trained, options.flag_layers()).placement)
    configure_process(placement)
    model = placement.model(trained.model)
    chatting = chat or system is not None
    starts = [_conversation(prompt, system) for prompt in prompts] if chatting else list(prompts)
    sampling = _sampling(task.spec, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
    _note_cut([task.encode_prompt(start) for start in starts], model)
    output = Output([""] * len(prompts) if chatting else list(prompts), stream)
    with torch.inference_mode(), placement.autocast():
        output.collect(islice(task.generate(model, starts, **sampling, seed=seed), max_tokens))
    output.show(prompts, json)


def _open_language_model(path: Path, pretrained: bool) -> tuple[TrainedModel, Generates]:
    """The checkpoint at `path`, or with `pretrained` the model of that name, and its task.

    Raises:
        InputError: it is no language model.
    """
    from bigmodel_cli.commands.arguments.open_model import open_checkpoint
    from bigmodel_cli.core.tasks import Generates

    trained = open_checkpoint(path, pretrained, None)
    if isinstance(trained.task, Generates):
        return trained, trained.task
    what = f"{trained.path}: {trained.recipe.model.name} does {trained.task.name.replace('_', ' ')}"
    raise InputError(what, "expected a language model", f"bigmodel predict {trained.path} FILE")


def _sampling(spec: TextSpec, given: dict[str, float | None]) -> dict[str, Any]:
    """How to sample: what was given, else as the owners of published weights set it, else our own defaults."""
    from bigmodel_cli.core.tokenizers.framing import conventions

    owners = dict(conventions(spec).generation)
    if owners and not owners.pop("do_sample", True):
        owners = {"temperature": 0.0, **{k: v for k, v in owners.items() if k == "repetition_penalty"}}
    defaults: dict[str, Any] = {k: v for k, v in owners.items() if k in (*given, "repetition_penalty")}
    if "top_k" in defaults:
        defaults["top_k"] = int(defaults["top_k"]) or None  # 0 there means all
    chosen = {k: v for k, v in given.items() if v is not None}
    taken = {k: v for k, v in defaults.items() if k not in chosen and v is not None}
    if taken:
        console.note("sampling as the model's owners set it: " + ", ".join(f"{k} {v:g}" for k, v in taken.items()))
    return {"temperature": 0.8, **taken, **chosen}


def _note_cut(prompts: list[list[int]], model: Any) -> None:
    """Say where a prompt is longer than what the model reads."""
    for prompt in prompts:
        if len(prompt) >= model.context:
            kept = max(model.context - 1, 1)
            console.note(f"a prompt of {len(prompt)} tokens: only its last {kept} fit into the context")


@dataclass
class Output:
    """The texts generated so far, one per prompt; with `stream`, printed as they grow."""

    texts: list[str]
    stream: bool
    tokens: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def collect(self, steps: Iterator[list[str | None]]) -> None:
        """Append each step's piece to its text. A piece is None once its text has ended."""
        if self.stream:
            console.raw(self.texts[0])
        for pieces in steps:
            self.tokens += sum(piece is not None for piece in pieces)
            self.texts = [text + (piece or "") for text, piece in zip(self.texts, pieces, strict=True)]
            if self.stream:
                console.raw(pieces[0] or "")
            if all(piece is None for piece in pieces):
                break
        self.seconds = time.perf_counter() - self.started

    def show(self, prompts: list[str], json: bool) -> None:
        """Print the texts, unless they were streamed, and the speed."""
        rate = self.tokens / self.seconds
        for prompt, text in zip(prompts, self.texts, strict=True):
            if json:
                console.print_json({"prompt": prompt, "text": text, "tokens_per_second": rate})
            elif not self.stream:
                console.raw(text + "\n")
        if self.stream:
            console.raw("\n")
        if not json:
            console.note(f"{self.tokens} tokens in {self.seconds:.2f} s, {rate:,.0f} tokens/s")


def _conversation(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The messages up to and including the user's."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]
