"""The largest numbers that keys of the config and files of a run or of a data set may hold."""

MOST_EPOCHS = 1_000_000
"""Every epoch of a run is planned before it starts, and a checkpoint holds all plans."""
MOST_SEED = (1 << 63) - 1
"""Random numbers are keyed by 64 bits."""
MOST_COUNT = 1 << 60
"""No run has as many samples and no file as many bytes; sums of several such numbers fit into int64."""
MOST_OF_A_VIEW = 1 << 16
"""The largest side of a view or of a patch in a recorded plan, px, and the most views of an image."""
MAX_PIXELS = 100_000_000
"""The default of `data.max_pixels`: pixels of an image that is decoded."""
MOST_CHANNELS = 64
"""Channels of an image."""
RGB = 3
"""Channels of an image of red, green and blue, as those of a data set are that does not say how many they have."""
