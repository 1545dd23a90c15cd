"""A small web server for one page: who may ask, how much, and how long it may take.

It serves the page at / and answers JSON with JSON at a fixed set of addresses. Nothing else: no address is ever looked
up in the file system. Every request is refused (and the others go on) unless

  Host             is the address the client reached, so that a foreign name that points here (DNS rebinding) is not
  Origin           is this server, so that no other site's page can post here
  key              is right, if there is one: in the address of the page, and in a header of what the page posts
  body             is JSON of limited length, and has arrived in time

What takes long, because a model writes, goes through `OneAtATime`, a queue of limited length.
"""

import base64
import hashlib
import io
import json
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from core.config import BadInput, one_line, require

MAX_BODY = 1 << 18  # bytes
SECONDS_TO_ASK = 15  # in which all of a request has to arrive
SECONDS_TO_TAKE = 30  # in which the answer has to be taken
CONNECTIONS = 256  # open at a time
CONNECTIONS_EACH = 64  # of one address
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Refused(Exception):
    """A request that is answered with an HTTP status and one line of words."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class OneAtATime:
    """Runs functions one after another in a thread of its own. Who comes when `limit` are waiting is refused (503)."""

    def __init__(self, limit):
        self.limit, self.places = limit, threading.BoundedSemaphore(limit)
        self.worker = ThreadPoolExecutor(1)

    def __call__(self, function, *arguments):
        if not self.places.acquire(blocking=False):
            raise Refused(503, f"{self.limit} questions are waiting already; try again in a few seconds")
        try:
            return self.worker.submit(function, *arguments).result()
        finally:
            self.places.release()


# ---------------------------------------------------------------------------------------------------- the server


class Server(ThreadingHTTPServer):
    """Serves `page` (bytes of HTML) at / and functions {"/api/…": request dict -> dict} at their addresses.

    key: what every request must know; "" on loopback, where only this machine can ask.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted

    def __init__(self, host, port, page, functions, key=""):
        self.page, self.functions, self.key = page, functions, key
        self.policy = content_security_policy(page)
        self.name, self.open, self.counting = host, Counter(), threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks a name server for its name
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        """Give the connection a thread of its own, unless too many are open; then it is closed without a word."""
        address = client_address[0]
        with self.counting:
            full = self.open.total() >= CONNECTIONS or self.open[address] >= CONNECTIONS_EACH
            self.open[address] += not full
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.counting:
                self.open[client_address[0]] -= 1
                self.open += Counter()  # forgets addresses with nothing open

    def handle_error(self, request, client_address):
        """A client that went away is no error of ours."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class InTime(io.RawIOBase):
    """What a connection receives, all of which has to come before time is over. A byte now and then does not help."""

    def __init__(self, connection, seconds):
        self.connection, self.end = connection, time.monotonic() + seconds

    def readable(self):
        return True

    def readinto(self, buffer):
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One request, one connection."""

    server_version, sys_version = "page", ""

    def setup(self):
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(InTime(self.connection, SECONDS_TO_ASK))

    def do_GET(self):
        self.answer(self.the_page)

    def do_POST(self):
        self.answer(self.the_function)

    def answer(self, respond):
        """Check who asks, respond, and turn what went wrong into a status and a line of words."""
        try:
            self.check_sender()
            status, kind, body = 200, *respond()
        except Refused as problem:
            status, kind, body = problem.status, *as_json({"error": str(problem)})
        except BadInput as problem:
            status, kind, body = 400, *as_json({"error": str(problem)})
        except (ConnectionError, TimeoutError):
            raise
        except OSError as problem:  # a full disk: nothing was written, and the page tries again
            print(one_line(problem))
            status, kind, body = 507, *as_json({"error": one_line(problem)})
        except Exception:
            traceback.print_exc()
            status, kind, body = 500, *as_json({"error": "something is wrong here; the server's terminal says what"})
        self.reply(status, kind, body)

    def check_sender(self):
        """Host, Origin and key."""
        hosts = self.headers.get_all("Host", [])
        here = self.connection.getsockname()
        address = f"[{here[0]}]" if ":" in here[0] else here[0]
        port = here[1]
        names = {*LOOPBACK, address, self.server.name}
        known = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
        if len(hosts) != 1 or hosts[0].lower() not in known:
            raise Refused(403, f"this server is called {address}:{port} and answers to no other name")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        foreign = origin not in (None, f"http://{hosts[0]}") or site not in (None, "same-origin", "none")
        if self.command == "POST" and foreign:
            raise Refused(403, "another site's page cannot post here")
        given = self.headers.get("X-Key") or parse_qs(urlsplit(self.path).query).get("key", [""])[0]
        if not secrets.compare_digest(given.encode(), self.server.key.encode()) and self.server.key:
            raise Refused(403, "the key is missing or wrong; use the whole address that the terminal shows")

    def the_page(self):
        """-> content type, bytes"""
        if urlsplit(self.path).path != "/":
            raise Refused(404, "there is one page here, at /")
        return "text/html; charset=utf-8", self.server.page

    def the_function(self):
        """Read the request, call the function of this address. -> content type, bytes"""
        function = self.server.functions.get(self.path)
        if function is None:
            raise Refused(404, "nothing is at this address")
        if self.headers.get_content_type() != "application/json" or "Content-Type" not in self.headers:
            raise Refused(415, "send Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "send a Content-Length")
        if int(length) > MAX_BODY:
            self.rfile.read(min(int(length), 4 * MAX_BODY))  # or the answer would be lost with what is unread
            raise Refused(413, f"more than {MAX_BODY:,} bytes; send less")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, "the request was cut short")
        return as_json(function(from_json(body)))

    def reply(self, status, kind, body):
        """Send one answer, with headers that keep the page to itself."""
        self.connection.settimeout(SECONDS_TO_TAKE)
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(body),
            "Content-Security-Policy": self.server.policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",  # the key is in the address
            "Cache-Control": "no-store",
        }
        if status == 503:
            headers["Retry-After"] = 3
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        """What the base class refuses: an unknown method, a malformed or too long request line."""
        self.close_connection = True
        self.reply(code, *as_json({"error": message or self.responses.get(code, ("refused",))[0]}))

    def log_message(self, *args):
        """No log: addresses hold the key."""


