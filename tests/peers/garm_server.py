"""A real GARM, with `mayfly` as its provider."""

import glob
import hmac
import json
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from peer import free_port, request, wait
from service import MayflyWithGuests

PASSWORD = "a-Long-and-Strong-Passw0rd!"
OWNER, REPOSITORY = "acme", "app"
SECRET = "hook"


class Garm:
    def __init__(self, program, mayfly, github, directory, version):
        self.program, self.mayfly, self.github, self.directory = program, mayfly, github, directory
        # As the guests of this service reach it, if it has real ones.
        self.address = "10.0.2.2" if isinstance(mayfly, MayflyWithGuests) else "127.0.0.1"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        (directory / "garm.token").write_text(mayfly.token)
        (directory / "mayfly.toml").write_text(
            f'url = "{mayfly.url}"\ntoken_file = "{directory}/garm.token"\ntimeout_seconds = 60\n')
        os.symlink(mayfly.program, directory / "garm-provider-mayfly")
        (directory / "config.toml").write_text(f"""
[default]
enable_webhook_management = true
[logging]
log_format = "text"
log_level = "debug"
[jwt_auth]
secret = "Seb3*2d9kD!fLq0zPw7^uYvXn5sRtA1c"
time_to_live = "8760h"
[apiserver]
bind = "127.0.0.1"
port = {self.port}
use_tls = false
  [apiserver.webui]
  enable = false
[database]
backend = "sqlite3"
passphrase = "shreotsinWadquidAitNefayctowUrph"
  [database.sqlite3]
  db_file = "{directory}/garm.db"
  busy_timeout_seconds = 5
[[provider]]
name = "mayfly"
provider_type = "external"
description = "vms of Mayfly"
  [provider.external]
  provider_executable = "{directory}/garm-provider-mayfly"
  config_file = "{directory}/mayfly.toml"
  interface_version = "{version}"
""")
        self.architecture = "amd64" if isinstance(mayfly, MayflyWithGuests) else "arm64"
        self.process = None
        self.start()
        base = f"http://{self.address}:{self.port}"
        self.call("POST", "/first-run", {"username": "admin", "email": "a@example.com", "full_name": "A",
                                         "password": PASSWORD})
        self.login()
        self.call("PUT", "/controller", {"metadata_url": f"{base}/api/v1/metadata",
                                         "callback_url": f"{base}/api/v1/callbacks", "webhook_url": f"{base}/webhooks",
                                         "minimum_job_age_backoff": 0})
        self.call("POST", "/github/endpoints", {"name": "simulated", "description": "simulated", "base_url": github.url,
                                                "api_base_url": github.url, "upload_base_url": github.url})
        self.call("POST", "/github/credentials", {"name": "simulated", "description": "simulated", "endpoint": "simulated",
                                                  "auth_type": "pat", "pat": {"oauth2_token": "token"}})
        self.repository = self.call("POST", "/repositories", {
            "owner": OWNER, "name": REPOSITORY, "credentials_name": "simulated", "webhook_secret": SECRET,
            "pool_balancer_type": "roundrobin"})["id"]

    def start(self):
        with open(self.directory / "garm.log", "ab") as log:
            self.process = subprocess.Popen([self.program, "--config", str(self.directory / "config.toml")], env={},
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers():
            if self.process.poll() is not None:
                raise AssertionError(f"GARM ended: {(self.directory / 'garm.log').read_text()[-2000:]}")
            try:
                request("GET", f"{self.url}/controller-info", timeout=5)
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        wait("GARM answers", 60, answers)

    def login(self):
        answer = request("POST", f"{self.url}/auth/login", body={"username": "admin", "password": PASSWORD})
        self.token = answer["token"]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def call(self, method, path, body=None):
        try:
            return request(method, self.url + path, getattr(self, "token", None), body)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"GARM answered {error.code} to {method} {path}: {error.read().decode()}") from error

    def new_pool(self, idle, most, **changes):
        body = {"provider_name": "mayfly", "max_runners": most, "min_idle_runners": idle, "image": "micro",
                "flavor": "default", "os_type": "linux", "os_arch": self.architecture, "tags": ["mac"], "enabled": True,
                "runner_bootstrap_timeout": 20, **changes}
        return self.call("POST", f"/repositories/{self.repository}/pools", body)["id"]

    def new_scale_set(self, name, idle, most):
        body = {"name": name, "provider_name": "mayfly", "max_runners": most, "min_idle_runners": idle,
                "image": "micro", "flavor": "default", "os_type": "linux", "os_arch": self.architecture, "enabled": True,
                "runner_bootstrap_timeout": 20}
        return self.call("POST", f"/repositories/{self.repository}/scalesets", body)["id"]

    def deliver(self, action, job, runner=None):
        """Sends a webhook of GitHub about a job."""
        owner = {"login": OWNER, "html_url": f"{self.github.url}/{OWNER}"}
        body = json.dumps({
            "action": action,
            "workflow_job": {"id": job, "run_id": job, "name": "build", "labels": ["mac"], "status": action,
                             "html_url": f"{self.github.url}/{OWNER}/{REPOSITORY}/actions/runs/{job}/job/{job}",
                             "conclusion": "success" if action == "completed" else None, "runner_name": runner or ""},
            "repository": {"id": 1, "name": REPOSITORY, "full_name": f"{OWNER}/{REPOSITORY}", "owner": owner,
                           "html_url": f"{self.github.url}/{OWNER}/{REPOSITORY}"},
            "sender": owner,
        }).encode()
        signature = hmac.new(SECRET.encode(), body, "sha256").hexdigest()
        call = urllib.request.Request(f"http://127.0.0.1:{self.port}/webhooks", data=body, headers={
            "content-type": "application/json", "x-github-event": "workflow_job",
            "x-github-hook-installation-target-type": "repository", "x-hub-signature-256": f"sha256={signature}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(call, timeout=30):
            pass

    def instances(self):
        return {instance["name"]: instance for instance in self.call("GET", "/instances") or []}

    def running(self):
        return sorted(name for name, instance in self.instances().items() if instance["status"] == "running")

    def remove(self, name, force):
        self.call("DELETE", f"/instances/{name}?forceRemove={'true' if force else 'false'}")

    def providers(self):
        """Pids of the providers that run now, those of a GARM that was killed as well."""
        return with_program(self.directory / "garm-provider-mayfly")


def with_program(path):
    """Pids of the processes that were started as this program."""
    found = []
    for entry in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if Path(entry).read_bytes().split(b"\0")[0] == str(path).encode():
                found.append(int(entry.split("/")[2]))
        except OSError:
            continue
    return found
