"""Checkpoints: nested state on disk, whole or not at all, exact to the bit, safetensors and JSON only (loading one runs no code).

    checkpoints/
      step-00000040/
        state.json            the nesting and all plain values; tensors appear as references
        tensors-0000.safetensors ...
        COMPLETE              sizes and checksums of the files above: written last, and without it the folder counts for nothing

A save writes a temporary folder, flushes it to the disk, renames it, and only then writes the marker; the previous checkpoint is removed
after that. Whenever the process dies or the machine loses power, the newest complete checkpoint is whole.
"""

from __future__ import annotations

import base64
import errno
import itertools
import json
import logging
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tacit.core.disk import flush

logger = logging.getLogger("tacit")

FORMAT = 1
SHARD_BYTES = 512 * 2**20  # tensors are serialised in memory, so that their checksum and any failure to write are ours to see
MARKER, SKELETON = "COMPLETE", "state.json"
FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")
TEMPORARY = ".saving-"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool)
DTYPES = frozenset(FLOATS + INTEGERS)  # what safetensors stores


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or understood; what to do about it, in one sentence."""


class Checkpoint(NamedTuple):
    step: int
    state: Any


class CheckpointStore:
    """The checkpoints of one run, of which the newest `keep` stay. One process writes (see RunDirectory's lock); any may read."""

    def __init__(self, folder: str | Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}: without a checkpoint nothing can resume")
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: Any) -> Path:
        """Writes `state` durably and returns its folder. Checkpoints of later steps belong to a course that was abandoned, and go.

        `state` nests dicts, lists and tuples of tensors, numpy arrays and scalars, str, int, float, bool, None and bytes.
        Raises TypeError naming the path of anything else, CheckpointError when the disk is full.
        """
        tensors: list[Tensor] = []
        skeleton = json.dumps(_encode(state, "state", tensors), allow_nan=False).encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(TEMPORARY + "*"):
            shutil.rmtree(stale)

        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"{TEMPORARY}{step:08d}"
        try:
            temporary.mkdir()
            files = {SKELETON: _write(temporary / SKELETON, skeleton)}
            for number, shard in enumerate(_shards(tensors)):
                name = f"tensors-{number:04d}.safetensors"
                files[name] = _write(temporary / name, save_tensors(shard))
            flush(temporary)
            _make_way(final)
            temporary.rename(final)
            _write_marker(final, {"format": FORMAT, "files": files})
            flush(self.folder)
        except BaseException as error:
            _remove(temporary)
            if not (final / MARKER).exists():
                _remove(final)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CheckpointError(self._no_space(step, len(skeleton) + sum(t.nbytes for t in tensors))) from error
            raise
        self._retire(step)
        return final

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. Torn, truncated and corrupt ones are passed over with one warning that names them."""
        damaged: list[str] = []
        found = None
        for step, folder in self._newest_first():
            try:
                found = Checkpoint(step, _read(folder))
                break
            except _Damaged as reason:
                damaged.append(f"{folder.name} ({reason})")
        if damaged:
            instead = f"step {found.step} is used instead" if found else "no other is there, so nothing can be restored"
            logger.warning("%s: damaged or unfinished checkpoint passed over: %s; %s", self.folder, ", ".join(damaged), instead)
        return found

    def read(self, step: int) -> Any:
        """The state saved at `step`. Raises CheckpointError when it is not there whole."""
        try:
            return _read(self.folder / f"step-{step:08d}")
        except _Damaged as reason:
            raise CheckpointError(f"{self.folder}: the checkpoint of step {step} cannot be read ({reason}); remove it") from reason

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first, judged by their markers."""
        return sorted({step for step, folder in self._newest_first() if (folder / MARKER).exists()})

    def _newest_first(self) -> list[tuple[int, Path]]:
        """(step, folder) of everything that looks like a checkpoint; of one step, the replaced one comes second."""
        found = [(m, path) for path in self.folder.glob("step-*") if (m := FOLDER.fullmatch(path.name))]
        found.sort(key=lambda entry: (-int(entry[0][1]), entry[0][2] or ""))
        return [(int(m[1]), path) for m, path in found]

    def _retire(self, newest: int) -> None:
        """Leaves the `keep` newest complete checkpoints up to `newest`, which has just been written."""
        kept = 0
        for step, folder in self._newest_first():
            if step <= newest and kept < self.keep and not folder.suffix and (folder / MARKER).exists():
                kept += 1
            else:
                _remove(folder)

    def _no_space(self, step: int, needed: int) -> str:
        steps = self.steps()
        stands = f"nothing was lost, the checkpoint of step {steps[-1]} is untouched" if steps else "there is no earlier checkpoint"
        free = shutil.disk_usage(self.folder).free
        return (
            f"no space left for the checkpoint of step {step} in {self.folder}: it needs {needed:,} bytes and {free:,} are free; "
            f"{stands}; make room there or choose another output"
        )


# --- files: written through to the disk, checked when read ---


class _Damaged(Exception):
    """Why a checkpoint on disk is not whole."""


