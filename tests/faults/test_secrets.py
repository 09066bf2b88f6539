"""What opens an address stays out of every file and every line; a download never leaves HTTPS."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from web import Quiet, folder_served

from bigmodel_cli.core.addresses import full, public, remember, scrub
from bigmodel_cli.core.errors import BigmodelError, InputError, MachineError
from bigmodel_cli.core.files.remote_files import as_public
from bigmodel_cli.data.download import _SafeRedirects, open_url, read_url
from bigmodel_cli.data.user_data import image_huggingface
from bigmodel_cli.data.webdataset.shard_index import read_shard_index
from bigmodel_cli.data.webdataset.stream import make_index
from bigmodel_cli.engine.build import huggingface_hub

SIGNATURE, PASSWORD, TOKEN = "c0ffee5160a7e", "pa55w0rd-of-mine", "hf_T0kenOfTheEnvironment"
SECRETS = (SIGNATURE, PASSWORD, TOKEN)


class Guarded(Quiet):
    """Gives nothing without the signature and the password; /away redirects to where `away` says.

    /echo, /words and /short answer with what they were asked with, in the places of an answer that errors quote.
    """

    away = ""

    def do_GET(self) -> None:
        wanted = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        if self.path.startswith("/echo"):
            self.send_error(404, f"{self.path} {self.headers.get('Authorization')}")
        elif self.path.startswith("/words"):
            self.wfile.write(f"HTTX {self.path}\r\n\r\n".encode())
        elif self.path.startswith("/short"):
            self.send_response(200)
            self.send_header("Content-Length", "99")
            self.end_headers()
            self.wfile.write(self.path.encode())
        elif self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", self.away)
            self.end_headers()
        elif self.headers.get("Authorization") != f"Basic {wanted}" or SIGNATURE not in self.path:
            self.send_error(403)
        else:
            super().do_GET()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The signed address of an index of shards, with user and password."""
    folder = tmp_path / "served"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
            for i in range(8):
                image = io.BytesIO()
                Image.new("RGB", (16, 16), (shard * 99, i * 30, 0)).save(image, "PNG")
                for name, raw in ((f"{i}.png", image.getvalue()), (f"{i}.cls", b"ab"[i % 2 :][:1])):
                    info = tarfile.TarInfo(f"{shard}-{name}")
                    info.size = len(raw)
                    tar.addfile(info, io.BytesIO(raw))
    index = make_index(sorted(folder.glob("*.tar")), folder / "index.json")
    (folder / "index.json").write_text(json.dumps(index))
    with folder_served(folder, Guarded) as place:
        yield f"{place.replace('//', f'//me:{PASSWORD}@')}/index.json?X-Signature={SIGNATURE}"


def found_in(folder: Path) -> dict[str, list[str]]:
    """The files that hold a secret, as UTF-8 or as it may stand in an address."""
    held = {}
    for path in folder.rglob("*"):
        if path.is_file() and (secrets := [s for s in SECRETS if s.encode() in path.read_bytes()]):
            held[path.name] = secrets
    return held


