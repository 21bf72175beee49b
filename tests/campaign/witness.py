"""Observes jobs inside the guests: each job reports its start and its end to this server, bypassing the service.

Guests reach it at 10.0.2.2, which is this host's loopback. Each run of a job generates a number when it starts, so a
repeated report counts once and a job that starts again counts twice."""

import http.server
import threading
import time

# A job first reports its start, and continues only after that was accepted. The console is a second record. A report is
# repeated for ten minutes.
SCRIPT = """\
#!/bin/sh
run=$(cat /proc/sys/kernel/random/uuid)
report() {{
    tries=0
    until curl -q -s -f -o /dev/null --noproxy '*' --max-time 5 "http://10.0.2.2:{port}/$1/{nonce}/$run"; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || exit 99
        sleep 1
    done
}}
echo "CAMPAIGN-START {nonce} $run" >/dev/console
report start
sleep {seconds}
report end
echo "CAMPAIGN-END {nonce} $run" >/dev/console
exit {code}
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if len(parts) == 3 and parts[0] in ("start", "end"):
            self.server.witness.heard(*parts)
            self.send_response(200)
        else:
            self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class Witness:
    def __init__(self):
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.witness = self
        self.port = self.server.server_address[1]
        self.lock = threading.Lock()
        self.reports = {"start": {}, "end": {}}
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def script(self, nonce, seconds, code):
        return SCRIPT.format(port=self.port, nonce=nonce, seconds=seconds, code=code)

    def heard(self, what, nonce, run):
        with self.lock:
            self.reports[what].setdefault(nonce, {}).setdefault(run, time.monotonic())

    def runs(self, what, nonce):
        """Run → when it was first reported."""
        with self.lock:
            return dict(self.reports[what].get(nonce, {}))

    def close(self):
        self.server.shutdown()
        self.server.server_close()
