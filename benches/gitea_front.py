"""What stands between Gitea, Mayfly and the guests in gitea.py.

`Front` is Gitea's address: it ends TLS, passes everything on, and writes down what the verdict needs: who registered a
runner, who deleted a row and whether it was busy, and what jobs report at their start and end. `Relay` receives Gitea's
webhooks, writes all of them down, and passes them on to Mayfly or loses them.
"""

import contextlib
import http.client
import http.server
import json
import re
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}
REPORTS = ("/UpdateTask", "/UpdateLog")


def certificates(directory, address):
    """An authority, and a certificate of the address. Returns (authority, TLS context of a server)."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, timeout=60, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=e2e authority",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *key, "-keyout", "front.key", "-out", "front.csr", "-subj", "/CN=e2e")
    (directory / "front.ext").write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "front.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "front.ext", "-out", "front.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "front.pem", directory / "front.key")
    return directory / "ca.pem", context


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address, handle, tls=None):
        self.handle_call, self.tls = handle, tls
        super().__init__(address, Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def finish_request(self, request, client_address):
        # In the connection's own thread, so that a slow guest delays no other.
        if self.tls:
            request.settimeout(120)
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, *_):
        """Guests that are killed, and a service that is killed, end their connections in the middle."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def answer(self):
        status, headers, body = self.server.handle_call(self.command, self.path, self.headers, self.body())
        self.send_response(status)
        for key, value in headers:
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304) and self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer


class Front:
    """`report_seconds`: how long each report of a runner's takes on its way."""

    def __init__(self, address, port, tls, gitea_port, report_seconds):
        self.gitea_port, self.report_seconds = gitea_port, report_seconds
        self.lock = threading.Lock()
        self.registered = {}  # name of a runner → its answers to Register
        self.deleted = []  # {"id", "name", "busy", "status", "at"} of rows
        self.said = []  # of jobs: {"number", "attempt", "what", "vm", "at"}
        self.token = None  # of an administrator, to look at a row before it is deleted
        self.server = Server((address, port), self.call, tls)

    def call(self, method, path, headers, body):
        if path.startswith("/_e2e/"):
            with self.lock:
                self.said.append({**json.loads(body), "at": time.time()})
            return 204, [], b""
        if path.endswith(REPORTS):
            time.sleep(self.report_seconds)
        row = None
        if method == "DELETE" and (at := re.fullmatch(r"(/api/v1/.*/actions/runners/)(\d+)", path.partition("?")[0])):
            row = {"id": int(at[2]), **self.row(at[0])}
        status, given, answer = self.forward(method, path, headers, body)
        if row is not None:
            with self.lock:
                self.deleted.append({**row, "status": status, "at": time.time()})
        if path.endswith(".RunnerService/Register") and status == 200:
            runner = json.loads(answer)["runner"]
            with self.lock:
                self.registered.setdefault(runner["name"], []).append(runner)
        return status, given, answer

    def row(self, path):
        status, _, answer = self.forward("GET", path, {"Authorization": "token " + self.token}, b"")
        row = json.loads(answer) if status == 200 else {}
        return {"name": row.get("name"), "busy": row.get("busy")}

    def forward(self, method, path, headers, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.gitea_port, timeout=90)
        with contextlib.closing(connection):
            keep = {key: value for key, value in headers.items() if key.lower() not in HOP_BY_HOP}
            # Read as it is: a compressed answer could not be looked into.
            keep.pop("Accept-Encoding", None)
            try:
                connection.request(method, path, body or (b"" if method in ("POST", "PUT", "PATCH") else None), keep)
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except (OSError, http.client.HTTPException):
                return 502, [], b""

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Relay:
    """`lose`: decides for each delivery whether it is lost."""

    def __init__(self, lose, target):
        self.lose, self.target = lose, target
        self.lock = threading.Lock()
        self.events = []  # {"job", "run", "action", "attempt", "runner", "runner_id", "conclusion", "at"}
        self.lost = self.refused = self.passed = 0
        self.server = Server(("127.0.0.1", 0), self.call)
        self.url = "http://127.0.0.1:%d/hook" % self.server.server_address[1]

    def call(self, _method, _path, headers, body):
        job = json.loads(body).get("workflow_job")
        with self.lock:
            if job:
                self.events.append({"job": job["id"], "run": job["run_id"], "action": job["status"],
                                    "attempt": job["run_attempt"], "runner": job.get("runner_name"), "runner_id": job.get("runner_id"),
                                    "conclusion": job.get("conclusion"), "at": time.time()})
            if self.lose():
                self.lost += 1
                return 200, [], b""
        keep = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP and k.lower() != "host"}
        request = urllib.request.Request(self.target(), data=body, method="POST", headers=keep)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                status = answer.status
            self.passed += 1
        except urllib.error.HTTPError as error:
            status = error.code
            # It answers 503 while it starts.
            self.lost += status >= 500
            self.refused += status < 500
        except OSError:
            # The service is down: Gitea does not repeat it.
            status = 503
            self.lost += 1
        return status, [], b""

    def close(self):
        self.server.shutdown()
        self.server.server_close()
