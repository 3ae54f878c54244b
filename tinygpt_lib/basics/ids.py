"""Ids by the hundred million: 1, 2 or 4 bytes each, and perhaps on the disk."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**20  # ids that are read together, where all are gone through


class Ids:
    """Ids (N,) as small numbers, in memory or in a file, that are read as int64.

    Like a tensor to chapter 01's `get_batch`: it has a length, and gives what is at a
    slice, or at a tensor of places, as a tensor on the device.
    """

    def __init__(self, array: np.ndarray, file: BinaryIO | None = None, device="cpu"):
        self.array, self.file, self.device = array, file, torch.device(device)
        self.known: tuple[tuple, str] | None = None  # for `fingerprint`

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        part = self.array[places if isinstance(places, slice) else places.numpy()]
        return torch.from_numpy(part.astype(np.int64)).to(self.device)

    def to(self, device) -> "Ids":
        """The same, read to a device."""
        return Ids(self.array, self.file, device)

    def pieces(self) -> Iterator[Tensor]:
        """All of them, in turn; those in a file without filling the memory with it."""
        for start in range(0, len(self), AT_ONCE):
            part = self.array[start : start + AT_ONCE]
            if self.file is not None:
                self.file.seek(self.array.offset + start * self.array.itemsize)
                part = np.fromfile(self.file, self.array.dtype, len(part))
            yield torch.from_numpy(part.astype(np.int64))

    def largest(self) -> int:
        """The largest one."""
        return max((int(piece.max()) for piece in self.pieces()), default=0)
