"""What holds for every test: one thread, no network, no deadline that a busy machine could break."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch; children inherit it
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import socket
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("tacit", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tacit")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuses connections that leave the machine: a test that needs the network fails here, not one day when a server is down."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(str(address[0])):
            raise OSError(f"tests use no network, and this one wants to reach {address[0]}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