def _write(path: Path, data: bytes) -> dict[str, int]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "crc32": zlib.crc32(data)}


def _write_marker(folder: Path, content: dict[str, Any]) -> None:
    temporary = folder / (MARKER + ".tmp")
    _write(temporary, json.dumps(content).encode())
    temporary.rename(folder / MARKER)
    flush(folder)


def _make_way(folder: Path) -> None:
    """Before the same step is saved again: its complete checkpoint stays readable, as .replaced, until the new one is complete."""
    if (folder / MARKER).exists():
        _remove(replaced := folder.with_name(folder.name + ".replaced"))
        folder.rename(replaced)
    else:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a checkpoint, its marker first: interrupted half-way, it is an unfinished one and not a damaged one."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> Any:
    """The state in a checkpoint folder, each file checked against the marker before it is used. Raises _Damaged."""
    skeleton: Any = None
    tensors: dict[str, Tensor] = {}
    for name, stamp in _marker(folder).items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise _Damaged(f"{name}: {error.strerror}") from error
        if {"bytes": len(data), "crc32": zlib.crc32(data)} != stamp:
            raise _Damaged(f"{name}: size or checksum is not the one written in {MARKER}")
        if name == SKELETON:
            skeleton = json.loads(data)
        else:
            tensors |= load_tensors(data)
    return _decode(skeleton, tensors)


def _marker(folder: Path) -> dict[str, dict[str, int]]:
    """{file: size and checksum} of a complete checkpoint. Raises _Damaged."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        version, files = marker["format"], dict(marker["files"])
    except FileNotFoundError:
        raise _Damaged("never finished") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{MARKER} is not readable") from error
    if version != FORMAT:
        raise _Damaged(f"in checkpoint format {version}, this version of tacit reads format {FORMAT}")
    if SKELETON not in files:
        raise _Damaged(f"{MARKER} does not list {SKELETON}")
    return files


# --- state <-> JSON skeleton and tensors ---
# JSON values stand for themselves; everything else is an object with the key "$", which says what it is.

TAG = "$"


def _encode(value: Any, path: str, tensors: list[Tensor]) -> Any:
    """The JSON form of `value`, its tensors appended to `tensors` and referred to by their number."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic):
        return {TAG: "scalar", "array": _encode(np.asarray(value), path, tensors)}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {TAG: "float", "value": repr(float(value))}
    if isinstance(value, bytes):
        return {TAG: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        tensors.append(_plain(value, path))
        return {TAG: "tensor", "at": len(tensors) - 1}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.names:
            raise TypeError(f"{path}: a checkpoint cannot hold a numpy array of dtype {value.dtype}; give it as plain lists or columns")
        raw = np.frombuffer(value.tobytes(), np.uint8)
        tensors.append(torch.from_numpy(raw.copy()))
        return {TAG: "array", "at": len(tensors) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list):
        return [_encode(item, f"{path}[{i}]", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {TAG: "tuple", "items": [_encode(item, f"{path}[{i}]", tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        items = [(key, _encode(item, f"{path}[{key!r}]", tensors)) for key, item in value.items()]
        if all(type(key) is str for key, _ in items) and TAG not in value:
            return dict(items)
        return {TAG: "dict", "items": [[_encode(key, f"{path} key {key!r}", tensors), item] for key, item in items]}
    raise TypeError(
        f"{path}: a checkpoint cannot hold a {type(value).__module__}.{type(value).__qualname__}; "
        "give it as tensors, numpy arrays, dicts, lists, tuples, str, int, float, bool, None or bytes"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(TAG):
        case None:
            return {key: _decode(item, tensors) for key, item in value.items()}
        case "tensor":
            return tensors[str(value["at"])]
        case "array":
            raw = tensors[str(value["at"])].numpy().tobytes()
            return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        case "scalar":
            return _decode(value["array"], tensors)[()]
        case "tuple":
            return tuple(_decode(item, tensors) for item in value["items"])
        case "dict":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in value["items"]}
        case "float":
            return float(value["value"])
        case "bytes":
            return base64.b64decode(value["base64"])
        case other:
            raise CheckpointError(f"this checkpoint holds a value of kind {other!r}, which this version of tacit does not know")


def _plain(tensor: Tensor, path: str) -> Tensor:
    """The tensor as dense memory on the CPU."""
    if hasattr(tensor, "full_tensor"):
        raise TypeError(f"{path}: a checkpoint cannot hold a tensor sharded over processes; gather it first")
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
        raise TypeError(f"{path}: a checkpoint cannot hold a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}")
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _shards(tensors: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors under their numbers, in groups of about SHARD_BYTES. Views and tied weights are copied: files share no memory."""
    starts = list(itertools.accumulate((t.nbytes for t in tensors), initial=0))
    for _, group in itertools.groupby(range(len(tensors)), key=lambda i: starts[i] // SHARD_BYTES):
        storages: set[int] = set()
        shard = {}
        for i in group:
            storage = tensors[i].untyped_storage().data_ptr()
            shard[str(i)] = tensors[i].clone() if storage in storages else tensors[i]
            storages.add(storage)
        yield shard
