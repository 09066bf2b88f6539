"""Debian's chromium without a window, steered by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. `complaints` collects what the browser's console says of errors and of its security policy."""

    def __init__(self, profile: Path, width: int = 1000, height: int = 900, dark: bool = False) -> None:
        from websockets.sync.client import connect

        assert CHROMIUM is not None
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        found = next(line for line in self.process.stderr if "DevTools listening on" in line)
        self._ids, self.complaints = itertools.count(1), []
        self._open = contextlib.ExitStack()
        self._socket: Any = self._open.enter_context(connect(found.split()[-1], max_size=None))
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = session
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self(f"{domain}.enable")
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    _session: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()
        self.process.terminate()
        self.process.wait(20)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._ids)
        request: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(request | ({"sessionId": self._session} if self._session else {})))
        while (said := json.loads(self._socket.recv(timeout=30))).get("id") != number:
            if said.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(said["params"]))
        assert "error" not in said, said
        return dict(said["result"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        result = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """The first value of `script` that JavaScript takes for true."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"(found => found instanceof Node || found)({script})")):
            assert time.monotonic() < end, f"never: {script}\n{self.run('document.body.innerText')}\n{self.complaints}"
            time.sleep(0.05)
        return value

    def drop(self, files: list[Path], x: int, y: int) -> None:
        """Files dragged from the desktop and dropped at (x, y)."""
        data = {"items": [], "files": [str(f) for f in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def key(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        more = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self("Input.dispatchKeyEvent", type="keyDown", text=text, **more)
        self("Input.dispatchKeyEvent", type="keyUp", **more)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))
