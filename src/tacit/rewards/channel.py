"""Messages over a socket between two processes: eight bytes of length, then the bytes, which are not read when the length is too much."""

from __future__ import annotations

import socket
import struct
import time

HEADER = struct.Struct("!Q")  # bytes that follow


def receive(channel: socket.socket, largest: int | None = None, end: float | None = None) -> bytes:
    """One message, if it comes before `end` on the monotonic clock. Raises TimeoutError; EOFError when the other side is gone; OverflowError when
    it announces more than `largest` bytes.
    """
    (size,) = HEADER.unpack(_exactly(channel, HEADER.size, end))
    if largest is not None and size > largest:
        raise OverflowError(f"answered with more than {largest} bytes")
    return _exactly(channel, size, end)


def send(channel: socket.socket, message: bytes, end: float | None = None) -> None:
    """Raises TimeoutError when the other side does not take it before `end`, another OSError when it is gone."""
    _wait_until(channel, end)
    channel.sendall(HEADER.pack(len(message)) + message)


def _exactly(channel: socket.socket, size: int, end: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        _wait_until(channel, end)
        if not (part := channel.recv(min(size - len(parts), 2**20))):
            raise EOFError
        parts += part
    return bytes(parts)


def _wait_until(channel: socket.socket, end: float | None) -> None:
    if end is not None and (left := end - time.monotonic()) > 0:
        channel.settimeout(left)
    elif end is not None:
        raise TimeoutError
