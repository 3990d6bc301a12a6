"""A picture for report pages, and a text that tries to run in them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

EVIL = '</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2>'


def png(width: int = 3, height: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', crc)

    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    rows = b''.join(b'\0' + b'\x80' * width for _ in range(height))
    body = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows))
    return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def put_picture(out: Path, **words: str) -> None:
    folder = out / 'pictures'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tsne.png').write_bytes(png())
    facts = {'title': 'T', 'caption': 'C', 'alt': 'A', 'section': 'Features', **words}
    (folder / 'tsne.json').write_text(json.dumps(facts))
