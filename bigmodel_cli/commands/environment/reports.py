"""The checks of env-check in the forms that a CI reads: JUnit's XML, and the annotations of GitHub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bigmodel_cli.core.errors import printable
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.engine.device.check import Check


def write_junit(path: Path, checks: Sequence[Check]) -> None:
    """One test case a check; a warning passes, and says what it found."""
    failed = sum(check.status == "fail" for check in checks)
    suite = ElementTree.Element("testsuite", name="env-check", tests=str(len(checks)), failures=str(failed))
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="env-check", name=printable(check.name))
        if check.status == "fail":
            failure = ElementTree.SubElement(case, "failure", message=printable(check.value))
            failure.text = printable(check.fix or "")
        else:
            ElementTree.SubElement(case, "system-out").text = f"{check.status}: {printable(check.value)}"
    atomic_files.write_text(path, ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n")


def github_lines(checks: Sequence[Check]) -> list[str]:
    """A workflow command of GitHub Actions for each check that found a fault: an error, or a warning.

    Nobody is warned of what is merely absent, such as an optional package, unless it was required: then it is an error.
    """
    level = {"fail": "error", "warn": "warning"}
    return [
        f"::{level[check.status]} title={_property(f'env-check {check.name}')}::"
        f"{_data(check.value)} ({_data(check.fix or '')})"
        for check in checks
        if check.status == "fail" or (check.status == "warn" and not check.absent)
    ]


def _data(text: str) -> str:
    return printable(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
