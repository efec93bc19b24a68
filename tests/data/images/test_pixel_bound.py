"""No image takes more than about 10 bytes of memory for each of the pixels that `max_pixels` counts."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.images.test_image_rules import png_of, tiff_of
from tests.data.images.test_tiff_bands import tiff

SIDE = 1400
MOST = 11
COPIES, SPARE = 3, 14 << 20
"""Copies of a file, and bytes of anything else: buffers, a band in 64 bits, what the C library keeps."""
MEASURED = """
import itertools, os, re, sys
from pathlib import Path
from dist_ssl.data.images import decode as decoding
from dist_ssl.data.images.image_rules import ImageRules

def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

def grown(data, rules):
    Path("/proc/self/clear_refs").write_text("5")
    before = highest()
    decoding.decode(data, 10**6, rules)
    return highest() - before

def measure(path, words):
    data = path.read_bytes()
    for times in itertools.count(1):
        try:
            print(path.name, times, grown(data, ImageRules(times * PIXELS, **words)), len(data), flush=True)
            return
        except decoding.UnreadableError as error:
            if error.reason != "too many pixels":
                return

for path in sorted(Path(sys.argv[1]).iterdir()):
    for words in RULES:
        child = os.fork()  # each begins with the memory of none before it
        if not child:
            measure(path, words)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


def files() -> dict[str, bytes]:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.uint16)
    deep = np.stack([x * 16, y * 16, x + y, 65535 - x], -1)
    image = Image.fromarray((deep >> 8).astype(np.uint8), "RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6

    def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **options)
        return file.getvalue()

    return {
        "plain.jpg": encoded("JPEG", subsampling=0),
        "progressive.jpg": encoded("JPEG", progressive=True, subsampling=0, exif=turned),
        "inks.jpg": encoded("JPEG", "CMYK", progressive=True),
        "turned.png": encoded("PNG", "RGBA", exif=turned, compress_level=1),
        "grey.tif": encoded("TIFF", "F"),
        "lossless.webp": encoded("WEBP", "RGBA", lossless=True, method=0),
        "plain.avif": encoded("AVIF", "RGBA", speed=10),
        "plain.jp2": encoded("JPEG2000", "RGBA"),
        "deep.png": png_of(deep),
        "deep.tif": tiff_of(deep[..., :3], "<", True),
        "deep.ppm": b"P6 %d %d 65535\n" % (SIDE, SIDE) + deep[..., :3].astype(">u2").tobytes(),
        "text.ppm": b"P3 %d %d 99\n" % (SIDE, SIDE) + b"9 " * (3 * SIDE * SIDE),
        "bands.tif": tiff(np.repeat(deep[..., :1], 5, axis=2), deflated=True, rows=64),
    }


def test_memory_is_bounded_by_the_pixels_that_are_counted(tmp_path: Path) -> None:
    rules = [{"range": 4095}, {"bits": 16, "channels": 4, "range": 100.5}, {"channels": 5}]
    written = files()
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    code = MEASURED.replace("PIXELS", str(SIDE * SIDE)).replace("RULES", str(rules))
    made = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    rows = [(name, *map(int, numbers)) for name, *numbers in map(str.split, made.stdout.splitlines())]
    assert {name for name, *_ in rows} == {*written}
    for name, times, grown, size in rows:
        assert grown <= MOST * times * SIDE * SIDE + COPIES * size + SPARE, name
