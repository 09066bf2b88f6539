"""A recommender as it is shipped: vectors, an index of them, what users have seen; and the service that reads them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from serving import started

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.export.item_index import ItemIndex, recall
from bigmodel_cli.export.retrieval import HISTORIES, read_histories


def last_line(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_vectors_rank_as_predict_does_in_proof_index_and_service(run_cli: Run, tmp_path: Path) -> None:
    lines = [f"u{u},i{(3 * u + t) % 20},{t}" for u in range(40) for t in range(8)]
    (tmp_path / "a.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    train = ("train", "two-tower", "--data", "./a.csv", "--epochs", "3", "--set", "data.context=6", "--out", "run")
    assert run_cli(*train, "--set", "placement.precision=fp32", "--set", "placement.device=cpu").returncode == 0
    indexed = importlib.util.find_spec("faiss") is not None
    options = ("--set", "export.index=faiss") if indexed else ()
    proof = last_line(
        run_cli(
            "export", "run", "--format", "retrieval", "--out", "run-retrieval", *options, "--seconds", "0", "--json"
        )
    )
    assert proof["passed"] and proof["largest_difference"] <= 1e-4 and proof["example"]["answer"]
    assert proof["further"]["search"] == ("faiss" if indexed else "exact")
    shipped = tmp_path / "run-retrieval"
    program = (
        "import sys, pathlib; from bigmodel_cli.serve.model import open_model; open_model(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules", str(shipped)], check=True)
    said = last_line(run_cli("predict", "run", "--user", "u7", "--top", "5", "--json"))
    service = started(shipped, tmp_path / "log", *(["--trust"] if indexed else []))
    try:
        assert service.ask("GET", "/model").json["search"] == ("index" if indexed else "exact")
        for reply in (service.ask("GET", "/recommend?user=u7&top=5"), service.ask("POST", "/predict?top=5",
                                                                              json.dumps({"user": "u7"}))):  # fmt: skip
            (found,) = reply.json["predictions"]
            assert [row["item"] for row in found["top"]] == [row["item"] for row in said["top"]]
            assert [row["score"] for row in found["top"]] == pytest.approx(
                [row["score"] for row in said["top"]], abs=1e-3
            )
        new = service.ask("GET", "/recommend?history=i3,i4&top=20").json["predictions"][0]["top"]
        assert len(new) == 18 and not {"i3", "i4"} & {row["item"] for row in new}
        for query, status in (("user=nobody", 404), ("history=i3,none", 404), ("", 400), ("user=u7&top=0", 400)):
            assert service.ask("GET", f"/recommend?{query}").status == status
        for body in ("[]", '{"user": "u7", "more": 1}', '{"history": "i3"}', '{"history": [[]]}', "nonsense"):
            assert service.ask("POST", "/recommend", body).status == 400
    finally:
        assert service.stop() == 0
    (shipped / "items.safetensors").write_bytes(b"damaged")
    assert run_cli("serve", str(shipped)).returncode == 2


def test_recall_is_the_share_of_the_nearest_that_is_found() -> None:
    vectors, queries = np.eye(4, dtype=np.float32), np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    answers = np.array([[0, 1], [3, 0]])
    assert recall(ItemIndex("", lambda q, n: answers), queries, vectors, 2) == 0.75
    assert recall(ItemIndex("", lambda q, n: np.full((2, 2), -1)), queries, vectors, 2) == 0
    tied = np.ones((4, 4), np.float32)
    assert recall(ItemIndex("", lambda q, n: answers), queries, tied, 2) == 1, "any of equal items is as good"


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 2, 3], [0, 2], []])
def test_damaged_histories_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    from safetensors.torch import save_file

    held = {"values": torch.arange(3), "offsets": torch.tensor(offsets, dtype=torch.int64)}
    save_file(held, str(tmp_path / HISTORIES))
    with pytest.raises(InputError, match="damaged"):
        read_histories(tmp_path)
