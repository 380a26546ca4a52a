"""A file for readers that believe what a damaged file claims of its own lengths."""

import io
import os

_SMALL = 2**16  # bytes that may be asked for without a look at how many there are


class BoundedFile(io.BufferedReader):
    """A file opened to be read, of which never more memory is asked for than it has bytes.

    CPython makes room for all the bytes that are asked for before it reads the first of them, so
    a reader that follows a claimed length takes gigabytes for a file of one kilobyte. What is read
    is the same: reading ends where the file ends. The signature is that of ``open``, in whose
    place a reader can be given this class.

    Args:
        path: The file; a text, since readers tell a file by its name from other streams.
        mode: ``rb``; no other is meant.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str, mode: str = "rb") -> None:
        super().__init__(io.FileIO(path, mode))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read ``size`` bytes, or as many as there are."""
        if size is not None and size > _SMALL:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)
