"""Prints the table of cases and languages at the end of a run."""

from __future__ import annotations

from _pytest.terminal import TerminalReporter

_SIGNS = {"passed": "ok", "failed": "FAILED", "error": "FAILED", "skipped": "skipped"}


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """One row a case, one column a language."""
    table: dict[str, dict[str, str]] = {}
    for category, sign in _SIGNS.items():
        for report in terminalreporter.stats.get(category, ()):
            for name, value in getattr(report, "user_properties", ()):
                if name == "conformance" and (sign != "ok" or report.when == "call"):
                    case, language = value
                    table.setdefault(case, {})[language] = sign
    if not table:
        return
    languages = list(dict.fromkeys(language for row in table.values() for language in row))
    width = max(map(len, table))
    terminalreporter.section("conformance")
    terminalreporter.write_line(" ".join([f"{'case':<{width}}", *(f"{language:<8}" for language in languages)]))
    for case, row in table.items():
        cells = (f"{row.get(language, ''):<8}" for language in languages)
        terminalreporter.write_line(" ".join([f"{case:<{width}}", *cells]))
