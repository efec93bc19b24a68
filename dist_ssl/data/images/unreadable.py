"""Why the bytes of a sample are not used: reasons from a fixed set, by which samples are counted."""

EMPTY, NO_IMAGE, DAMAGED = "empty", "not an image", "damaged image"
TOO_LARGE, NO_RANGE, TOO_MANY_SCANS = "too many pixels", "pixels without a range", "too many scans"
UNSUPPORTED, TOO_MANY_PARTS = "unsupported pixels", "too many parts"


class UnreadableError(Exception):
    """The bytes of a sample are not an image. `reason`: a short text from a fixed set, by which samples are counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
