"""Files from the network, each fetched once: a transfer that was cut short or has the wrong checksum is not kept."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

from core.config import BadInput


def cache_folder():
    """Where downloads are kept: XDG_CACHE_HOME/nanoinstruct, or ~/.cache/nanoinstruct."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "nanoinstruct"


def hub_url(path):
    """The address of a file on the Hugging Face hub, or on the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + "/" + path


def download(url, path, what, checksum=None):
    """Fetch `url` to `path` unless it is there already. Returns the path.

    what: how the progress line calls it. checksum: SHA-256 in hex; without one only the length is checked.
    Raises BadInput, and keeps nothing, if the server cannot be reached or sends something else.
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:  # several processes may want the same file
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():  # another process may have fetched it while this one waited
            fetch(url, path, what, checksum)
    return path


def fetch(url, path, what, checksum):
    """Download to a temporary file, check its length and checksum, then give it its name."""
    print(f"downloading {what} from {url}", flush=True)
    arrived = path.with_name(path.name + ".part")
    by_hand = f"or fetch the file by hand and pass its path, or put it at {path}"
    try:
        expected = length_of(url)
        torch.hub.download_url_to_file(url, str(arrived), hash_prefix=checksum)
        length = arrived.stat().st_size
        if expected is not None and length != expected:
            raise BadInput(f"{url}: the transfer stopped at {length:,} of {expected:,} bytes; try again, {by_hand}")
        os.replace(arrived, path)
    except urllib.error.HTTPError as problem:
        raise BadInput(f"{url}: the server says {problem.code} {problem.reason}; try again, {by_hand}") from None
    except RuntimeError as problem:  # how download_url_to_file reports a wrong checksum
        raise BadInput(f"{url}: what came is another file ({problem}); try again, {by_hand}") from None
    except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError, http.client.HTTPException) as problem:
        reason = getattr(problem, "reason", problem)
        raise BadInput(
            f"{url}: could not be reached ({reason}); try again where there is a network, {by_hand}"
        ) from None
    finally:
        arrived.unlink(missing_ok=True)


def length_of(url):
    """How many bytes the server says that the file has, or None where it does not say.

    download_url_to_file takes a connection that ends early for the end of the file.
    """
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})
    with urllib.request.urlopen(request, timeout=60) as response:
        length = response.headers.get("Content-Length")
    return None if length is None else int(length)


def sha256(path):
    """SHA-256 in hex of a file that may be larger than memory."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
