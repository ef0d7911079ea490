"""Paths, URLs, data URIs and open files → their bytes.

Files and URLs also have a state that changes with their content.

A URL is opened through fsspec, and only if its scheme is among those that the user has
allowed: a service must not fetch any address that it receives.
"""

import base64
import os
import re
import stat
from collections.abc import Collection
from typing import Any
from urllib.parse import unquote_to_bytes

from .._digests import digest, may_change_unseen, state_of_file
from .formats import EMPTY

SCHEMES = re.compile(r"(?:^|::)([A-Za-z][A-Za-z0-9+.-]+)(?=://|::)")
OF_EXTRA = {"http", "https"}  # schemes whose client comes with the extra "remote"

# What file systems call the tag, the checksum or the time of a file's last change. An
# entity tag that begins with "W/" only promises a similar content.
VERSIONS = re.compile(
    "etag|content-md5|digest|md5|md5hash|crc32c|checksum|sha256|version_id"
    "|mtime|last_?-?modified|modified|updated",
    re.IGNORECASE,
)
WEAK = "W/"

LONGEST_NAME = 200  # characters of a name in messages

# What may be a secret in a URL: a user with a password, and what is behind "?".
USER, QUERY = re.compile(r"(?<=://)[^/?#\s]*@"), re.compile(r"(://[^\s?]*\?)[^\s'\"]*")

FOREIGN_HOST = (
    "names a file on the host {!r}; file:// URIs of this machine have three slashes, "
    "as pathlib.Path(path).resolve().as_uri() writes them"
)
UNQUOTED = (
    "has a query or a fragment, and names of files have none; write %3F for a question "
    "mark and %23 for a hash, as pathlib.Path(path).resolve().as_uri() does"
)

STANDARD = bytes.maketrans(b"-_", b"+/")  # alphabet of base64, of that for URLs


def without_secrets(text: str) -> str:
    """A text whose URLs have neither users nor queries."""
    return QUERY.sub(r"\1...", USER.sub("", text))


def shortened(text: str) -> str:
    """A text, its middle left out if it is longer than a name."""
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME // 2]}... ({len(text):,} characters)"


class File:
    """A file on this machine.

    Parameters
    ----------
    path : str or path
    """

    def __init__(self, path):
        self._path = path
        self.name = os.path.abspath(os.fsdecode(path))

    def __reduce__(self):
        return File, (self.name,)  # another process has another working directory

    def state(self) -> str | None:
        """Text that changes with its content, None if its times cannot tell yet.

        Refuses pipes and files without content, which may block.
        """
        found = os.stat(self._path)
        is_file = stat.S_ISREG(found.st_mode)
        if not is_file and not stat.S_ISDIR(found.st_mode):
            raise ValueError("is a pipe, a socket or a device, not a file")
        if is_file and found.st_size == 0:  # also that of /proc/kmsg, for instance
            raise ValueError(EMPTY)
        return None if may_change_unseen(found) else state_of_file(found)

    def read(self) -> bytes:
        """Its content."""
        self.state()
        with open(self._path, "rb") as file:
            return file.read()

    def read_ahead(self) -> None:
        """Let the system begin to read it."""
        if hasattr(os, "posix_fadvise"):
            with open(self._path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class Remote:
    """A file on a server, named by a URL.

    Parameters
    ----------
    url : str
    """

    def __init__(self, url: str):
        self._url, shown = url, without_secrets(url)
        # The store keeps the name, and must not keep passwords.
        self.name = url if shown == url else f"{shown} {digest(url).hex()}"

    def _file_system(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ValueError(
                "URLs are opened by fsspec, which is not installed. Type: pip install "
                "'skdeepfeat[remote]'"
            ) from None
        try:
            return url_to_fs(self._url, use_listings_cache=False)
        except ImportError as error:  # which names the package of this scheme
            of_web = OF_EXTRA.intersection(SCHEMES.findall(self._url))
            how = ". Type: pip install 'skdeepfeat[remote]'" if of_web else ""
            raise ValueError(f"{error}{how}") from error

    def state(self) -> str | None:
        """Text that changes with its content; None if the server reports no version."""
        system, path = self._file_system()
        found = system.info(path)
        versions = [
            f"{name} {value}"
            for name, value in sorted(found.items())
            if VERSIONS.fullmatch(name) and value and not str(value).startswith(WEAK)
        ]
        return f"{found.get('size')} {', '.join(versions)}" if versions else None

    def read(self) -> bytes:
        """Its content."""
        system, path = self._file_system()
        return system.cat_file(path)

    def read_ahead(self) -> None:
        """Nothing: it is fetched when it is needed."""


Reference = File | Remote


def refer(cell, protocols: Collection[str]) -> Reference:
    """The file or URL of a path, or of a string; refuses schemes not in `protocols`."""
    if not isinstance(cell, str) or "://" not in cell:
        return File(cell)
    cell = SCHEMES.sub(lambda match: match[0].lower(), cell)
    schemes = SCHEMES.findall(cell)
    if not schemes:
        return File(cell)
    if schemes == ["file"]:
        return File(_path_of_uri(cell))
    allowed = {"file", *(protocol.lower() for protocol in protocols)}
    refused = [scheme for scheme in schemes if scheme not in allowed]
    if refused:
        raise ValueError(
            f"URLs of {refused[0]!r} are not opened unless you allow it; type "
            f"protocols={(*protocols, *refused)!r}"
        )
    return Remote(cell)


def _path_of_uri(uri: str) -> str:
    """The path of a file:// URI on this machine, without query or fragment."""
    host, _, path = uri.removeprefix("file://").partition("/")
    if host.lower() not in ("", "localhost"):
        raise ValueError(FOREIGN_HOST.format(host))
    if "?" in path or "#" in path:
        raise ValueError(UNQUOTED)
    return os.fsdecode(unquote_to_bytes(f"/{path}"))


def read_data_uri(cell: str, protocols) -> bytes:
    """The bytes in a "data:" URI."""
    header, comma, data = cell.partition(",")
    if not comma:
        raise ValueError('a "data:" URI must have a comma before its data')
    content = unquote_to_bytes(data)
    is_base64 = header.lower().rpartition(";")[2].strip() == "base64"
    return decode_base64(content) if is_base64 else content


def decode_base64(content: bytes) -> bytes:
    """Bytes of base64 in either alphabet, with or without padding and line breaks."""
    digits = b"".join(content.split()).rstrip(b"=").translate(STANDARD)
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as error:
        raise ValueError('the base64 of this "data:" URI is damaged') from error


def read_file_object(cell, protocols) -> bytes:
    """All bytes of a binary file, whose position does not change."""
    place = cell.tell()
    cell.seek(0)
    try:
        content = cell.read()
    except UnicodeDecodeError:
        content = "binary"
    cell.seek(place)
    if isinstance(content, str):
        raise ValueError("the file is open as text; open it with mode 'rb'")
    return content
