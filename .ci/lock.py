"""Writes constraints.lock from a report of pip: every package that an installation takes, with its SHA-256.

python .ci/lock.py build/report.json constraints.lock
"""

import json
import sys
from pathlib import Path

HEAD = """# Every package of bigmodel[dev] with the SHA-256 of its file, for Linux x86-64 and Python 3.11: `make lock`.
# pip install --require-hashes -r constraints.lock
"""


def lock(report: dict) -> str:
    """The lines of the lock; the project itself, which has no archive, is left out."""
    lines = []
    for item in report["install"]:
        about, hashes = item["metadata"], item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" in hashes:
            lines.append(f"{about['name'].lower()}=={about['version']} --hash=sha256:{hashes['sha256']}")
        elif about["name"] != "bigmodel":
            raise SystemExit(f"{about['name']}: the index gives no SHA-256")
    return HEAD + "\n".join(sorted(lines)) + "\n"


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(lock(json.loads(Path(source).read_text(encoding="utf-8"))), encoding="utf-8")
