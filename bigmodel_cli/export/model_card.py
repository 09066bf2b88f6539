"""MODEL_CARD.md: what to know about a model before using it (Mitchell et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.core.markdown import code_block, code_span, markdown
from bigmodel_cli.core.privacy import NOT_ACCOUNTED
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.export.folder import ExportFolder
from bigmodel_cli.metrics.reading import format_interval, is_share
from bigmodel_cli.tasks.answers import Answer, answer_kind, default_answer

MAX_CLASSES = 50

HOW = ("method", "final")
"""Keys of a compression step that are not its options."""


def model_card(folder: ExportFolder) -> str:
    """Markdown with the front matter that model hubs read; every number comes from the folder's own files."""
    parts = (_front, _about, _privacy, _figures, _limits, _recipe)
    return "\n".join(line for part in parts for line in part(folder)) + "\n"


def _front(folder: ExportFolder) -> Iterator[str]:
    about = folder.about
    tag = tasks.get(about["task"]).meta.get("pipeline_tag", about["task"])
    yield from ("---", "library_name: bigmodel", f"pipeline_tag: {tag}")
    yield from ("tags:", f"- {about['format']}", f"- {json.dumps(about['arch'])}", "---", "")


def _about(folder: ExportFolder) -> Iterator[str]:
    about, data = folder.about, folder.about["recipe"]["data"]
    yield from (f"# {markdown(about['arch'])} on {markdown(data['name'])}", "")
    task = markdown(about["task"].replace("_", " "))
    yield f"A model for {task}, exported as {about['format']} by {markdown(about['made_by'])}."
    if (folder.path / "example.py").exists():
        yield "`example.py` runs it; `preprocess.json` describes how to prepare its input."
    for step in about.get("compressed", []):
        options = ", ".join(f"{key} {value}" for key, value in step.items() if key not in HOW)
        yield f"Compressed by {code_span(step['method'])}" + (f" ({markdown(options)})." if options else ".")
    yield from ("", "## Data", "", f"- data set: {markdown(data['name'])}")
    if data.get("path"):
        yield f"- from: {markdown(Path(data['path']).name)}"
    yield from (f"- {markdown(name)}: {markdown(value)}" for name, value in about.get("data", {}).items())
    yield from (
        (f"- {len(folder.labels)} {_answer(folder).noun}: {_first_labels(folder.labels)}",) if folder.labels else ()
    )


def _privacy(folder: ExportFolder) -> Iterator[str]:
    """What was spent, and what it says, if the model was trained privately."""
    spent = folder.about.get("privacy")
    if not isinstance(spent, Mapping):
        return
    yield from ("", "## Privacy", "", "Trained with differential privacy (DP-SGD, Poisson sampling):", "")
    yield f"- at most epsilon {spent['epsilon']:g} at delta {spent['delta']:g} over the whole run"
    yield f"- epsilon {spent['spent']:.3g} by the {spent['steps']:,} steps of this checkpoint ({spent['accountant']})"
    yield f"- noise multiplier {spent['noise']:.4g}, norm of a sample's gradient at most {spent['clip_norm']:g}"
    yield "- it protects each sample of the training split, not what several samples have in common"
    yield f"- {NOT_ACCOUNTED}"
    if not spent["secret"]:
        yield "- **noise and sampling came from a seed in the recipe: nothing is hidden from who reads it**"


def _answer(folder: ExportFolder) -> Answer:
    named = tasks.get(folder.about["task"]).meta.get("answers")
    return answer_kind(named or default_answer(folder.spec), folder.spec)


def _first_labels(labels: tuple[str, ...]) -> str:
    shown = ", ".join(markdown(json.dumps(label, ensure_ascii=False)) for label in labels[:MAX_CLASSES])
    return shown + (", ... (labels.json has all)" if len(labels) > MAX_CLASSES else "")


def _figures(folder: ExportFolder) -> Iterator[str]:
    proof = folder.proof
    yield from ("", "## Metrics", "", f"On {proof['inputs']} samples of the validation split, with 95% intervals:", "")
    yield from ("| metric | checkpoint | this export |", "|---|---|---|")
    ours, theirs = (proof["metrics"][which] for which in ("checkpoint", "export"))
    for name in ours:
        yield f"| {markdown(name)} | {format_interval(name, ours[name])} | {format_interval(name, theirs[name])} |"
    # What is quantized differs by more than any limit for fp32: its metrics above are what counts.
    limit = "no limit was set" if proof["tolerance"] is None else f"at most {proof['tolerance']:g} was allowed"
    if folder.about.get("compressed") and proof["tolerance"] is None:
        for name in filter(is_share, ours):
            lost = 100 * (ours[name]["value"] - theirs[name]["value"])
            yield from (
                "",
                f"Quantization cost {lost:.2f} percentage points of {markdown(name.replace('_', ' '))} here.",
            )
    yield from (
        "",
        f"Largest difference of a logit {proof['largest_difference']:.2g}, {limit}; "
        f"equal answers {proof['equal_answers']:.2%}. `proof.json` has the speed and the size too.",
    )


def _limits(folder: ExportFolder) -> Iterator[str]:
    spec = folder.about["input"]
    yield from ("", "## Limits", "")
    yield f"- {_answer(folder).limit}"
    yield "- The metrics hold for data like the validation split. The test split was not used for them."
    if spec["kind"] == "image":
        channels = "grey" if spec["channels"] == 1 else "colour"
        yield f"- It sees {spec['height']} x {spec['width']} pixels, {channels}; finer detail is lost."
    personal = folder.entry.meta.get("personal")
    if personal and (folder.path / personal).is_file():
        yield f"- `{personal}` holds what each user did: it is personal data."
    if folder.entry.meta.get("check") is None:
        yield "- The file can hold code: run it only where you trust who made it (`--trust`)."


def _recipe(folder: ExportFolder) -> Iterator[str]:
    import yaml

    recipe = {k: dict(v) for k, v in folder.about["recipe"].items()}
    for key in ("dir", "path"):  # do not publish local paths
        if recipe["data"].get(key):
            recipe["data"][key] = Path(recipe["data"][key]).name
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    yield from ("", "## Recipe", "", code_block(text, "yaml"), "", "## Digests", "")
    checkpoint: Mapping[str, Any] = folder.about.get("checkpoint", {})
    yield from (f"- checkpoint {markdown(name)}: {code_span(value)}" for name, value in checkpoint.items())
    yield from (f"- SHA-256 of {code_span(name)}: {code_span(value)}" for name, value in folder.files.items())
