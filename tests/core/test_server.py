"""The page's server: who is refused, in what words, and that the others are answered meanwhile."""

import base64
import errno
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import core.server
from core.config import BadInput
from core.server import (
    MAX_BODY,
    OneAtATime,
    Refused,
    Server,
    address_of,
    content_security_policy,
    from_json,
    is_loopback,
)

PAGE = b"<style>p{}</style><script>1</script>"
ROOT = Path(core.server.__file__).parent.parent


def functions():
    def broken(request):
        raise ZeroDivisionError("of ours")

    def wrong(request):
        raise BadInput("name is missing")

    def full(request):
        raise OSError(errno.ENOSPC, "No space left on device", "people/comparisons.jsonl")

    def echo(request):
        return {"got": request}

    return {"/api/echo": echo, "/api/broken": broken, "/api/wrong": wrong, "/api/full": full}


@contextmanager
def serving(host="127.0.0.1", key=""):
    server = Server(host, 0, PAGE, functions(), key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def ask(server, method="POST", path="/api/echo", body=b"{}", **headers):
    """-> status, headers, parsed body or bytes. A header that is None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    given = {"Host": f"127.0.0.1:{server.server_port}", "Content-Type": "application/json"}
    given |= {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if content and response.headers.get("Content-Type") == "application/json":
        content = json.loads(content)
    return response.status, response.headers, content


def works(server):
    return ask(server, body=b'{"a": 1}')[::2] == (200, {"got": {"a": 1}})


# ---------------------------------------------------------------------------------------------------- what is served


def test_the_page_and_its_headers(server):
    status, headers, body = ask(server, "GET", "/", b"")
    assert status == 200 and body == PAGE
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers and "Python" not in headers["Server"]
    assert works(server)


def test_the_policy_lets_only_the_pages_own_script_and_style_run():
    for page in (PAGE, (ROOT / "page.html").read_bytes()):
        policy = dict(part.strip().split(" ", 1) for part in content_security_policy(page).split(";"))
        for tag in (b"script", b"style"):
            (inside,) = re.findall(b"<" + tag + b">(.*?)</" + tag + b">", page, flags=re.S)
            digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
            assert policy[f"{tag.decode()}-src"] == f"'sha256-{digest}'"
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        assert "unsafe" not in str(policy)


def test_the_page_needs_nothing_from_the_network_and_shows_data_as_text():
    page = (ROOT / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["'](?!#|data:,)[^"']*""", page) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"']+", page) == []
    for unsafe in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        " style=",
    ):
        assert unsafe not in page


# ---------------------------------------------------------------------------------------------------- who is refused

