"""A real myshoes with its database, and a copy of `mayfly` as its plugin."""

import base64
import getpass
import glob
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from github_for_myshoes import OWNER, REPOSITORY
from peer import free_port, request, wait

SECRET = "hook"


class Database:
    """MariaDB on a directory of its own."""

    def __init__(self, directory, schema):
        self.directory, self.port = directory, free_port()
        self.socket = directory / "socket"
        data = directory / "data"
        data.mkdir(parents=True)
        with open(directory / "log", "ab") as log:
            subprocess.run(["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={getpass.getuser()}",
                            "--auth-root-authentication-method=normal", "--skip-test-db"], stdout=log, stderr=log, check=True)
            program = shutil.which("mariadbd", path=os.environ["PATH"] + ":/usr/sbin") or "mariadbd"
            self.process = subprocess.Popen([program, "--no-defaults", f"--datadir={data}", f"--socket={self.socket}",
                                             f"--port={self.port}", "--bind-address=127.0.0.1",
                                             f"--user={getpass.getuser()}", f"--pid-file={directory}/pid"],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait("MariaDB answers", 60, lambda: self.run("SELECT 1", check=False))
        self.run("CREATE DATABASE myshoes; CREATE USER shoes IDENTIFIED BY 'shoes'; GRANT ALL ON myshoes.* TO shoes")
        self.run(f"USE myshoes; SET FOREIGN_KEY_CHECKS=0; {Path(schema).read_text()}")
        self.url = f"shoes:shoes@tcp(127.0.0.1:{self.port})/myshoes"

    def run(self, statement, check=True):
        ran = subprocess.run(["mariadb", "--no-defaults", f"--socket={self.socket}", "--user=root", "--batch",
                              "--skip-column-names"], input=statement, text=True, capture_output=True, check=False)
        if ran.returncode and check:
            raise AssertionError(f"MariaDB: {ran.stderr}")
        return [line.split("\t") for line in ran.stdout.splitlines()]

    def kill(self):
        self.process.kill()
        self.process.wait()


class Myshoes:
    def __init__(self, program, plugin, config, database, github, directory):
        self.program, self.database, self.github, self.directory = program, database, github, directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # myshoes makes its plugin writable for everyone, so it is a copy in a directory that others cannot enter.
        home = directory / "plugin"
        home.mkdir(mode=0o700)
        self.plugin = home / "shoes-mayfly"
        shutil.copy(plugin, self.plugin)
        key = subprocess.run(["openssl", "genrsa", "-traditional", "2048"], capture_output=True, check=True).stdout
        self.environment = {
            "PATH": os.environ["PATH"], "PORT": str(self.port), "PLUGIN": str(self.plugin), "MYSQL_URL": database.url,
            "GITHUB_URL": github.url, "GITHUB_APP_ID": "1", "GITHUB_APP_SECRET": SECRET,
            "GITHUB_PRIVATE_KEY_BASE64": base64.b64encode(key).decode(), "MAYFLY_SHOES_CONFIG": str(config),
        }
        self.process = None
        self.start()
        self.call("POST", "/target", {"scope": f"{OWNER}/{REPOSITORY}", "resource_type": "micro"})

    def start(self):
        with open(self.directory / "myshoes.log", "ab") as log:
            self.process = subprocess.Popen([self.program], env=self.environment, cwd=self.directory,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers():
            if self.process.poll() is not None:
                raise AssertionError(f"myshoes ended: {self.log()[-2000:]}")
            try:
                request("GET", f"{self.url}/healthz", timeout=5)
            except urllib.error.HTTPError:
                return True
            except (OSError, ValueError):
                return False
            return True

        wait("myshoes answers", 60, answers)

    def log(self):
        return (self.directory / "myshoes.log").read_text(errors="replace")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def call(self, method, path, body=None):
        try:
            return request(method, self.url + path, None, body)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"myshoes answered {error.code} to {method} {path}: {error.read().decode()}") from error

    def deliver(self, number, labels=("self-hosted", "linux")):
        """GitHub's webhook of a job that is queued. True: it was accepted."""
        body = json.dumps({
            "action": "queued", "installation": {"id": 1},
            "repository": {"id": 1, "full_name": f"{OWNER}/{REPOSITORY}", "html_url": f"{self.github.url}/{OWNER}/{REPOSITORY}"},
            "workflow_job": {"id": number, "run_id": number, "name": "build", "labels": list(labels), "status": "queued"},
        }).encode()
        signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        call = urllib.request.Request(f"{self.url}/github/events", data=body, method="POST", headers={
            "content-type": "application/json", "x-github-event": "workflow_job", "x-hub-signature-256": signature})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(call, timeout=30) as answer:
                return answer.status == 200
        except OSError:
            return False

    def jobs(self):
        """Runner names of the jobs that wait for a runner."""
        return {f"myshoes-{job}" for (job,) in self.database.run("SELECT uuid FROM myshoes.jobs")}

    def runners(self):
        """Runners by name, with the vm of each: what myshoes believes to have."""
        rows = self.database.run("SELECT r.runner_id, d.cloud_id FROM myshoes.runners_running r "
                                 "JOIN myshoes.runner_detail d ON d.runner_id = r.runner_id")
        return {f"myshoes-{runner}": vm for runner, vm in rows}

    def providers(self):
        """Pids of the plugins that run now, those of a myshoes that was killed as well."""
        found = []
        for entry in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                line = Path(entry).read_bytes().split(b"\0")
            except OSError:
                continue
            if line[0] == str(self.plugin).encode():
                found.append(int(entry.split("/")[2]))
        return found
