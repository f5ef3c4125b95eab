"""The coerced copy of a received file: header rewritten, everything from Pixel Data on copied byte by byte."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from broker.archive.part10 import data_set_offset
from broker.archive.store import chunks, hash_of
from broker.errors import Unsupported

PIXELS = 0x7FE00000  # group 7FE0; text behind it (private groups only) keeps its bytes


def digests(file: BinaryIO) -> tuple[str, str]:
    """SHA-256 (hex) of the data set and of the whole file."""
    offset = data_set_offset(file)
    file.seek(0)
    prefix = file.read(offset)
    whole, dataset = hashlib.sha256(prefix), hashlib.sha256()
    for chunk in chunks(file):
        whole.update(chunk)
        dataset.update(chunk)
    return dataset.hexdigest(), whole.hexdigest()


def render(
    source: BinaryIO, target: Path, transfer_syntax: str, change: Callable[[Dataset], Dataset], header_bytes_max: int
) -> str | None:
    """Write `source` as `change` wants it; the new file's SHA-256 (hex), or None where nothing changes.

    header_bytes_max: what may be loaded: everything but the pixels. Over it: Unsupported."""
    offset = data_set_offset(source)
    implicit, little = transfer_syntax == ImplicitVRLittleEndian, transfer_syntax != ExplicitVRBigEndian
    source.seek(offset)
    ds = read_dataset(source, implicit, little, stop_when=_until_pixels(source, header_bytes_max))
    pixels = source.tell()
    changed = change(ds)
    if changed is ds:
        return None
    source.seek(0)
    with target.open("xb") as file:
        file.write(source.read(offset))
        writer = DicomFileLike(file)
        writer.is_implicit_VR, writer.is_little_endian = implicit, little
        write_dataset(writer, changed)
        source.seek(pixels)
        for chunk in chunks(source):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    with target.open("rb") as file:
        return hash_of(file)


def _until_pixels(file: BinaryIO, header_bytes_max: int) -> Callable[[BaseTag, str | None, int], bool]:
    start = file.tell()

    def stop(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag >= PIXELS:
            return True
        size = file.tell() - start + (length if length != 0xFFFFFFFF else 0)
        if size > header_bytes_max:
            raise Unsupported("file", f"has more than {header_bytes_max} bytes before its pixels (rendition_header)")
        return False

    return stop
