"""An epoch of fine-tuning a BERT on rt-polarity with transformers' Trainer, validated at its end.

python trainer_texts.py MODEL_FOLDER DATA_DIR BATCH_SIZE    prints the accuracy on val as JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(found.predictions, 1) == found.label_ids).mean())}


def main(folder: str, data: Path, batch: int) -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("neg", "pos")):
        lines = (data / f"rt-polarity/rt-polarity.{name}").read_text("latin-1").splitlines()
        for i, ids in enumerate(tokenizer([line.strip() for line in lines], truncation=True)["input_ids"]):
            split = {0: "test", 1: "val"}.get(i % 10, "train")  # bigmodel's splits
            rows[split].append({"input_ids": ids, "labels": label})
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    with tempfile.TemporaryDirectory() as place:
        settings = TrainingArguments(
            place, num_train_epochs=1, per_device_train_batch_size=batch, per_device_eval_batch_size=64,
            learning_rate=5e-5, eval_strategy="epoch", report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            model, settings, train_dataset=rows["train"], eval_dataset=rows["val"],  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=accuracy,
        )  # fmt: skip
        trainer.train()
        found = [event["eval_accuracy"] for event in trainer.state.log_history if "eval_accuracy" in event][-1]
    sys.stdout.write(json.dumps({"accuracy": found}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
