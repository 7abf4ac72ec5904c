"""Reading the columns of a page in Python, as its script does."""

import base64
import zlib

import numpy as np


def unpacked(directory, text):
    """Return the columns again: what the page's script does, for those who read a page in Python."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    columns = {}
    for entry in directory:
        count, width = entry["count"], entry["width"]
        planes = data[entry["at"] : entry["at"] + count * width].reshape(width, count)
        weights = np.uint64(1) << np.arange(0, 8 * width, 8, dtype=np.uint64)
        numbers = (planes.astype(np.uint64) * weights[:, None]).sum(axis=0, dtype=np.uint64)
        values = (numbers >> np.uint64(1)).astype(np.int64) ^ -(numbers & np.uint64(1)).astype(np.int64)
        columns[entry["name"]] = (np.cumsum(values) if entry["delta"] else values) * entry["unit"]
    return columns
