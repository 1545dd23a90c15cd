"""A web server on loopback for the tests of downloads."""

import http.server
import threading


class Server:
    """Serves `content` at every address. cut: send only so many bytes of it, and say that it is whole."""

    def __init__(self, content, cut=None):
        server = self
        server.content, server.cut, server.asked = content, cut, []

        class Handler(http.server.BaseHTTPRequestHandler):
            def head(self):
                if "missing" in self.path:
                    self.send_error(404)
                    return False
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.content)))
                self.end_headers()
                return True

            def do_HEAD(self):
                self.head()

            def do_GET(self):
                server.asked.append(self.path)
                if self.head():
                    self.wfile.write(server.content[: server.cut])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
