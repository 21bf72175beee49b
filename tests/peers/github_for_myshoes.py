"""The part of GitHub that myshoes asks: its App, the runners of one repository, their registration tokens.

It answers like GitHub Enterprise Server (`/api/v3`). Tests say which runners are online.
"""

import json
import re
import threading
import uuid
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

OWNER, REPOSITORY = "acme", "app"
RUNNER_VERSION = "2.335.1"


class GitHub:
    def __init__(self):
        self.lock = threading.Lock()
        self.runners = {}
        self.last_id = 0
        self.tokens = []
        self.finished = set()
        github = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path, _, query = self.path.partition("?")
                if path.startswith("/_simulated/"):
                    status, value, headers = 200, github.simulated(path.removeprefix("/_simulated/"), body.decode()), {}
                else:
                    with github.lock:
                        status, value, headers = github.handle(self.command, path, parse_qs(query))
                data = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                """Clients are killed in the middle of a request."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def register(self, name):
        """A runner of this name is online. GitHub refuses a name that a runner has already."""
        with self.lock:
            if any(runner["name"] == name for runner in self.runners.values()):
                return False
            self.last_id += 1
            self.runners[self.last_id] = {
                "id": self.last_id, "name": name, "os": "linux", "status": "online", "busy": False, "ephemeral": True,
                "labels": [{"id": 1, "name": "myshoes", "type": "custom"}],
            }
            return True

    def change(self, name, **changes):
        with self.lock:
            for runner in self.runners.values():
                if runner["name"] == name:
                    runner.update(changes)

    def remove(self, name):
        """As after the job of an ephemeral runner."""
        with self.lock:
            self.runners = {number: runner for number, runner in self.runners.items() if runner["name"] != name}

    def has(self, name):
        with self.lock:
            return any(runner["name"] == name for runner in self.runners.values())

    def finish(self, name):
        """The job of this runner is over, so the runner ends."""
        self.remove(name)
        self.finished.add(name)

    def simulated(self, path, body):
        """What the runner in a real guest asks."""
        what, _, name = path.partition("/")
        if what == "register":
            if body not in self.tokens:
                return "this is no registration token"
            return "registered" if self.register(name) else "a runner has this name"
        return "done" if name in self.finished else "go on"

    def handle(self, method, path, query):
        soon = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = path.removeprefix("/api/v3")
        if path == "/app/installations":
            account = {"id": 1, "login": OWNER, "type": "Organization"}
            return 200, [{"id": 1, "account": account, "repository_selection": "all", "suspended_at": None}], {}
        if re.fullmatch(r"/app/installations/\d+/access_tokens", path):
            return 201, {"token": "ghs_simulated", "expires_at": soon}, {}
        rest = path.removeprefix(f"/repos/{OWNER}/{REPOSITORY}")
        if rest == path:
            return 404, {"message": "Not Found"}, {}
        if rest == "":
            return 200, {"id": 1, "full_name": f"{OWNER}/{REPOSITORY}"}, {}
        if rest == "/actions/runners/downloads":
            return 200, [{"os": "linux", "architecture": "x64", "download_url": f"{self.url}/runner",
                          "filename": f"actions-runner-linux-x64-{RUNNER_VERSION}.tar.gz"}], {}
        if rest == "/actions/runners/registration-token":
            self.tokens.append(f"registration-{uuid.uuid4().hex}")
            return 201, {"token": self.tokens[-1], "expires_at": soon}, {}
        if rest == "/actions/runners":
            size, page = int(query.get("per_page", ["30"])[0]), max(1, int(query.get("page", ["1"])[0]))
            runners = list(self.runners.values())
            headers = {}
            if page * size < len(runners):
                url = f"{self.url}{path}?per_page={size}&page={page + 1}"
                headers["link"] = f'<{url}>; rel="next"'
            return 200, {"total_count": len(runners), "runners": runners[(page - 1) * size:page * size]}, headers
        if rest == "/actions/runs":
            return 200, {"total_count": 0, "workflow_runs": []}, {}
        one = re.fullmatch(r"/actions/runners/(\d+)", rest)
        if one and int(one[1]) in self.runners:
            runner = self.runners[int(one[1])]
            if method != "DELETE":
                return 200, runner, {}
            if runner["busy"]:
                return 422, {"message": "Bad request - Runner is currently running a job"}, {}
            del self.runners[runner["id"]]
            return 204, None, {}
        return 404, {"message": "Not Found"}, {}
