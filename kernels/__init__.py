"""OpenCL sources, read with importlib.resources; this package holds no Python code."""
