"""The double of Buildkite (tests/doubles/buildkite) behind TLS, at an address that the service and the guests reach."""

import contextlib
import http.client
import re
import subprocess
import sys
from urllib.parse import urlsplit

from peer import request
from service import ROOT

sys.path.insert(0, str(ROOT / "benches"))
from gitea_front import HOP_BY_HOP, Server, certificates  # noqa: E402

QUEUE = "linux"


class BuildkiteDouble:
    def __init__(self, program, directory, address):
        # It ends when its standard input does.
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, text=True)
        self.inner = urlsplit(self.process.stdout.readline().strip())
        self.authority, tls = certificates(directory, address)
        self.server = Server((address, 0), self.forward, tls)
        self.address = f"{address}:{self.server.server_address[1]}"
        self.url = f"https://{self.address}/v3"
        self.tell("knobs", {"endpoint": self.url})
        self.tell("queues", {"key": QUEUE})

    def forward(self, method, path, headers, body):
        # What prepares the double is not for guests.
        if path.startswith("/_double/"):
            return 404, [], b""
        connection = http.client.HTTPConnection(self.inner.hostname, self.inner.port, timeout=90)
        with contextlib.closing(connection):
            keep = {key: value for key, value in headers.items() if key.lower() not in HOP_BY_HOP}
            try:
                connection.request(method, path, body, keep)
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except (OSError, http.client.HTTPException):
                return 502, [], b""

    def tell(self, what, told=None):
        return request("POST", f"http://{self.inner.netloc}/_double/{what}", body=told or {})

    def job(self, command, env):
        told = {"queue": QUEUE, "rules": [f"queue={QUEUE}"], "step": "test", "command": command, "env": env}
        return self.tell("jobs", told)["id"]

    def jobs(self):
        return {job["id"]: job for job in self.tell("state")["jobs"]}

    def log(self, job):
        """Without the times and colours that the agent adds."""
        return re.sub(r"\x1b_bk;t=\d+\x07|\x1b\[[0-9;]*[mK]|\r", "", self.tell("log", {"job": job})["log"])

    def end(self):
        self.server.shutdown()
        self.server.server_close()
        self.process.stdin.close()
        self.process.wait()
