"""Runs in workers of clusters: records each image that reaches a first convolution."""

import os
import signal
import time
import zlib
from pathlib import Path


def watch(folder):
    """Record digests of images in a file of this process, and obey files in a folder.

    "die" kills the process once, and "sleep" slows it down.
    """
    import torch

    from skdeepfeat._networks import trial

    try_out, trying = trial._try_out, []

    def unwatched(*args):  # images of noise, with which networks are compared
        trying.append(1)
        try:
            return try_out(*args)
        finally:
            trying.pop()

    forward = torch.nn.Conv2d.forward
    if hasattr(forward, "is_watched"):
        return
    folder = Path(folder)

    def watched(self, x):
        if self.in_channels == 3 and not x.is_meta and not trying:
            _obey(folder)
            with (folder / f"{os.getpid()}.log").open("a") as file:
                file.writelines(f"{zlib.crc32(image)}\n" for image in _images(x))
        return forward(self, x)

    watched.is_watched = True
    torch.nn.Conv2d.forward, trial._try_out = watched, unwatched


def _images(x):
    """Images of a batch as bytes; what fills it up has a single colour."""
    return [im.numpy().tobytes() for im in x if im.flatten(1).std(1).min() > 0.01]


def _obey(folder):
    if (folder / "die").exists():
        (folder / "die").unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / "sleep").exists():
        time.sleep(0.2)
