"""The scripted endpoint of the client's tests serves here as well."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("scripted_endpoint", Path(__file__).parents[1] / "clients" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
server = _module.server
