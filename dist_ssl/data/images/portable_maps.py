"""Decoders of portable maps (PGM, PPM) for PIL, whose own take up to two seconds for a million numbers.

They serve maps whose white is not 255, and those written as text, and find the pixels that PIL's own find. Of text,
numbers with a sign or an underscore are refused, which those take.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, PpmImagePlugin

Numbers = npt.NDArray[Any]
BLOCK = 1 << 20
"""Bytes that are decoded at a time."""
DIGITS, BLANKS = b"0123456789", b" \t\n\v\f\r"
LONGEST = 10
"""Digits that a number may have which reaches beyond a block."""


class BinaryDecoder(ImageFile.PyDecoder):
    """Numbers of one byte, or of two where white is more than 255."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        """Read all numbers from the file. Raises ValueError where there are too few."""
        assert self.fd is not None
        white = int(self.args[-1])
        kind = np.dtype(np.uint8 if white <= 255 else ">u2")
        found, left = bytearray(), _numbers(self.mode, self.state) * kind.itemsize
        while left > 0 and (block := self.fd.read(min(left, BLOCK))):
            left -= len(block)
            found += _scaled(np.frombuffer(block, kind, count=len(block) // kind.itemsize), white, self.mode)
        self.set_as_raw(found, _raw_mode(self.mode))
        return -1, 0


class TextDecoder(PpmImagePlugin.PpmPlainDecoder):
    """Numbers as text between blanks, without comments. Bits are left to PIL's own decoder, which is fast enough."""

    def decode(self, buffer: Any) -> tuple[int, int]:
        """Read all numbers from the file. Raises ValueError where there are too few, or one is too large."""
        if self.mode == "1":
            return super().decode(buffer)
        white, found, left = int(self.args[-1]), bytearray(), _numbers(self.mode, self.state)
        for text in self._texts():
            if text.translate(None, DIGITS + BLANKS):
                raise ValueError("no number in a portable map")
            numbers = np.fromstring(text, dtype=np.int64, sep=" ")[:left]
            if numbers.max(initial=0) > white:
                raise ValueError(f"a number larger than {white} in a portable map")
            found += _scaled(numbers, white, self.mode)
            left -= len(numbers)
            if not left:
                break
        self.set_as_raw(found, _raw_mode(self.mode))
        return -1, 0

    def _texts(self) -> Iterator[bytes]:
        """Yield the text in pieces of whole numbers."""
        assert self.fd is not None
        rest = b""
        while block := self.fd.read(BLOCK):
            text = rest + block
            end = max(text.rfind(blank) for blank in (b"%c" % each for each in BLANKS)) + 1
            rest = text[end:]
            if len(rest) > LONGEST:
                raise ValueError("a number of too many digits in a portable map")
            yield text[:end]
        yield rest


def register() -> None:
    """Let PIL use these decoders, in this process, instead of its own."""
    Image.register_decoder("ppm", BinaryDecoder)
    Image.register_decoder("ppm_plain", TextDecoder)


def _numbers(mode: str, state: Any) -> int:
    """Return how many numbers an image has."""
    return int(state.xsize * state.ysize * Image.getmodebands(mode))


def _scaled(numbers: Numbers, white: int, mode: str) -> bytes:
    """Return numbers, of which `white` is the largest, as the bytes of those of a mode."""
    most, kind = (65535, "<i4") if mode == "I" else (255, "u1")
    table = np.minimum(np.rint(np.arange(65536) / white * most), most).astype(kind)
    return table[numbers].tobytes()


def _raw_mode(mode: str) -> str:
    return "I;32" if mode == "I" else mode
