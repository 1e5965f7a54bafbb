"""The metadata in a picture's file: of it the orientation is read, and the rest can be left away.

Bytes in, bytes out: nothing is decoded here.
"""

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO

ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the picture by a quarter
INTEGERS = {1: "B", 3: "H", 4: "I"}  # EXIF types; some programs write another than 3
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
JPEG_MARKER = re.compile(rb"\xff+[^\xff\x00\x01\xd0-\xd9]", re.DOTALL)  # of a segment, behind it its length


def exif_of_png(file: IO[bytes]) -> bytes:
    """The EXIF chunk, wherever it stands: exiftool appends it behind the pixels, which Pillow has not read yet."""
    file.seek(len(PNG))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            data, crc = file.read(length), file.read(4)
            return data if zlib.crc32(name + data).to_bytes(4, "big") == crc else b""
        file.seek(length + 4, os.SEEK_CUR)
    return b""


def orientation_in(exif: bytes) -> int:
    """The orientation, 1 to 8; 1 where it says none. It alone is read: Pillow gives up at the first odd entry."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:2] not in (b"II", b"MM"):
        return 1
    order = "<" if exif.startswith(b"II") else ">"
    with contextlib.suppress(struct.error):  # it is cut off
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (n,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * n, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, at)
            if (tag, count) == (ORIENTATION, 1) and kind in INTEGERS:
                return int(struct.unpack_from(order + INTEGERS[kind], exif, at + 8)[0])
    return 1


def without_metadata(data: bytes) -> bytes:
    """A PNG, JPEG or WebP file with what tells of its pixels and orientation alone. Others are as they were."""
    if data.startswith(JPEG):
        return JPEG + b"".join(_jpeg_segments(data))
    if data.startswith(PNG):
        return PNG + b"".join(_png_chunks(data))
    if data[8:12] == b"WEBP":
        kept = b"".join(_webp_chunks(data))
        return b"RIFF" + struct.pack("<I", 4 + len(kept)) + b"WEBP" + kept
    return data


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at = len(PNG)
    while at < len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk = data[at : at + 12 + length]
        whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name in (b"tRNS", b"eXIf") and whole):
            yield chunk
        at += 12 + length


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    at = len(JPEG)
    while (marker := JPEG_MARKER.search(data, at)) is not None:
        kind, start = marker[0][-1], marker.end()
        at = start + int.from_bytes(data[start : start + 2], "big")
        if kind == 0xDA:  # the first scan, and all that follows
            yield data[marker.start() :]
            return
        if kind == 0xE1 and data.startswith(b"Exif\0\0", start + 2):
            entry = struct.pack("<HHIHH", ORIENTATION, 3, 1, orientation_in(data[start + 2 : at]), 0)
            exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
            yield b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
        elif kind not in (*range(0xE1, 0xEE), 0xEF, 0xFE):  # JFIF and Adobe's tell of colours
            yield marker[0][-2:] + data[start:at]


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    at = 12
    while at < len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + length]
        if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"EXIF"):
            length = len(body) if name == b"EXIF" else length  # the orientation may lie before the cut
            yield name + struct.pack("<I", length) + body + bytes(length % 2)
        at += 8 + length + length % 2
