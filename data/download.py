"""Files from the network, once: a transfer that was cut goes on where it stopped, and a wrong file is not kept."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

from core.config import BadInput, require


def cache():
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "nanoinstruct"


class Redirected(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers the checksum that Hugging Face's hub states when it sends us to its storage."""

    stated = ""

    def redirect_request(self, request, file, code, message, headers, url):
        self.stated = headers.get("X-Linked-Etag", "").strip('"') or self.stated
        return super().redirect_request(request, file, code, message, headers, url)


def download(url, path, checksum, what):
    """Fetch `url` to `path` once: shows progress, continues a transfer that was cut, keeps only what has this SHA-256.

    checksum: "" takes the one that the server states, if it states one; the length is checked in any case.
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:  # several processes may want the same file
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return path if path.exists() else fetch(url, path, checksum, what)


def fetch(url, path, checksum, what):
    partial = path.with_name(path.name + ".part")
    have = partial.stat().st_size if partial.exists() else 0
    print(f"downloading {what} from {url}{f', from byte {have:,} on' if have else ''}", flush=True)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    redirected = Redirected()
    by_hand = f"or fetch the file yourself and pass its path (it belongs at {path})"
    try:
        with urllib.request.build_opener(redirected).open(request, timeout=60) as response:
            stated = redirected.stated or response.headers.get("ETag", "").strip('"')
            checksum = checksum or (stated if re.fullmatch("[0-9a-f]{64}", stated) else "")
            continues = response.status == 206
            total = int(response.headers.get("Content-Length") or 0) + have * continues
            with open(partial, "ab" if continues else "wb") as file:
                done, shown = have * continues, time.time()
                while block := response.read(1 << 20):
                    file.write(block)
                    done += len(block)
                    if time.time() - shown > 5:
                        print(f"  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", flush=True)
                        shown = time.time()
            require(done >= total, f"{url}: the transfer stopped at {done:,} of {total:,} bytes; run the command again")
    except urllib.error.HTTPError as problem:
        if problem.code != 416:
            raise BadInput(f"{url}: the server says {problem.code} {problem.reason}; try again, {by_hand}") from None
        stated = redirected.stated  # 416: nothing is left to send; the part is whole, or of another file
        checksum = checksum or (stated if re.fullmatch("[0-9a-f]{64}", stated) else "")
        whole = problem.headers.get("Content-Range", "").endswith(f"/{have}")
        if not (checksum or whole):
            partial.unlink()
            raise BadInput(f"{url}: what was there of it does not fit and was deleted; run the command again") from None
    except (OSError, ValueError, http.client.HTTPException) as problem:
        reason = getattr(problem, "reason", problem)
        raise BadInput(
            f"{url}: could not be reached ({reason}); try again where there is a network, {by_hand}"
        ) from None
    if checksum and sha256(partial) != checksum:
        partial.unlink()
        raise BadInput(f"{url}: what came has another SHA-256 than {checksum[:12]}…, so it was deleted; try again")
    os.replace(partial, path)
    return path


def sha256(path):
    """Of a file that may be larger than memory."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
