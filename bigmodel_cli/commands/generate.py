"""``bigmodel generate``: text from a language model."""

from __future__ import annotations

import time
from itertools import islice
from typing import Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.errors import InputError


def generate(
    checkpoint: opt.Checkpoint,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="What the text begins with; several run together.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Only among the k likeliest.")] = None,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1, help="Only among the likeliest of this sum.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Each prompt is a user's turn, and is answered.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="With --chat: what the system says first.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same text.")] = 0,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it comes (one prompt).")] = False,
    device: opt.Device = None,
    precision: opt.Precision = None,
    json: opt.Json = False,
) -> None:
    """Go on with a text: each prompt is followed by what a language model makes of it.

    Examples:

        bigmodel generate runs/gpt-nano-tinyshakespeare-1 --prompt "ROMEO:"

        bigmodel generate ckpt.pt --prompt "To be" --temperature 0.7 --top-k 40 --stream

        bigmodel generate ckpt.pt --chat --prompt "Who are you?"
    """
    import torch

    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.engine.device.placement import choose_placement
    from bigmodel_cli.engine.device.process import configure_process

    prompts = prompts or ["\n"]
    if stream and (len(prompts) > 1 or json):
        raise InputError("--stream shows one text as it comes", "expected one --prompt, and no --json")
    trained = load_trained(checkpoint)
    if not hasattr(trained.task, "continuations"):
        what = f"{trained.path}: {trained.recipe.model.name} does {trained.task.name.replace('_', ' ')}"
        raise InputError(what, "expected a language model", f"bigmodel predict {trained.path} FILE")
    recipe = opt.recipe_of(trained, {"device": device, "precision": precision}, None)
    placement = choose_placement(recipe.placement)
    configure_process(placement)
    model = placement.model(trained.model)
    asked = [_turns(prompt, system) for prompt in prompts] if chat or system is not None else list(prompts)
    texts = [""] * len(prompts) if chat or system is not None else list(prompts)
    clock, tokens = time.perf_counter(), 0
    with torch.inference_mode(), placement.autocast():
        parts = trained.task.continuations(model, asked, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if stream:
            console.raw(texts[0])
        for new in islice(parts, max_tokens):
            tokens += sum(piece is not None for piece in new)
            texts = [text + (piece or "") for text, piece in zip(texts, new, strict=True)]
            if stream:
                console.raw(new[0] or "")
            if all(piece is None for piece in new):
                break
    seconds = time.perf_counter() - clock
    for prompt, text in zip(prompts, texts, strict=True):
        if json:
            console.print_json({"prompt": prompt, "text": text, "tokens_per_second": tokens / seconds})
        elif not stream:
            console.raw(text + "\n")
    if stream:
        console.raw("\n")
    if not json:
        console.note(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} a second")


def _turns(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The conversation that a user's turn begins."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]
