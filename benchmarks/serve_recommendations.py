"""How long `bigmodel serve` takes to answer /recommend: every user of MovieLens 100K, one request after the other.

python benchmarks/serve_recommendations.py --data-dir DIR [--requests N]

Trains two-tower for one epoch (the time does not depend on the weights), exports it as `retrieval`, and asks over one
connection, as a service behind a proxy is asked. Prints the median and other quantiles in milliseconds.
"""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

USERS = 943
COMMAND = [sys.executable, "-m", "bigmodel_cli"]


def bigmodel(*arguments: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def ask(address: str, requests: int) -> list[float]:
    """Seconds of each request, after a hundred to warm up; every user in turn."""
    connection = http.client.HTTPConnection(address)
    seconds = []
    for i in range(requests + 100):
        started = time.perf_counter()
        connection.request("GET", f"/recommend?user={i % USERS + 1}&top=10")
        reply = connection.getresponse()
        body = reply.read()
        seconds.append(time.perf_counter() - started)
        if reply.status != 200:
            raise SystemExit(body.decode())
    return sorted(seconds[100:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, shipped = str(Path(folder) / "run"), str(Path(folder) / "shipped")
        data = ("--data-dir", arguments.data_dir)
        bigmodel("train", "two-tower", "--data", "movielens-100k", *data, "--epochs", "1", "--out", run)
        bigmodel("export", run, "--format", "retrieval", *data, "--seconds", "0", "--out", shipped)
        service = subprocess.Popen([*COMMAND, "serve", shipped, "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert service.stdout is not None
            address = urlsplit(service.stdout.readline().strip()).netloc
            seconds = ask(address, arguments.requests)
        finally:
            service.terminate()
            service.wait()
    shown = ", ".join(f"p{q} {seconds[len(seconds) * q // 100] * 1e3:.2f} ms" for q in (50, 95, 99))
    sys.stdout.write(f"/recommend, {len(seconds):,} requests of {USERS} users: {shown}\n")


if __name__ == "__main__":
    main()
