"""Plays the part of GitLab that hands out jobs: what GitLab Runner asks for jobs, and reports to."""

import http.server
import json
import re
import threading

TOKEN = "glrt-played-by-a-test"


class GitLabJobs(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.jobs = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, script, image, secret):
        with self.lock:
            job = Job(len(self.jobs) + 101, script, image, secret)
            self.jobs.append(job)
            return job

    def take(self):
        with self.lock:
            for job in self.jobs:
                if job.state == "pending":
                    job.state = "running"
                    job.taken += 1
                    return job.response(self.url)
        return None

    def find(self, number):
        return next((job for job in self.jobs if job.id == number), None)


class Job:
    def __init__(self, number, script, image, secret):
        self.id, self.script, self.image, self.secret = number, script, image, secret
        self.token = f"glcbt-{secret}-{number}"
        self.state, self.failure, self.exit_code, self.taken = "pending", None, None, 0
        self.canceled = False
        self.trace = b""

    def over(self):
        return self.state in ("success", "failed") or (self.canceled and self.state == "canceled")

    def log(self):
        return self.trace.decode(errors="replace")

    def response(self, url):
        variable = {"public": False, "masked": True, "raw": False, "file": False}
        return {
            "id": self.id, "token": self.token, "allow_git_fetch": False,
            "job_info": {"name": f"job {self.id}", "stage": "test", "project_id": 3, "project_name": "app"},
            "git_info": {"repo_url": f"{url.replace('//', f'//gitlab-ci-token:{self.token}@')}/acme/app.git", "ref": "main",
                         "sha": "72863b1c72863b1c72863b1c72863b1c72863b1c", "before_sha": "0" * 40, "ref_type": "branch",
                         "refspecs": [], "depth": 0},
            "runner_info": {"timeout": 600},
            "variables": [
                {"key": "CI_SERVER_URL", "value": url, **variable, "public": True, "masked": False},
                {"key": "CI_PROJECT_PATH", "value": "acme/app", **variable, "public": True, "masked": False},
                {"key": "CI_JOB_ID", "value": "1", **variable, "public": True, "masked": False},
                {"key": "GIT_STRATEGY", "value": "none", **variable, "public": True, "masked": False},
                {"key": "DEPLOY_KEY", "value": self.secret, **variable},
            ],
            "steps": [{"name": "script", "script": self.script, "timeout": 600, "when": "on_success", "allow_failure": False}],
            "image": {"name": self.image} if self.image else None,
            "services": [], "artifacts": [], "cache": [], "credentials": [], "dependencies": [],
            "features": {"trace_sections": True, "failure_reasons": ["unknown_failure", "script_failure", "runner_system_failure"]},
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=None, headers=()):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def body(self):
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def job(self):
        found = re.match(r"/api/v4/jobs/(\d+)", self.path)
        return found and self.server.find(int(found[1]))

    def do_POST(self):
        body = json.loads(self.body() or b"{}")
        if self.path != "/api/v4/jobs/request":
            return self.answer(200 if self.path == "/api/v4/runners/verify" else 404, {})
        if body.get("token") != TOKEN:
            return self.answer(403, {"message": "403 Forbidden"})
        job = self.server.take()
        if job is None:
            return self.answer(204, headers=[("X-GitLab-Last-Update", "now")])
        self.answer(201, job)

    def do_PATCH(self):
        body, job = self.body(), self.job()
        if job is None or self.headers.get("JOB-TOKEN") != job.token:
            return self.answer(403, {"message": "403 Forbidden"})
        begin = int(self.headers["Content-Range"].split("-")[0])
        if begin != len(job.trace):
            return self.answer(416, headers=[("Range", f"0-{len(job.trace)}")])
        job.trace += body
        # A job that is canceled is told so here, and with the next report of its state.
        state = "canceled" if job.canceled else "running"
        self.answer(202, headers=[("Job-Status", state), ("Range", f"0-{len(job.trace)}"), ("X-GitLab-Trace-Update-Interval", "3")])

    def do_PUT(self):
        body, job = json.loads(self.body()), self.job()
        if job is None or body.get("token") != job.token:
            return self.answer(403, {"message": "403 Forbidden"})
        if job.canceled:
            if job.state != "canceled":
                job.state = "canceled"
            return self.answer(200, headers=[("Job-Status", "canceled")])
        if body["state"] in ("success", "failed"):
            job.failure, job.exit_code = body.get("failure_reason"), body.get("exit_code")
            job.state = body["state"]
        self.answer(200, headers=[("Job-Status", job.state)])
