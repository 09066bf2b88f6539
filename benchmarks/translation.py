"""Translation models of transformers on real text: fine-tuned by our commands, beside our transformer and a plain loop.

    python benchmarks/translation.py DATA_DIR [--steps N] [--rows marian t5 transformer marian-plain t5-plain]

DATA_DIR holds multi30k-en-de. Published weights are not needed: a Marian and a T5 are made with random weights, two
layers on either side and a SentencePiece tokenizer of the training texts, and saved as their owners save theirs. Each
row trains for the same steps of 32 pairs, about ten minutes on a core. The oracle of our answers is ``generate`` of
transformers on the exported folder, with the tokenizer that the model was saved with; of our BLEU, sacrebleu of that.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from published import COMMAND, run, say

PAIRS, PIECES, CONTEXT = 32, 3000, 64
LAYERS, WIDTH, FFN = 2, 128, 256
RATES = {"marian": 2e-3, "t5": 3e-3, "transformer": 3e-3}
ROWS = ("marian", "t5", "transformer", "marian-plain", "t5-plain")
SENTENCE = "Two dogs are running through the snow."


def lines(data_dir: Path, split: str, language: str) -> list[str]:
    with gzip.open(data_dir / f"multi30k-en-de/{split}.{language}.gz", "rt", encoding="utf-8") as file:
        return file.read().strip("\n").split("\n")


def pieces(file: Path, texts: list[str], size: int, **options: Any) -> list[str]:
    """Train the SentencePiece model `file`; its pieces."""
    import sentencepiece

    prefix = str(file.with_suffix(""))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=prefix, vocab_size=size, minloglevel=2, **options
    )
    Path(f"{prefix}.model").rename(file)
    known = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [known.id_to_piece(i) for i in range(known.get_piece_size())]


def make(kind: str, folder: Path, data_dir: Path) -> None:
    """A model of `kind` with random weights, and its tokenizer, as ``save_pretrained`` writes them."""
    import transformers

    folder.mkdir(parents=True)
    english, german = (lines(data_dir, "train", language) for language in ("en", "de"))
    torch.manual_seed(0)
    if kind == "t5":
        spiece = folder / "spiece.model"
        pieces(spiece, english + german, PIECES - 100, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        transformers.T5Config(vocab_size=PIECES).save_pretrained(folder)
        known = transformers.AutoTokenizer.from_pretrained(folder)
        config: Any = transformers.T5Config(
            vocab_size=PIECES, d_model=WIDTH, d_kv=WIDTH // 4, d_ff=FFN, num_layers=LAYERS, num_heads=4,
            decoder_start_token_id=0,
        )  # fmt: skip
        model: Any = transformers.T5ForConditionalGeneration(config)
    else:
        both = pieces(folder / "source.spm", english, PIECES // 2)
        both += pieces(folder / "target.spm", german, PIECES // 2)
        own = [piece for piece in dict.fromkeys(both) if piece not in ("<s>", "</s>", "<unk>")]
        ids = {piece: i for i, piece in enumerate(["</s>", "<unk>", *own, "<pad>"])}
        (folder / "vocab.json").write_text(json.dumps(ids))
        files = {"source_spm": "source.spm", "target_spm": "target.spm", "vocab": "vocab.json"}
        places = {role: str(folder / name) for role, name in files.items()}
        known = transformers.MarianTokenizer(**places, source_lang="en", target_lang="de")
        config = transformers.MarianConfig(
            vocab_size=len(ids), d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=FFN, decoder_ffn_dim=FFN, pad_token_id=ids["<pad>"],
            decoder_start_token_id=ids["<pad>"], eos_token_id=0, forced_eos_token_id=0, scale_embedding=True,
            init_std=WIDTH**-0.5,  # Marian's 0.02 is for widths of 512 and more: here it leaves the source unread
        )  # fmt: skip
        model = transformers.MarianMTModel(config)
        model.generation_config.bad_words_ids = [[ids["<pad>"]]]
    model.generation_config.num_beams = 1
    model.save_pretrained(folder)
    known.save_pretrained(folder)


def train(kind: str, arguments: argparse.Namespace, place: Path, out: str) -> dict[str, Any]:
    """Train with our commands; seconds and peak memory."""
    data = ["--data", "multi30k-en-de", "--data-dir", str(arguments.data_dir.resolve())]
    length = ["--batch-size", str(PAIRS), "--lr", str(RATES[kind]), *epochs(arguments.steps)]
    length += ["--precision", "fp32", "--set", "schedule.warmup=0.15", "--set", "loss.label_smoothing=0.1"]
    if kind == "transformer":
        sizes = {"layers": LAYERS, "heads": 4, "width": WIDTH, "inside": FFN, "dropout": 0.1}
        what = ["train", kind, "--set", f"data.vocabulary={PIECES}"]
        what += [part for key, value in sizes.items() for part in ("--set", f"model.{key}={value}")]
    else:
        what = ["finetune", f"hf:{place / kind}", "--pretrained"]
    _, seconds, peak = run([*COMMAND, *what, *data, *length, "--out", out], ".")
    return {"seconds": seconds, "peak": peak}


def ours(kind: str, arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Train, evaluate, translate and export with our commands, then ask the oracle. A finished run is kept."""
    out = str(place / f"{kind}-run")
    if kind != "transformer" and not (place / kind).exists():
        make(kind, place / kind, arguments.data_dir)
    result = {} if (place / f"{kind}-run/best.pt").exists() else train(kind, arguments, place, out)
    said, _, _ = run([*COMMAND, "eval", out, "--split", "test", "--json"], ".")
    found = json.loads(said)
    bleu = found["headline"]["bleu"]
    result |= {"bleu": bleu["value"], "low": bleu["low"], "high": bleu["high"]}
    if kind == "transformer":
        return result
    test = lines(arguments.data_dir, "test_2016_flickr", "en")
    (place / "test.txt").write_text("".join(f"{line}\n" for line in test), encoding="utf-8")
    said, _, _ = run([*COMMAND, "predict", out, str(place / "test.txt"), "--json"], ".")
    answers = [json.loads(line)["text"] for line in said.splitlines()]
    shipped = place / f"{kind}-shipped"
    run([*COMMAND, "export", out, "--format", "huggingface", "--seconds", "0", "--out", str(shipped)], ".")
    theirs = greedy(shipped, place / kind, test)
    same = sum(a == b for a, b in zip(answers, theirs, strict=True))
    result |= {"same": f"{same:,} of {len(test):,}", "oracle": bleu_of(theirs, arguments.data_dir)}
    return {**result, "val_loss": val_loss(shipped, place / kind, arguments.data_dir)}