def as_json(value):
    """-> content type, bytes"""
    return "application/json", json.dumps(value, ensure_ascii=False).encode()


def from_json(body):
    """Bytes -> dict. Refuses everything that is not one JSON object that can be written to a file again."""

    def no_number(text):
        raise ValueError(f"{text} is not JSON")

    try:
        request = json.loads(body.decode(), parse_constant=no_number)
        json.dumps(request, ensure_ascii=False).encode()  # half a character can be spelled, but not encoded
    except (ValueError, RecursionError):
        raise Refused(400, "the request is not JSON") from None
    if not isinstance(request, dict):
        raise Refused(400, "the request must be an object like {...}")
    return request


def content_security_policy(page):
    """Only the page's own script and style may run, known by their hashes; it may talk to nobody but this server."""

    def hashes(tag):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, flags=re.S)
        digests = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


# -------------------------------------------------------------------------------------------------- what a request says


def text_in(request, key, limit, empty=False):
    """request[key], a str of at most `limit` characters. Refuses anything else (BadInput)."""
    value = request.get(key)
    require(isinstance(value, str) and len(value) <= limit, f'"{key}" must be text of at most {limit:,} characters')
    require(empty or value.strip(), f'"{key}" is empty')
    return value


def number_in(request, key, low, high, kind=int):
    """request[key], a number from low to high."""
    value = request.get(key)
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool) and low <= value <= high
    require(fits, f'"{key}" must be a number from {low} to {high}')
    return value


def choice_in(request, key, choices):
    """request[key], one of some texts."""
    value = request.get(key)
    require(isinstance(value, str) and value in choices, f'"{key}" must be one of {", ".join(choices)}')
    return value


def list_in(request, key, count, fits):
    """request[key], a list of `count` things each of which `fits`."""
    value = request.get(key)
    right = isinstance(value, list) and len(value) == count and all(map(fits, value))
    require(right, f'"{key}" must list {count} values that are allowed here')
    return value


def some_of(choices):
    """Says whether a value is a list of these texts."""
    return lambda value: isinstance(value, list) and all(isinstance(v, str) and v in choices for v in value)


# ---------------------------------------------------------------------------------------------------- where it is


def address_of(server):
    """Where the page is, key included: for a server that listens everywhere, this machine's address in its network."""
    host, port = server.server_address[:2]
    if host in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing; says which of its addresses the machine would use
                host = probe.getsockname()[0]
            except OSError:
                host = "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?key={server.key}" if server.key else "")


def is_loopback(host):
    """Can only this machine reach a server there?"""
    return host in ("localhost", "::1") or host.startswith("127.")
