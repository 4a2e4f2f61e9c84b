"""What is flushed was asked of the disk, and nothing stays open."""

from __future__ import annotations

import os

import pytest

from tacit.core.disk import flush


def test_files_and_folders_are_synced_and_closed(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, descriptor)))
    for path in (tmp_path / "a", tmp_path):
        flush(path)
        inode, descriptor = synced[-1]
        assert inode == path.stat().st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "b")