def epochs(steps: int) -> list[str]:
    """Flags for so many optimizer steps over the 29,000 pairs."""
    return ["--max-steps", str(steps), "--epochs", str(-(-steps // -(-29_000 // PAIRS)))]


def greedy(folder: Path, tokenizer: Path, sources: list[str]) -> list[str]:
    """The translations that transformers' own ``generate`` gives, with our limit: 50 tokens more than the source."""
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    known = transformers.AutoTokenizer.from_pretrained(tokenizer)
    found = []
    for i in range(0, len(sources), 50):
        batch = known(sources[i : i + 50], padding=True, return_tensors="pt")
        limits = (batch["attention_mask"].sum(1) + 50).tolist()
        out = model.generate(**batch, max_new_tokens=max(limits), num_beams=1, do_sample=False)
        rows = [row[1 : limit + 1] for row, limit in zip(out.tolist(), limits, strict=True)]
        found += known.batch_decode(rows, skip_special_tokens=True)
    return found


def val_loss(folder: Path, tokenizer: Path, data_dir: Path) -> float:
    """Nats per target token on val, by transformers' own tokenizer and model."""
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    known = transformers.AutoTokenizer.from_pretrained(tokenizer)
    sides = [lines(data_dir, "val", language) for language in ("en", "de")]
    total, tokens = 0.0, 0
    for i in range(0, len(sides[0]), 50):
        sources, targets = (side[i : i + 50] for side in sides)
        batch = known(sources, text_target=targets, padding=True, return_tensors="pt")
        labels = batch["labels"].masked_fill(batch["labels"] == known.pad_token_id, -100)
        with torch.inference_mode():
            loss = model(**{**batch, "labels": labels}).loss
        count = int((labels >= 0).sum())
        total, tokens = total + float(loss) * count, tokens + count
    return total / tokens


def bleu_of(answers: list[str], data_dir: Path) -> float:
    import sacrebleu

    return sacrebleu.corpus_bleu(answers, [lines(data_dir, "test_2016_flickr", "de")]).score


def plain(kind: str, arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """The loop that people write: shuffled batches, AdamW, one-cycle, label smoothing; no texts of similar length."""
    import transformers

    folder = place / kind
    if not folder.exists():
        make(kind, folder, arguments.data_dir)
    known = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    sides = [lines(arguments.data_dir, "train", language) for language in ("en", "de")]
    rows = known(sides[0], text_target=sides[1], truncation=True, max_length=CONTEXT)
    pairs = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    collate = transformers.DataCollatorForSeq2Seq(known, model)
    with tempfile.TemporaryDirectory() as out:
        settings = transformers.Seq2SeqTrainingArguments(
            out, per_device_train_batch_size=PAIRS, max_steps=arguments.steps, learning_rate=RATES[kind],
            warmup_steps=0.15, lr_scheduler_type="linear", weight_decay=0.01, label_smoothing_factor=0.1,
            max_grad_norm=0.0, report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True,
        )  # fmt: skip
        trainer = transformers.Seq2SeqTrainer(model, settings, train_dataset=pairs, data_collator=collate)  # type: ignore[arg-type]
        trainer.train()
    model.save_pretrained(place / "plain")
    answers = greedy(place / "plain", folder, lines(arguments.data_dir, "test_2016_flickr", "en"))
    found = {"bleu": bleu_of(answers, arguments.data_dir)}
    return {**found, "val_loss": val_loss(place / "plain", folder, arguments.data_dir)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--work", type=Path, help="where to keep models and runs; default: nowhere")
    arguments = parser.parse_args()
    for row in arguments.rows:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) if arguments.work is None else arguments.work / row
            place.mkdir(parents=True, exist_ok=True)
            kind = row.removesuffix("-plain")
            found = (ours if kind == row else plain)(kind, arguments, place.resolve())
        say(json.dumps({"row": row, "steps": arguments.steps, **found}))


if __name__ == "__main__":
    main()
