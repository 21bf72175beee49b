"""The part of GitHub that GARM asks: runners of one repository, their registration, and runner scale sets.

It answers like GitHub Enterprise Server (`/api/v3`), and runs no job: tests say which runners are online.
"""

import base64
import contextlib
import json
import re
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def encoded(value):
    return base64.b64encode(json.dumps(value).encode()).decode()


def jit_config(name):
    """As GitHub encodes it: each file again in base64."""
    files = {".runner": {"agentName": name}, ".credentials": {"scheme": "OAuth"}, ".credentials_rsaparams": {"d": "x"}}
    return encoded({file: encoded(content) for file, content in files.items()})


class GitHub:
    def __init__(self):
        self.lock = threading.Lock()
        self.runners = {}
        self.scale_sets = {}
        self.messages = {}
        # Jobs that are assigned to a scale set and not over.
        self.assigned = {}
        self.finished = set()
        self.over = threading.Condition()
        self.last_id = 0
        self.removed = []
        github = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                length = int(self.headers.get("content-length") or 0)
                text = self.rfile.read(length)
                body = json.loads(text) if text else None
                path, _, query = self.path.partition("?")
                status, value = github.handle(self.command, path, query, body)
                data = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                # A GARM that was killed hears no answer.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def names(self):
        with self.lock:
            return {runner["name"] for runner in self.runners.values()}

    def new_runner(self, name, labels, scale_set=0):
        self.last_id += 1
        runner = {
            "id": self.last_id,
            "name": name,
            "os": "linux",
            "status": "offline",
            "busy": False,
            "ephemeral": True,
            "labels": [{"id": 1, "name": label, "type": "custom"} for label in labels],
            "scale_set": scale_set,
        }
        self.runners[runner["id"]] = runner
        return runner

    def send(self, scale_set, kind, jobs):
        """Queues a message for the session of a scale set."""
        with self.lock:
            queue = self.messages.setdefault(scale_set, [])
            self.last_id += 1
            queue.append({"messageId": self.last_id, "messageType": "RunnerScaleSetJobMessages",
                          "body": json.dumps([{"messageType": kind, **job} for job in jobs])})

    def id_of(self, name):
        with self.lock:
            return next(runner["id"] for runner in self.runners.values() if runner["name"] == name)

    def finish(self, name):
        """The job of this runner is over. An ephemeral runner is removed."""
        with self.over:
            self.finished.add(name)
            self.over.notify_all()

    def online(self, name):
        """A runner says that it is online, and is told when its job is over."""
        with self.lock:
            runner = next((runner for runner in self.runners.values() if runner["name"] == name), None)
            if runner is None:
                return 404, {"message": "no such runner"}
            runner["status"] = "online"
        with self.over:
            if not self.over.wait_for(lambda: name in self.finished, timeout=25):
                return 200, "work"
        with self.lock:
            self.runners.pop(runner["id"], None)
        return 200, "done"

    def statistics(self, scale_set):
        count = sum(1 for runner in self.runners.values() if runner["scale_set"] == scale_set)
        assigned = self.assigned.get(scale_set, 0)
        return {"totalAvailableJobs": 0, "totalAcquiredJobs": 0, "totalAssignedJobs": assigned, "totalRunningJobs": 0,
                "totalRegisteredRunners": count, "totalBusyRunners": 0, "totalIdleRunners": count}

    def handle(self, method, path, query, body):
        if method == "GET" and path.startswith("/queue/"):
            return self.next_message(int(path.split("/")[2]), query)
        if path.startswith("/_simulated/online/"):
            return self.online(path.split("/")[3])
        with self.lock:
            if path.startswith("/api/v3"):
                return self.rest(method, path.removeprefix("/api/v3"), body)
            return self.actions(method, path, query, body)

    def rest(self, method, path, body):
        soon = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if path == "/rate_limit":
            core = {"limit": 5000, "remaining": 5000, "used": 0, "reset": int(time.time()) + 3600}
            return 200, {"resources": {"core": core}, "rate": core}
        repository = re.fullmatch(r"/repos/([^/]+)/([^/]+)/(.+)", path)
        if not repository:
            return 404, {"message": "Not Found"}
        rest = repository[3]
        if rest == "actions/runners/downloads":
            name = "actions-runner-linux-x64-2.335.1.tar.gz"
            return 200, [
                {"os": system, "architecture": arch, "download_url": f"{self.url}/{name}", "filename": name,
                 "sha256_checksum": "00"}
                for system, arch in [("linux", "x64"), ("linux", "arm64"), ("osx", "arm64"), ("win", "x64")]
            ]
        if rest == "actions/runners/registration-token":
            return 201, {"token": "registration-token", "expires_at": soon}
        if rest == "actions/runners/generate-jitconfig":
            if body["name"] in {runner["name"] for runner in self.runners.values()}:
                return 409, {"message": "Already exists"}
            runner = self.new_runner(body["name"], body["labels"])
            return 201, {"runner": runner, "encoded_jit_config": jit_config(body["name"])}
        if rest == "actions/runners":
            runners = [runner for runner in self.runners.values()]
            return 200, {"total_count": len(runners), "runners": runners}
        one = re.fullmatch(r"actions/runners/(\d+)", rest)
        if one:
            runner = self.runners.get(int(one[1]))
            if runner is None:
                return 404, {"message": "Not Found"}
            if method == "DELETE":
                if runner["busy"]:
                    return 422, {"message": "Bad request - Runner is currently running a job"}
                del self.runners[runner["id"]]
                self.removed.append(runner["name"])
                return 204, None
            return 200, runner
        if rest == "hooks":
            return 200, []
        return 404, {"message": "Not Found"}

    def actions(self, method, path, query, body):
        if path == "/actions/runner-registration":
            claims = {"exp": int(time.time()) + 3600}
            part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
            return 200, {"url": f"{self.url}/service/", "token": f"e30.{part}.e30"}
        path = path.removeprefix("/service")
        sets = "/_apis/runtime/runnerscalesets"
        if path.startswith("/_apis/runtime/runnergroups"):
            return 200, {"count": 1, "value": [{"id": 1, "name": "Default", "size": 0, "isDefaultGroup": True}]}
        if path == sets and method == "POST":
            self.last_id += 1
            made = {**body, "id": self.last_id, "runnerGroupId": 1, "runnerGroupName": "Default",
                    "createdOn": "2026-11-01T00:00:00Z"}
            self.scale_sets[self.last_id] = made
            return 200, {**made, "statistics": self.statistics(made["id"])}
        if path == sets:
            found = list(self.scale_sets.values())
            return 200, {"count": len(found), "value": found}
        one = re.fullmatch(sets + r"/(\d+)(/.*)?", path)
        if one:
            number, rest = int(one[1]), one[2] or ""
            found = self.scale_sets.get(number)
            if found is None:
                return 404, {"message": "no such scale set"}
            if rest == "" and method == "DELETE":
                del self.scale_sets[number]
                return 204, None
            if rest == "":
                if method == "PATCH":
                    found.update(body)
                return 200, {**found, "statistics": self.statistics(number)}
            if rest == "/generatejitconfig":
                runner = self.new_runner(body["name"], [], number)
                return 200, {"runner": self.reference(runner), "encodedJITConfig": jit_config(body["name"])}
            if rest == "/acquirejobs":
                return 200, {"count": len(body), "value": body}
            if rest.startswith("/sessions"):
                if method == "DELETE":
                    return 204, None
                claims = {"exp": int(time.time()) + 3600}
                part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
                return 200, {"sessionId": str(uuid.uuid4()), "ownerName": "garm", "runnerScaleSet": found,
                             "messageQueueUrl": f"{self.url}/queue/{number}",
                             "messageQueueAccessToken": f"e30.{part}.e30", "statistics": self.statistics(number)}
        if path.startswith("/queue/"):
            return 204, None
        agents = "/_apis/distributedtask/pools/0/agents"
        if path == agents:
            named = re.search(r"agentName=([^&]+)", query)
            found = [self.reference(runner) for runner in self.runners.values()
                     if not named or runner["name"] == named[1]]
            return 200, {"count": len(found), "value": found}
        one = re.fullmatch(agents + r"/(\d+)", path)
        if one:
            runner = self.runners.get(int(one[1]))
            if runner is None:
                return 404, {"message": "no such agent"}
            if method == "DELETE":
                del self.runners[runner["id"]]
                self.removed.append(runner["name"])
                return 204, None
            return 200, self.reference(runner)
        return 404, {"message": "Not Found"}

    @staticmethod
    def reference(runner):
        return {"id": runner["id"], "name": runner["name"], "os": "Linux", "runnerScaleSetId": runner["scale_set"],
                "createdOn": "2026-11-01T00:00:00Z", "runnerGroupId": 1, "runnerGroupName": "Default",
                "version": "2.335.1", "enabled": True, "ephemeral": True, "status": runner["status"],
                "provisioningState": "Provisioned", "busy": runner["busy"], "labels": runner["labels"]}

    def next_message(self, scale_set, query):
        last = re.search(r"lastMessageId=(\d+)", query)
        last = int(last[1]) if last else 0
        for _ in range(20):
            with self.lock:
                for message in self.messages.get(scale_set, []):
                    if message["messageId"] > last:
                        return 200, {**message, "statistics": self.statistics(scale_set)}
            time.sleep(0.5)
        return 202, None
