"""Ctrl-C and SIGTERM, for loops that finish what they are at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tacit.core.progress import Reporter


@contextmanager
def stop_after_step(reporter: Reporter, doing: str = "stopping after this step") -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event, so that the step can end and be saved; the second interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        reporter.message(f"{doing}, which will be saved; Ctrl-C again stops at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