def test_nothing_that_a_run_writes_or_prints_holds_a_secret(
    address: str, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    tokens = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"), TOKEN)
    variables = {**tokens, "BIGMODEL_CACHE": str(tmp_path / "cache")}
    small = ["--set", "data.size=16", "--batch-size", 8, "--max-steps", 2]
    for arguments in (
        ["train", "resnet8", "--data", address, *small, "--out", "run", "--log", "csv"],
        ["train", "--resume", "--data", address, "--max-steps", 3, "--out", "run"],
        ["eval", "run", "--set", f"data.path={address}", "--json"],
        ["eval", "run"],
        ["export", "run", "--format", "safetensors", "--set", f"data.path={address}", "--out", "exported"],
    ):
        done = run_cli(*arguments, variables=variables)
        if arguments == ["eval", "run"]:  # it knows the address only without what opens it
            assert done.returncode == 3 and "--set data.path=" in done.stderr, done.stderr
        else:
            assert done.returncode == 0, done.stderr
        assert not [s for s in SECRETS if s in done.stdout + done.stderr], arguments
    assert found_in(tmp_path / "run") == {} and found_in(tmp_path / "exported") == {}
    assert "127.0.0.1" in (tmp_path / "run/recipe.yaml").read_text()


@pytest.mark.parametrize("wrong", ["index.json?X-Signature=", "gone.json?X-Signature=", "index.json?x="])
def test_no_error_shows_a_secret(wrong: str, address: str, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    given = address.partition("index.json")[0] + wrong + SIGNATURE[::-1] + "&key=" + SIGNATURE[::-1]
    done = run_cli("train", "resnet8", "--data", given, "--out", "run")
    assert done.returncode in (2, 3) and SIGNATURE[::-1] not in done.stderr and PASSWORD not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("name", "away", "reason"),
    [
        ("echo", "", "404 Not Found"),
        ("words", "", "no answer of a web server"),
        ("short", "", "cut off at"),
        ("a b", "", "not an address"),
        ("away", "//[::1/x?X-Signature=" + SIGNATURE, "not an address"),
        ("away", "away?X-Signature=" + SIGNATURE, "redirects without end"),
        ("away", "mailto:" + SIGNATURE, "redirects to no web address"),
    ],
)
def test_what_a_server_says_is_not_repeated(
    name: str, away: str, reason: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may quote what it was asked with."""
    monkeypatch.setattr(Guarded, "away", away)
    with pytest.raises(MachineError) as caught:
        read_url(address.replace("index.json", name), 1000)
    assert reason in caught.value.line and not [s for s in SECRETS if s in caught.value.line], caught.value.line


def test_a_pinned_index_is_that_one_or_none(address: str) -> None:
    right = hashlib.sha256(read_url(address, 1 << 20)).hexdigest()
    assert read_shard_index(address, right).fingerprint == right
    with pytest.raises(InputError, match="expected the pinned index"):
        read_shard_index(address, right[::-1])


def test_an_address_in_place_of_a_path_is_shown_without_its_secrets(
    address: str, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    """A path of it has lost a slash."""
    for arguments in (["eval", address], ["data", "inspect", address], ["train", "mlp", "--out", address]):
        done = run_cli(*arguments)
        assert done.returncode == 2 and "127.0.0.1" in done.stderr, done.stderr
        assert not [s for s in SECRETS if s in done.stdout + done.stderr], done.stderr
    assert not list(tmp_path.glob("http*")), "no folder is called by it"


def test_a_plain_run_would_have_kept_it(tmp_path: Path) -> None:
    """Negative control: the search finds a secret where there is one."""
    (tmp_path / "recipe.yaml").write_text(f"path: https://host/x?sig={SIGNATURE}\n")
    assert found_in(tmp_path) == {"recipe.yaml": [SIGNATURE]}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://host/a/b.json?X-Amz-Signature=1&y=2#z", "https://host/a/b.json"),
        ("https://me:pa@ss@host:8443/a", "https://host:8443/a"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("https://host/plain", "https://host/plain"),
        ("https://[broken?sig=1", "https://[broken"),
        ("https://me:it's@host/a", "https://host/a"),
        ('https://me:"pa<ss>`@host/a', "https://host/a"),
        ("https://me:p/a?s#s@host/a?b", "https://host/a"),
        ("s3:/key:secret@bucket/x", "s3:/bucket/x"),
        ("https://host:80/a@b", "https://host:80/a@b"),
    ],
)
def test_the_public_form(given: str, shown: str) -> None:
    assert public(given) == shown and remember(given) == shown and full(shown) == given
    assert scrub(f"cannot read '{given}', sorry") == f"cannot read '{shown}', sorry"
    assert json.loads(scrub(json.dumps({"a": f"see {given}: no", "b": "me@host"}))) == {
        "a": f"see {shown}: no",
        "b": "me@host",
    }
    assert remember([given]) == [shown] and remember(f" {given}\n").strip() == shown
    assert InputError(f"{given}: refused", hint=given).hint == shown


@pytest.mark.parametrize(
    "to", ["http://example.com/x", "ftp://example.com/x", "file:///etc/passwd", "http://10.0.0.1/"]
)
def test_no_redirect_leaves_https(to: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guarded, "away", to)
    away = address.partition("?")[0].replace("index.json", "away")
    with pytest.raises(BigmodelError) as caught:
        read_url(away, 100)
    assert "refused" in str(caught.value) or "to no web address" in str(caught.value)


def test_a_redirect_from_https_to_this_machine_is_refused() -> None:
    """Plain HTTP is allowed on this machine, but not where somebody else's server sends us to."""
    import urllib.request

    request = urllib.request.Request("https://host/x")
    with pytest.raises(InputError, match="expected https"):
        _SafeRedirects().redirect_request(request, None, 302, "", {}, "http://127.0.0.1:8000/admin")
    onward = _SafeRedirects().redirect_request(request, None, 302, "", {}, "https://cdn.host/x?sig=1")
    assert onward is not None and onward.full_url == "https://cdn.host/x?sig=1"  # negative control


def test_a_password_stays_with_its_host() -> None:
    import urllib.request

    request = urllib.request.Request("https://host/x", headers={"Authorization": "Basic x"})
    request.add_header("Authorization", "Basic x")
    onward = _SafeRedirects().redirect_request(request, None, 302, "", {}, "https://elsewhere/x")
    assert onward is not None and not onward.has_header("Authorization")


def test_plain_http_elsewhere_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match="expected https"):
        open_url("http://example.com/x", 5)


class Refused(Exception):
    """As the libraries of services raise it: with the server's words, and its answer."""

    response: Any = None


def asked(service: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the service for something, which fails with `error`."""

    def fail(*given: Any, **options: Any) -> None:
        raise error

    if service == "s3://bucket/x":
        with as_public(service):
            fail()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if service == "hf:me/model":
        monkeypatch.setattr(huggingface_hub, "open_url", lambda *given: io.BytesIO(b'{"sha": "0"}'))
        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        huggingface_hub._download("me/model", [])
    monkeypatch.setattr(image_huggingface, "open_url", lambda *given: io.BytesIO(b"{}"))
    monkeypatch.setattr(image_huggingface, "_import_datasets", lambda: SimpleNamespace(load_dataset=fail))
    image_huggingface._load_from_hub("hf:me/data")


@pytest.mark.parametrize("service", ["s3://bucket/x", "hf:me/model", "hf:me/data"])
def test_what_a_service_says_is_not_repeated(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is told by its class and HTTP status, or as the system calls it."""
    answered, by_s3 = Refused(f"403: token {TOKEN}"), Refused(f"key {TOKEN}")
    answered.response = SimpleNamespace(status_code=403)
    by_s3.response = {"ResponseMetadata": {"HTTPStatusCode": 404}}
    for error, reason in (
        (answered, "Refused: 403 Forbidden"),
        (by_s3, "Refused: 404 Not Found"),
        (PermissionError(13, f"for {TOKEN}"), "PermissionError: Permission denied"),
        (ConnectionError(f"to {TOKEN}"), "ConnectionError"),
    ):
        with pytest.raises(BigmodelError) as caught:
            asked(service, error, monkeypatch)
        assert service in caught.value.line and reason in caught.value.line
        assert TOKEN not in f"{caught.value.line} {caught.value.hint}"
