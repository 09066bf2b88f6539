"""Published text models through the commands, as a user types them; transformers itself is the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from web import Answer, answering

transformers = pytest.importorskip("transformers")
import published  # noqa: E402

from bigmodel_cli.core.chat.encoding import encode_chat  # noqa: E402
from bigmodel_cli.core.errors import InputError  # noqa: E402
from bigmodel_cli.data.text.conversations import preference_file  # noqa: E402
from bigmodel_cli.engine.build.huggingface_hub import base_and_adapter  # noqa: E402
from bigmodel_cli.engine.build.load import load_trained  # noqa: E402

QUICK = ("--batch-size", "8", "--set", "placement.precision=fp32")
COMMIT = "c0ffee" * 6 + "abcd"
ASKED = "who are you?"
T5 = {
    "vocab_size": 300, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "eos_token_id": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip


Command = Callable[..., tuple[str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """``bigmodel ...`` in `tmp_path`, in this process, which has transformers loaded; what it printed, on both."""
    from bigmodel_cli.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[str, str]:
        capfd.readouterr()
        assert not app(list(arguments), standalone_mode=False)
        printed = capfd.readouterr()
        return printed.out, printed.err

    return run


def rows(file: Path, made: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in made))


def test_a_chat_model_is_tuned_preferred_asked_and_shipped_with_its_own_template(
    command: Command, tmp_path: Path
) -> None:
    published.causal(tmp_path / "chat", "Qwen2", do_sample=False)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    ends = [known.eos_token_id, 77]
    asked = known.apply_chat_template(
        [{"role": "user", "content": ASKED}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def theirs(folder: Path) -> str:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        assert model.generation_config.eos_token_id == ends
        said = model.generate(**asked, max_new_tokens=20)[0, asked.input_ids.shape[1] :]
        return str(known.decode(said, skip_special_tokens=True))

    def ours(*named: str) -> str:
        said, _ = command("generate", *named, "--chat", "--prompt", ASKED, "--max-tokens", "20", "--json")
        return str(json.loads(said)["text"])

    untrained = ours("hf:chat", "--pretrained")
    assert untrained and theirs(tmp_path / "chat").rstrip("\ufffd") == untrained
    talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "I am a model"}]
    rows(tmp_path / "a.jsonl", [{"messages": talk}] * 24)
    start = ("finetune", "hf:chat", "--pretrained", "--data", "./a.jsonl", "--lr", "1e-2", "--epochs", "8")
    command(*start, "--out", "run", *QUICK)
    assert ours("run") == "I am a model", "it ends where the template's turn does"
    better = [{"prompt": ASKED, "chosen": "we answer", "rejected": "a dull film"} for _ in range(12)]
    rows(tmp_path / "b.jsonl", better)
    said = command("finetune", "--from", "run", "--data", "./b.jsonl", "--max-steps", "4", "--out", "liked", *QUICK)
    assert "put into the model's chat template" in said[1]
    trained = load_trained(tmp_path / "liked")
    assert trained.recipe.start.method == "dpo"
    pairs = preference_file(tmp_path, trained.task.spec, path=str(tmp_path / "b.jsonl"), context=64)
    batch = pairs.load["train"]().gather(torch.tensor([0]))
    for side, learn, answer in (("tokens", "learn", "we answer"), ("rejected", "rejected_learn", "a dull film")):
        whole = [talk[0], {"role": "assistant", "content": answer}]
        ids = known.apply_chat_template(whole, return_dict=False)
        mask = encode_chat(whole, trained.task.spec)[1]
        assert batch[side][0, : len(ids)].tolist() == ids and batch[learn][0, : len(ids)].tolist() == mask
    command("export", "run", "--format", "huggingface", "--out", "ship", "--samples", "2", "--seconds", "0")
    template = (tmp_path / "chat" / "chat_template.jinja").read_text()
    assert (tmp_path / "ship" / "chat_template.jinja").read_text() == template
    assert theirs(tmp_path / "ship") == "I am a model"


def test_t5_reads_its_prefix_and_is_scored_as_sacrebleu_scores_its_own_text(command: Command, tmp_path: Path) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    known, prefix = published.framed(), "a dull "
    published.save(tmp_path / "t5", "T5ForConditionalGeneration", transformers.T5Config(**T5), known)
    settings = tmp_path / "t5" / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "num_beams": 1}))
    pairs = [(f"a fine film {i}", f"I am a model, and we answer {i % 3}") for i in range(40)]
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs))
    start = ("finetune", "hf:t5", "--pretrained", "--data", "./a.tsv", "--lr", "1e-2", "--epochs", "16")
    command(*start, "--set", f"model.prefix={prefix!r}", "--set", "data.context=32", "--out", "run", *QUICK)
    trained = load_trained(tmp_path / "run")
    texts = [source for source, _ in pairs]
    given = known([prefix + text for text in texts], padding=True, return_tensors="pt")
    assert torch.equal(trained.task.encode_texts(texts)["source"], given.input_ids)
    greedy = {"num_beams": 1, "do_sample": False, "max_new_tokens": 32, "bad_words_ids": [[0]]}
    said = known.batch_decode(trained.model.inner.generate(**given, **greedy), skip_special_tokens=True)
    wanted = sacrebleu.corpus_bleu(said[1:], [[target for _, target in pairs[1:]]]).score
    (tmp_path / "b.tsv").write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs[1:]))
    for size in ("3", "64"):
        seen, _ = command("eval", "run", "--data", "./b.tsv", "--batch-size", size, "--json")
        score = json.loads(seen)["headline"]["bleu"]["value"]
        assert score == pytest.approx(wanted, abs=0.01) and score > 1
    assert said[3] in command("predict", "run", "--text", texts[3], "--json")[0]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A hub on 127.0.0.1 that serves the folders below it as owner/NAME, and the paths that it was asked for."""
    root, asked = tmp_path / "served", list[str]()

    def answer(query: str) -> Answer:
        path = query.partition("?")[0]
        asked.append(path)
        body, _, name = b"", *[*path.removeprefix("/api/models").split("/"), "", ""][1:3]
        files = sorted(file.name for file in (root / name).glob("*")) if name else []
        if path.startswith("/api/models/owner/") and "/tree/" in path:
            sizes = {file: (root / name / file).stat().st_size for file in files}
            body = json.dumps(
                [{"type": "file", "path": f, "size": n, "oid": "a" * 40} for f, n in sizes.items()]
            ).encode()
        elif path.startswith("/api/models/owner/") and files:
            about = {"id": f"owner/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            body = json.dumps(about).encode()
        elif f"/resolve/{COMMIT}/" in path and path.rpartition("/")[2] in files:
            body = (root / name / path.rpartition("/")[2]).read_bytes()
        if not body:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        return 200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{len(body)}"'}

    with answering(answer) as address:
        yield address, root, asked


def test_an_adapter_on_the_hub_brings_its_base(
    hub: tuple[str, Path, list[str]], run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    address, root, asked = hub
    base = published.causal(root / "base", "Llama")
    tuned = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)).eval()
    for name, parameter in tuned.named_parameters():
        if "lora" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    tuned.save_pretrained(root / "tuned")
    about = json.loads((root / "tuned" / "adapter_config.json").read_text())
    (root / "tuned" / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": "owner/base"}))
    online = {"HF_ENDPOINT": address, "HF_HOME": tmp_path / "home"}
    ask = ("generate", "hf:owner/tuned", "--pretrained", "--prompt", ASKED, "--temperature", "0", "--max-tokens", "8")
    done = run_cli(*ask, "--json", variables=online)
    assert done.returncode == 0 and "merged into 2 layers of owner/base" in done.stderr, done.stderr
    known = transformers.AutoTokenizer.from_pretrained(root / "base")
    given = known(ASKED, return_tensors="pt")
    wanted = tuned.generate(**given, max_new_tokens=8, do_sample=False)
    assert json.loads(done.stdout)["text"].rstrip("\ufffd") == known.decode(wanted[0], skip_special_tokens=True).rstrip(
        "\ufffd"
    )
    assert not any(path.endswith((".py", ".bin")) for path in asked)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = base_and_adapter("owner/tuned", weights=True)
    assert [folder.parts[-3] for folder in found if folder] == ["models--owner--base", "models--owner--tuned"], (
        "both are kept"
    )


@pytest.mark.parametrize("base", ["/etc", "../base", "../../x/y"])
def test_an_adapter_from_the_hub_names_no_folder_of_this_machine(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--tuned" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    config = {"peft_type": "LORA", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="the base model of hf:owner/tuned: no such folder"):
        base_and_adapter("owner/tuned", weights=True)
