"""The model in the box, which is served where no other is named."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

# The engine maps the file, so it needs a path of its own: a wheel that was installed gives it one.
BUNDLED_MODEL = Path(str(files(__name__) / "clforge-tiny.gguf"))
