"""The scripts that people write, for ``published.py``: a plain loop, fastai's recipe, transformers' Trainer."""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from typing import Any

import torch
from torch.nn import functional as F


def photos(arguments: argparse.Namespace, how: str) -> dict[str, Any]:
    """AdamW at 1e-3, batches of 32, two epochs; or fastai's ``fine_tune(2)`` written out.

    fastai's: one epoch of the frozen network at 2e-3, then two of all of it at 1e-5 to 1e-3, one-cycle each.
    """
    import timm
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    name = arguments.model.removeprefix("timm:")
    config = timm.models.get_pretrained_cfg(name)
    file = arguments.data_dir / f"weights/{config.hf_hub_id}.safetensors"
    transform = timm.data.create_transform(
        config.input_size, is_training=False, interpolation=config.interpolation, mean=config.mean, std=config.std,
        crop_pct=config.crop_pct,
    )  # fmt: skip
    sets = {split: ImageFolder(arguments.data / split, transform) for split in ("train", "test")}
    classes = len(sets["train"].classes)
    model = timm.create_model(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay={"file": str(file)})
    head = list(model.get_classifier().parameters())
    backbone = [p for p in model.parameters() if not any(p is q for q in head)]

    def train(epochs: int, groups: list[dict[str, Any]], frozen: bool, cycle: bool) -> None:
        for p in backbone:
            p.requires_grad_(not frozen)
        optimizer = torch.optim.AdamW(groups)
        loader = torch.utils.data.DataLoader(sets["train"], 32, shuffle=True, num_workers=1)
        steps = epochs * math.ceil(len(sets["train"]) / 32)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps) if cycle else None
        for _ in range(epochs):
            model.train(not frozen)
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()

    if how == "fastai":
        third = max(1, len(backbone) // 3)
        layers = [backbone[:third], backbone[third : 2 * third], [*backbone[2 * third :], *head]]
        train(1, [{"params": head, "lr": 2e-3}], True, True)
        train(2, [{"params": p, "lr": lr} for p, lr in zip(layers, (1e-5, 1e-4, 1e-3), strict=True)], False, True)
    else:
        frozen = how == "plain-frozen"
        train(2, [{"params": head if frozen else [*backbone, *head], "lr": 1e-3}], frozen, False)
    seconds = time.time() - arguments.started
    model.eval()
    with torch.inference_mode():
        loader = torch.utils.data.DataLoader(sets["test"], 32)
        right = torch.cat([model(images).argmax(1) == labels for images, labels in loader]).double()
    return {"accuracy": right.mean().item(), "n": len(right), "seconds": seconds}


def read_texts(arguments: argparse.Namespace, split: str) -> tuple[list[str], list[int]]:
    """The texts and labels of rt-polarity, or of a folder with train.csv and test.csv (``text,label``)."""
    file = arguments.data / f"{split}.csv"
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        names = sorted({row["label"] for row in rows})
        return [row["text"] for row in rows], [names.index(row["label"]) for row in rows]
    texts, labels = [], []
    for label, name in enumerate(("neg", "pos")):
        lines = (arguments.data_dir / f"rt-polarity/rt-polarity.{name}").read_text("latin-1").rstrip("\n").split("\n")
        # our fixed splits: lines 0, 10, ... are test, 1, 11, ... val
        found = [line.strip() for i, line in enumerate(lines) if {0: "test", 1: "val"}.get(i % 10, "train") == split]
        texts += found
        labels += [label] * len(found)
    return texts, labels


def texts(arguments: argparse.Namespace, how: str) -> dict[str, Any]:
    """AdamW at 5e-5 with linear warm-up, batches of 32; or a ``Trainer`` whose arguments all keep their defaults.

    Of a frozen backbone: scikit-learn's logistic regression with its defaults, on the mean of the tokens' states.
    """
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    torch.manual_seed(0)
    folder = arguments.model.removeprefix("hf:")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "test"):
        found, labels = read_texts(arguments, split)
        ids = tokenizer(found, truncation=True, max_length=arguments.tokens)["input_ids"]
        pairs = zip(ids, labels, strict=True)
        rows[split] = [{"input_ids": i, "attention_mask": [1] * len(i), "labels": label} for i, label in pairs]
    collate = transformers.DataCollatorWithPadding(tokenizer)
    if how == "plain-frozen":
        return _regression(arguments, folder, rows, collate)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    if how == "trainer":
        with tempfile.TemporaryDirectory() as place:
            settings = TrainingArguments(place, report_to=[], disable_tqdm=True, save_strategy="no")
            Trainer(model, settings, train_dataset=rows["train"], data_collator=collate).train()  # type: ignore[arg-type]
    else:
        _train(model, rows["train"], collate, arguments.epochs)
    seconds = time.time() - arguments.started
    model.eval()
    right = []
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(rows["test"], 64, collate_fn=collate):  # type: ignore[arg-type]
            right.append(model(**batch).logits.argmax(1) == batch["labels"])
    every = torch.cat(right).double()
    return {"accuracy": every.mean().item(), "n": len(every), "seconds": seconds}


def _train(model: Any, rows: Any, collate: Any, epochs: int) -> None:
    """The script everyone writes: a tenth of the steps warms up, and the rate falls to 0 in a line."""
    import transformers

    optimizer = torch.optim.AdamW(model.parameters(), 5e-5)
    loader: Any = torch.utils.data.DataLoader(rows, 32, shuffle=True, collate_fn=collate)
    steps = epochs * len(loader)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
            schedule.step()


def _regression(arguments: argparse.Namespace, folder: str, rows: Any, collate: Any) -> dict[str, Any]:
    import transformers
    from sklearn.linear_model import LogisticRegression

    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = {}
    for split in ("train", "test"):
        means = []
        with torch.inference_mode():
            for batch in torch.utils.data.DataLoader(rows[split], 64, collate_fn=collate):
                mask = batch["attention_mask"]
                states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
                means.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        found[split] = torch.cat(means).numpy(), [row["labels"] for row in rows[split]]
    fitted = LogisticRegression(max_iter=1000).fit(*found["train"])
    seconds = time.time() - arguments.started
    return {"accuracy": fitted.score(*found["test"]), "n": len(found["test"][1]), "seconds": seconds}
