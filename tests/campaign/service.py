"""The service under test: starts, kills and stalls it, and is its client."""

import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request


class NotAnswered(Exception):
    """There was no answer, or one that asks for a retry."""


class Refused(Exception):
    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


def free_port():
    """A port below the range of ephemeral ports, so that a restarted service can use it again."""
    for _ in range(1000):
        port = random.randrange(20000, 30000)
        with contextlib.closing(socket.socket()) as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            return port
    raise SystemExit("campaign: no free port on loopback")


class Service:
    def __init__(self, binary, data, log, environment):
        self.binary, self.data, self.log_path = binary, data, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
        self.environment.update(environment, MAYFLY_SERVER__LISTEN=f"127.0.0.1:{self.port}")
        self.process = None
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def start(self, descriptors=None):
        command = [str(self.binary), "--data-dir", str(self.data), "serve"]
        if descriptors:
            command = ["prlimit", f"--nofile={descriptors}:{descriptors}"] + command
        with open(self.log_path, "ab", buffering=0) as log:
            self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, stderr=log)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def await_answer(self, seconds):
        """True once it answers; False if it ended or the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.alive():
            with contextlib.suppress(NotAnswered, Refused):
                self.call("GET", "/healthz", timeout=2)
                return True
            time.sleep(0.02)
        return False

    def kill(self):
        if self.alive():
            self.process.kill()
        if self.process:
            self.process.wait()

    def signal(self, number):
        if self.alive():
            self.process.send_signal(number)

    def stop(self, seconds=30):
        """Its exit status, or None if it did not end by itself."""
        if not self.process:
            return None
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def token(self):
        try:
            return (pathlib.Path(self.data) / "admin.token").read_text().strip()
        except OSError:
            return ""

    def call(self, method, path, body=None, key=None, timeout=5):
        headers = {"Authorization": "Bearer " + self.token(), "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
        try:
            with self.opener.open(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with contextlib.suppress(OSError, http.client.HTTPException):
                said = error.read(4096).decode(errors="replace")
                if error.code < 500 and error.code not in (408, 429):
                    raise Refused(error.code, said) from None
            raise NotAnswered(f"status {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NotAnswered(str(error)) from None
        try:
            return json.loads(text) if text[:1] in (b"{", b"[") else text
        except ValueError:
            raise NotAnswered("the answer was cut off") from None

    def insist(self, method, path, body=None, key=None, seconds=300, stop=None):
        """Repeats the request until there is an answer, like an autoscaler."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self.call(method, path, body, key)
            except NotAnswered as error:
                if time.monotonic() > until or (stop and stop.is_set()):
                    raise NotAnswered(f"{method} {path} was not answered within {seconds} s: {error}") from None
            time.sleep(0.2)

    def log_size(self):
        try:
            return os.path.getsize(self.log_path)
        except OSError:
            return 0