ELSEWHERE = [
    {"Host": "evil.example"},
    {"Host": "evil.example:{port}"},
    {"Host": "127.0.0.1"},
    {"Host": "127.0.0.1:1"},
    {"Host": "127.0.0.1.evil.example:{port}"},
    {"Host": None},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://127.0.0.1:{port}"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost:{port}"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_other_names_and_other_sites_are_refused(server, headers):
    given = {name: value and value.format(port=server.server_port) for name, value in headers.items()}
    status, _, body = ask(server, **given)
    assert status == 403 and body["error"]
    if "Host" in headers:
        assert ask(server, "GET", "/", b"", **given)[0] == 403
    assert works(server)


def test_ones_own_names_are_not(server):
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        host = f"{name}:{server.server_port}"
        assert ask(server, Host=host)[0] == 200
        assert ask(server, Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin")[0] == 200


def test_two_hosts_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        name = f"127.0.0.1:{server.server_port}"
        connection.sendall(f"GET / HTTP/1.0\r\nHost: {name}\r\nHost: evil.example\r\n\r\n".encode())
        assert b" 403 " in connection.recv(100)


def test_without_the_key_there_is_nothing():
    with serving(key="s3cret-ü") as server:
        for path in ("/", "/?key=", "/?key=wrong", "/?key=s3cret", "/?Key=s3cret-%C3%BC", "/favicon.ico"):
            status, _, body = ask(server, "GET", path, b"")
            assert status == 403 and b"p{}" not in json.dumps(body).encode()
        for header in ({}, {"X_Key": "wrong"}, {"X_Key": ""}):
            assert ask(server, **header)[0] == 403
        assert ask(server, "GET", "/?key=s3cret-%C3%BC", b"")[2] == PAGE
    with serving(key="plain") as server:
        assert ask(server, X_Key="plain")[0] == 200
        assert address_of(server) == f"http://127.0.0.1:{server.server_port}/?key=plain"


WRONG = [
    (dict(path="/api/none"), 404),
    (dict(path="/api/echo/"), 404),
    (dict(path="/../page.py"), 404),
    (dict(path="//etc/passwd"), 404),
    (dict(method="GET", path="/etc/passwd"), 404),
    (dict(method="GET", path="/page.py"), 404),
    (dict(method="GET", path="/api/echo"), 404),
    (dict(method="PUT"), 501),
    (dict(method="OPTIONS"), 501),
    (dict(method="HEAD", path="/"), 501),
    (dict(method="<img>"), 501),
    (dict(Content_Type="text/plain"), 415),
    (dict(Content_Type="application/x-www-form-urlencoded"), 415),
    (dict(Content_Type=None), 415),
    (dict(Content_Length=None), 411),
    (dict(Content_Length="-1"), 411),
    (dict(Content_Length="1e3"), 411),
    (dict(Content_Length="99999999999"), 411),
    (dict(Transfer_Encoding="chunked"), 411),
    (dict(body=b"x" * (MAX_BODY + 1)), 413),
    (dict(body=b""), 400),
    (dict(body=b"a=1"), 400),
    (dict(body=b"[]"), 400),
    (dict(body=b"7"), 400),
    (dict(body=b'{"a": NaN}'), 400),
    (dict(body=b'{"a": "\\ud83d"}'), 400),
    (dict(body=b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400),
    (dict(body=b'{"a": ' + b"9" * 5000 + b"}"), 400),
    (dict(body=b'{"a": "\xff"}'), 400),
    (dict(path="/api/wrong"), 400),
    (dict(path="/" + "x" * 70_000), 414),
]


@pytest.mark.parametrize("request_, status", WRONG, ids=lambda value: str(value)[:40])
def test_wrong_requests_are_refused_in_words_and_the_next_one_works(server, request_, status):
    found, headers, body = ask(server, **request_)
    assert found == status and "Content-Security-Policy" in headers
    if request_.get("method") != "HEAD":
        assert body["error"] and "Traceback" not in body["error"] and headers["Content-Type"] == "application/json"
    assert works(server)


def test_what_is_wrong_on_our_side_is_said_on_the_terminal(server, capsys):
    status, _, body = ask(server, path="/api/broken")
    assert status == 500 and "ZeroDivision" not in body["error"]
    assert "ZeroDivisionError: of ours" in capsys.readouterr().err
    assert works(server)


def test_a_full_disk_is_said_to_both(server, capsys):
    status, _, body = ask(server, path="/api/full")
    words = "people/comparisons.jsonl: No space left on device; free some space"
    assert (status, body["error"]) == (507, words) and words in capsys.readouterr().out
    assert works(server)


def test_bad_input_is_a_line(server):
    assert ask(server, path="/api/wrong")[2] == {"error": "name is missing"}


def test_from_json():
    assert from_json('{"ä": [1, null, "\\ud83d\\ude00"]}'.encode()) == {"ä": [1, None, "😀"]}
    with pytest.raises(Refused, match="must be an object"):
        from_json(b'"text"')


# ---------------------------------------------------------------------------------------------------- slow and many


def test_slow_clients_are_cut_off_and_do_not_stop_the_others(server, monkeypatch):
    """One says nothing, one sends a byte now and then, one promises a body, one reads nothing of what it gets."""
    monkeypatch.setattr(core.server, "SECONDS_TO_ASK", 0.5)
    host = f"Host: 127.0.0.1:{server.server_port}\r\n".encode()
    promise = b"POST /api/echo HTTP/1.0\r\n" + host + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    silent, dripping, promising = (socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(3))
    promising.sendall(promise)
    start = time.time()
    with pytest.raises(ConnectionError):
        while time.time() - start < 5:
            dripping.sendall(b"G")
            time.sleep(0.05)
            assert works(server)
    assert 0.4 < time.time() - start < 3
    for connection in (silent, promising):
        connection.settimeout(3)
        try:
            assert connection.recv(100) == b""
        except ConnectionResetError:
            pass
    for connection in (silent, dripping, promising):
        connection.close()


def test_one_address_cannot_take_all_connections(monkeypatch):
    monkeypatch.setattr(core.server, "CONNECTIONS_EACH", 5)
    with serving() as server:
        there = ("127.0.0.1", server.server_port)
        try:
            greedy = [socket.create_connection(there, source_address=("127.0.0.2", 0)) for _ in range(9)]
        except OSError:
            pytest.skip("this machine has no second loopback address")
        assert works(server)
        while server.open["127.0.0.2"] < 5:
            time.sleep(0.01)
        closed = 0
        for connection in greedy:
            connection.settimeout(0.1)
            try:
                closed += connection.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionResetError:
                closed += 1
        assert closed == 4 and works(server)
        for connection in greedy:
            connection.close()
        while server.open:
            time.sleep(0.01)


def test_the_queue_runs_one_at_a_time_and_refuses_beyond_its_limit():
    queue, inside, go_on, order = OneAtATime(2), threading.Event(), threading.Event(), []

    def work(number):
        inside.set()
        assert go_on.wait(5)
        order.append(number)
        return number * 10

    results = []
    first = threading.Thread(target=lambda: results.append(queue(work, 1)))
    first.start()
    assert inside.wait(5)
    second = threading.Thread(target=lambda: results.append(queue(work, 2)))
    second.start()
    while queue.places._value:
        time.sleep(0.005)
    with pytest.raises(Refused, match="2 questions are waiting already") as refused:
        queue(work, 3)
    assert refused.value.status == 503
    go_on.set()
    first.join()
    second.join()
    assert sorted(results) == [10, 20] and order == [1, 2]
    with pytest.raises(BadInput, match="as it was"):
        queue(raising, BadInput("as it was"))
    assert queue(work, 4) == 40


def raising(problem):
    raise problem


def test_addresses():
    assert is_loopback("127.0.0.1") and is_loopback("127.0.1.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.0.7")
    with serving("0.0.0.0", "k") as server:
        shown = address_of(server)
        assert shown.endswith(f":{server.server_port}/?key=k") and "0.0.0.0" not in shown
        assert ask(server, X_Key="k")[0] == 200
