"""``bigmodel serve``: an exported model behind HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.serve.model import ServedModel

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MB = 1_000_000

Export = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder that `bigmodel export` wrote.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: every one.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one, and prints it.")]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, max=1024, help="Most samples a run, and a request.")]
MaxWait = Annotated[float, typer.Option("--max-wait", min=0, max=10_000, help="Milliseconds to wait for more.")]
Queue = Annotated[int, typer.Option("--queue", min=1, max=65536, help="Most requests in work; further ones get 503.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, max=3600, help="Seconds for a body, and for an answer.")]
StopTimeout = Annotated[int, typer.Option("--stop-timeout", min=0, max=3600, help="Seconds to finish what is in work.")]
MaxMB = Annotated[float, typer.Option("--max-mb", min=0.001, max=1000, help="Largest body, in MB.")]
MaxPixels = Annotated[int | None, typer.Option("--max-pixels", min=1, help="Largest image.  [default: 64000000]")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.  [default: all]")]
AllowHost = Annotated[list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Another name it has.")]
Log = Annotated[bool, typer.Option("--log", help="A line a request on stderr.")]


@commands.register(order=120)
def serve(
    export: Export,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch: MaxBatch = 32,
    max_wait: MaxWait = 2.0,
    queue: Queue = 128,
    timeout: Timeout = 30.0,
    stop_timeout: StopTimeout = 10,
    max_mb: MaxMB = 16.0,
    max_pixels: MaxPixels = None,
    threads: Threads = None,
    allow_host: AllowHost = None,
    log: Log = False,
    json: opt.Json = False,
) -> None:
    """Serve an exported model: a page at /, POST /predict, and figures for monitoring.

    Requests that come at the same time are answered by one run of the model. Ctrl-C or
    SIGTERM ends it, once what is in work is answered.

    Examples:

        bigmodel serve shipped

        bigmodel serve shipped --port 0 --json

        bigmodel serve shipped --host 0.0.0.0 --max-batch 64 --max-wait 5
    """
    import os

    from bigmodel_cli.core.errors import MachineError
    from bigmodel_cli.core.images import MAX_PIXELS

    try:
        from bigmodel_cli.serve import server
        from bigmodel_cli.serve.app import build_app
        from bigmodel_cli.serve.model import open_model
        from bigmodel_cli.serve.service import Options, Service
        from bigmodel_cli.serve.uploads import Limits
    except ImportError as error:
        raise MachineError(f"serve needs {error.name}: {error}", hint="pip install 'bigmodel[serve]'") from None

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # what every runtime reads
    listening = server.bind(host, port)
    address, chosen = listening.getsockname()[:2]
    served = open_model(export)
    options = Options(
        limits=Limits(size=int(max_mb * MB), pixels=max_pixels or MAX_PIXELS, samples=max_batch, seconds=timeout),
        max_batch=max_batch,
        max_wait=max_wait / 1000,
        queue=queue,
        timeout=timeout,
        hosts=_hosts(address, host, allow_host or ()),
    )
    gate = build_app(Service(served, options), console.note, log)
    server.run(gate, listening, stop_timeout, _greeting(served, address, chosen, json))


def _hosts(address: str, host: str, further: Iterable[str]) -> frozenset[str] | None:
    """The names that requests may call the service by: any, where it listens to other machines and none is given."""
    names = [name.lower() for name in further]
    return frozenset([*LOOPBACK, host.lower(), *names]) if names or _local(address) else None


def _local(address: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(address).is_loopback


def _greeting(served: ServedModel, address: str, port: int, json: bool) -> Callable[[], None]:
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"

    def ready() -> None:
        if json:
            console.print_json({"url": url, "host": address, "port": port, **served.about})
            return
        console.say(url)
        console.note(f"serving {served.about['name']} ({len(served.labels)} classes); Ctrl-C stops it")
        if not _local(address):
            console.note("whoever reaches this address may use it: there is no password")

    return ready
