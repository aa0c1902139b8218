"""The README's section on security, as it is printed there: certificate, key, server, client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.integration.served import environment

_README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
_SECTION = _README.partition("## Secure it")[2].partition("\n## ")[0]
_SERVER, _CLIENT = re.findall(r"^```bash\n(.*?)^```", _SECTION, re.DOTALL | re.MULTILINE)


def test_the_section_works_as_printed(tmp_path: Path) -> None:
    """But for the port, which may be taken here. The client has a text, and the server ends with its signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = environment()
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    server = subprocess.Popen(
        ["sh", "-ec", _SERVER.replace("50051", port)],
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
        cwd=tmp_path,
        process_group=0,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"ready 0.0.0.0:{port}\n"
        command = ["sh", "-ec", _CLIENT.replace("50051", port)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=30)
