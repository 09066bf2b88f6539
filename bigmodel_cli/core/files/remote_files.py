"""Files at ``s3://``, ``gs://``, ``hf://`` and other addresses of fsspec, copied whole into the cache and read there.

:mod:`.remote_writes` writes to them. Credentials come from where each service keeps them (``~/.aws``, ``gcloud auth``,
``hf auth login``, environment variables); those in an address are used and neither written nor shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from bigmodel_cli.core.addresses import full, remember
from bigmodel_cli.core.errors import BigmodelError, InputError, MachineError, service_reason
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files import drafts

SCHEMES = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "sftp", "ssh", "ftp", "webhdfs", "hdfs", "oci",
           "oss", "memory")  # fmt: skip
REMOTE = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}(?=[^/])")
LIMIT_GB, MOST_FILES = 100.0, 1_000_000
MD5 = re.compile(r'"?([0-9a-f]{32})"?')


def is_remote(text: str) -> bool:
    """Whether `text` is an address of a file or folder of fsspec; a ``Path`` of one has lost a slash."""
    return REMOTE.match(text) is not None and not (text.endswith(".tar") and any(sign in text for sign in "{*"))


def local_copy(text: str) -> Path:
    """The file or folder at the address, as of now, in the cache: copied there unless that state is there already.

    Raises:
        InputError: nothing is there, or it is larger than BIGMODEL_REMOTE_GB or too many files.
        MachineError: a package is missing, the service refuses or is not reached, or a file arrived incomplete.
    """
    address, system, root = opened(text)
    with as_public(address):
        found = files_at(system, root)
        target = _place(address, root, found)
        if not target.exists():
            _copy(address, system, found, target)
        return target


def opened(text: str) -> tuple[str, Any, str]:
    """The public form of an address, its file system of fsspec, and the path there.

    Raises:
        MachineError: a package is missing, or the service refuses.
    """
    address = str(remember(REMOTE.sub(r"\1://", text, count=1)))
    with as_public(address):
        import fsspec

        system, root = fsspec.core.url_to_fs(full(address))
    return address, system, root


@contextlib.contextmanager
def as_public(address: str) -> Iterator[None]:
    """Turn the errors of a service into ours, which name the address as it may be shown."""
    try:
        yield
    except BigmodelError:
        raise
    except ImportError as error:
        hint = install_line("remote")
        raise MachineError(f"{address}: {error.name or 'a package'} is not installed", hint=hint) from None
    except FileNotFoundError:
        raise InputError(f"{address}: nothing is there", "expected a file or a folder") from None
    except Exception as error:  # each service has errors of its own
        hint = "are its credentials set, as its own tools read them?"
        raise MachineError(f"{address}: {service_reason(error)}", hint=hint) from None


def files_at(system: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """What is below `root`, by its path there; "" for a file. Names that lead out of the folder are refused."""
    if system.isfile(root):
        return {"": system.info(root)}
    found: dict[str, Mapping[str, Any]] = {}
    for path, info in system.find(root, detail=True).items():
        name = path.removeprefix(root.rstrip("/")).lstrip("/")
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
            raise InputError(f"{root}: refused: a file called {name!r}", "expected names inside the folder")
        found[name] = info
    if not found:
        raise FileNotFoundError(root)
    total, most = sum(int(info.get("size") or 0) for info in found.values()), _limit()
    if total > most or len(found) > MOST_FILES:
        what = f"{root}: {len(found):,} files of {total / 1e9:,.1f} GB"
        raise InputError(what, f"expected at most {MOST_FILES:,} and {most / 1e9:g} GB", "BIGMODEL_REMOTE_GB=SIZE")
    return found


def _limit() -> float:
    text = os.environ.get("BIGMODEL_REMOTE_GB", str(LIMIT_GB))
    try:
        return float(text) * 1e9
    except ValueError:
        raise InputError(f"BIGMODEL_REMOTE_GB={text}", "expected a size in GB") from None


def state_of(info: Mapping[str, Any]) -> str:
    """What changes when a file does, as far as its service tells."""
    keys = ("size", "ETag", "etag", "md5Hash", "crc32c", "blob_id", "LastModified", "updated", "mtime", "created")
    return repr([str(info[key]) for key in keys if key in info])


def _place(address: str, root: str, found: Mapping[str, Mapping[str, Any]]) -> Path:
    """Where this state of it is kept; the folder or file has its own name, by which runs are called."""
    digest = hashlib.sha256(address.encode())
    for name in sorted(found):
        digest.update(f"\n{name} {state_of(found[name])}".encode("utf-8", "backslashreplace"))
    return cache_folder("remote") / digest.hexdigest()[:32] / (PurePosixPath(root.rstrip("/")).name or "root")


def cache_folder(name: str) -> Path:
    """``$BIGMODEL_CACHE/<name>``."""
    return Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel").expanduser() / name


def _copy(address: str, system: Any, found: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Copy into a draft, check each file, and let the folder appear whole."""
    place = target.parent
    place.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(int(info.get("size") or 0) for info in found.values()), shutil.disk_usage(place.parent).free
    if needed > free:
        raise MachineError(f"{address}: {needed} bytes needed, {free} free", hint="BIGMODEL_CACHE=FOLDER elsewhere")
    drafts.remove_leftovers(place.parent, lambda path: False)
    with drafts.draft(place) as draft:
        for name, info in found.items():
            path = draft / target.name / name if name else draft / target.name
            path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(info["name"], str(path))
            check_copy(address, name, info, path)
        drafts.exchange(draft, place)


def check_copy(address: str, name: str, info: Mapping[str, Any], path: Path) -> None:
    """Compare the file with the size and the checksum that its service told, where it tells one of its content."""
    size = path.stat().st_size
    if info.get("size") is not None and size != int(info["size"]):
        raise MachineError(f"{address}/{name}: {size} bytes arrived of {info['size']}", hint="try again")
    told = MD5.fullmatch(str(info.get("ETag", ""))) if info.get("type") == "file" else None
    encrypted = info.get("ServerSideEncryption", "AES256") != "AES256"  # then an ETag is no MD5 of the content
    if told is None or encrypted:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != told[1]:
        raise MachineError(f"{address}/{name}: arrived with MD5 {digest}, expected {told[1]}", hint="try again")
