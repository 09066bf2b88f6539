"""``bigmodel serve``: an exported model over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.processes.call_limit import bound_calls_of_server
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.serve.model import ServedModel
    from bigmodel_cli.serve.uploads import Limits

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MB = 1_000_000
PIXELS = 32_000_000  # of an image: decoding one then takes at most 640 MB

Export = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder written by `bigmodel export`.")]
Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all interfaces.")
]
Port = Annotated[
    int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0 picks a free one and prints it.")
]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", metavar="N", min=1, max=1024, help="Largest batch, and most samples per request.")
]
MaxWait = Annotated[
    float,
    typer.Option(
        "--max-wait",
        metavar="MS",
        min=0,
        max=10_000,
        help="Milliseconds to wait for as many requests as the last run had.",
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        "--queue", metavar="N", min=1, max=65536, help="Most requests in progress; further ones are answered with 503."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.01,
        max=3600,
        help="Time limit for receiving a request, and for answering it.",
    ),
]
StopTimeout = Annotated[
    int,
    typer.Option(
        "--stop-timeout", metavar="SECONDS", min=0, max=3600, help="Time to finish requests in progress on shutdown."
    ),
]
MaxMB = Annotated[
    float, typer.Option("--max-mb", metavar="MB", min=0.001, max=1000, help="Largest request body, in megabytes.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        metavar="N",
        min=1,
        help="Largest image.  [default: 32000000]",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=1024,
        help="CPU threads.  [default: all cores]",
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Accept this Host header too; repeatable."),
]
Log = Annotated[bool, typer.Option("--log", help="Log one line per request to stderr.")]


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
    trust: opt.Trust = False,
    log: Log = False,
    json: opt.Json = False,
) -> None:
    """Serve an exported model over HTTP: a web page at /, POST /predict, and metrics.

    Concurrent requests are answered in batches. Ctrl-C or SIGTERM stops the server after the
    requests in progress.

    Examples:

        bigmodel serve shipped

        bigmodel serve shipped --port 0 --json

        bigmodel serve shipped --host 0.0.0.0 --max-batch 64 --max-wait 5
    """
    _check_dependencies()
    from bigmodel_cli.serve import server
    from bigmodel_cli.serve.app import build_app
    from bigmodel_cli.serve.service import Options, Service

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # every runtime reads it
    listening = server.bind(host, port)
    address, bound_port = listening.getsockname()[:2]
    served = _open(export, trust)
    options = Options(
        limits=_limits(max_mb, max_pixels, max_batch, timeout),
        max_batch=max_batch,
        max_wait=max_wait / 1000,
        queue=queue,
        timeout=timeout,
        hosts=_allowed_hosts(address, host, allow_host or ()),
    )
    app = build_app(Service(served, options), console.note, log)
    server.run(app, listening, stop_timeout, _announcement(served, address, bound_port, json))


def _open(export: Path, trust: bool) -> ServedModel:
    from bigmodel_cli.commands.arguments.open_model import say_if_needless
    from bigmodel_cli.core.registry import exports
    from bigmodel_cli.serve.decoders import share_freed_memory
    from bigmodel_cli.serve.model import open_model

    share_freed_memory()
    bound_calls_of_server(console.error)
    served = open_model(export, trust)
    say_if_needless(trust, export, exports.get(served.about["format"]))
    return served


def _check_dependencies() -> None:
    from bigmodel_cli.core.errors import MachineError

    try:
        from bigmodel_cli.serve import app, server  # noqa: F401
    except ImportError as error:
        raise MachineError(f"serve needs {error.name}: {error}", hint=install_line("serve")) from None


def _limits(max_mb: float, max_pixels: int | None, samples: int, seconds: float) -> Limits:
    """The limits of one request."""
    from bigmodel_cli.serve.uploads import Limits

    return Limits(size=int(max_mb * MB), pixels=max_pixels or PIXELS, samples=samples, seconds=seconds)


def _allowed_hosts(address: str, host: str, further: Iterable[str]) -> frozenset[str] | None:
    """The Host headers to accept; None, for any, where other machines can connect and no name was given."""
    names = [name.lower() for name in further]
    return frozenset([*LOOPBACK, host.lower(), *names]) if names or _is_loopback(address) else None


def _is_loopback(address: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(address).is_loopback


def _announcement(served: ServedModel, address: str, port: int, json: bool) -> Callable[[], None]:
    """What to print once the server accepts connections."""
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"

    def ready() -> None:
        if json:
            console.print_json({"url": url, "host": address, "port": port, **served.about})
            return
        console.say(url)
        console.note(f"serving {served.about['name']} ({served.outputs:,} {served.kind.noun}); press Ctrl-C to stop")
        if not _is_loopback(address):
            console.note("anyone who can reach this address can use the model: there is no authentication")

    return ready
