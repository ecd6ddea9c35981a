"""What strangers send beside the load: half-open connections and hostile bodies, until told to end.

python benchmarks/service/strangers.py URL TOKEN
"""

from __future__ import annotations

import asyncio
import gzip
import io
import sys
import tarfile
import zipfile
from urllib.parse import urlsplit

HALF_OPEN = 1000
HEAD = b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
EDGE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.%s"\r\n\r\n%s\r\n--x--\r\n'
MANY, ZEROS = 19_900, 200 << 20


def many_files() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for one in range(MANY):
            tar.addfile(tarfile.TarInfo(f"shard-{one:05d}.safetensors"))
    return gzip.compress(buffer.getvalue(), 1)


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(ZEROS))
    return buffer.getvalue()


def posts(token: str) -> list[bytes]:
    """Four: an archive of empty files, one that unpacks to much, and the longest bodies of numbers and of words."""
    form = b"multipart/form-data; boundary=x"
    counts = b'{"cluster": {"num_nodes": 2}, "counts": {"top_k": 1, "counts": [['
    bodies = [
        (b"/v1/traces", form, EDGE % (b"tgz", many_files())),
        (b"/v1/traces", form, EDGE % (b"zip", bomb())),
        (b"/v1/placements", b"application/json", counts + b"1," * 1_900_000 + b"1]]}}"),
        (b"/v1/placements", b"application/json", counts + b'"a",' * 900_000 + b'"a"]]}}'),
    ]
    return [
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nConnection: close\r\n"
        b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (path, token.encode(), media, len(body), body)
        for path, media, body in bodies
    ]


async def send(host: str, port: int, sent: bytes) -> None:
    """Send it, and read until the other side hangs up; again and again."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(sent)
            await reader.read()
            writer.close()
        except OSError:
            await asyncio.sleep(0.1)


async def besiege(url: str, token: str) -> None:
    where = urlsplit(url)
    host, port = str(where.hostname), int(where.port or 80)
    sent = [HEAD] * HALF_OPEN + posts(token)
    print("ready", flush=True)
    await asyncio.gather(*(send(host, port, one) for one in sent))


if __name__ == "__main__":
    asyncio.run(besiege(sys.argv[1], sys.argv[2]))
