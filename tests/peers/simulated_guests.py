"""Guests of a simulated hypervisor: they report what the wrapper in a real guest reports.

What a guest needs to report is its token, which the service gives to the client that creates the vm. So there is a proxy
between client and service, which passes everything on unchanged and reads the tokens.
"""

import http.client
import json
import threading
import time
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from peer import request, say


class SimulatedGuests:
    def __init__(self, mayfly, github):
        self.mayfly, self.github = mayfly, github
        self.tokens, self.simulated = {}, {}
        # Nothing boots while this is set.
        self.hold = threading.Event()
        # What becomes of a guest that is up: "ends" with its job, "hangs" after it, or is "silent" and never registers.
        self.choose = lambda name: "ends"
        self.ended = threading.Event()
        guests = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items()
                           if name.lower() not in ("host", "connection", "content-length")}
                upstream = http.client.HTTPConnection("127.0.0.1", mayfly.port, timeout=300)
                try:
                    upstream.request(self.command, self.path, body or None, headers)
                    answer = upstream.getresponse()
                    data = answer.read()
                except OSError:
                    # As if there were no proxy: the connection ends without an answer.
                    self.close_connection = True
                    return
                finally:
                    upstream.close()
                if self.command == "POST" and self.path == "/vms" and answer.status in (200, 201):
                    made = json.loads(data)
                    if made.get("callback_token"):
                        guests.tokens[made["id"]] = made["callback_token"]
                try:
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                            self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                """Clients are killed in the middle of a request."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        threading.Thread(target=self.boot, daemon=True).start()

    def end(self):
        self.ended.set()

    def boot(self):
        while not self.ended.wait(0.2):
            if self.hold.is_set():
                continue
            try:
                booting = self.mayfly.api("GET", "/vms?state=booting&limit=200")["items"]
            except (OSError, ValueError):
                continue
            for vm in booting:
                key = (vm["id"], vm["attempt"])
                if vm["id"] in self.tokens and key not in self.simulated:
                    self.simulated[key] = True
                    threading.Thread(target=self.live, args=(vm, key), daemon=True).start()

    def live(self, vm, key):
        name = vm["labels"]["myshoes.runner"]
        # No guest reports before its hypervisor runs.
        while not self.ended.wait(1) and vm["id"] not in self.mayfly.running():
            pass
        try:
            self.report(vm, {"type": "guest_ready"})
            self.report(vm, {"type": "guest_configured", "attempt": vm["attempt"], "separate_users": True})
        except AssertionError as error:
            say("a guest was given up:", str(error)[:200])
            self.simulated.pop(key, None)
            return
        course = self.choose(name)
        if course == "silent" or not self.github.register(name):
            return
        time.sleep(3)
        self.github.change(name, busy=True)
        time.sleep(2)
        self.github.remove(name)
        if course == "ends":
            try:
                self.report(vm, {"type": "runner_finished", "exit_code": 0})
            except AssertionError as error:
                say("a guest could not report its end:", str(error)[:200])

    def report(self, vm, event):
        """As a guest does, which repeats what gets no answer."""
        for _ in range(60):
            try:
                return request("POST", f"{self.mayfly.guest_url}/vms/{vm['id']}/events", self.tokens[vm["id"]], event,
                               timeout=10)
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise AssertionError(f"{event['type']}: {error.code} {error.read().decode()}") from error
            except OSError:
                pass
            time.sleep(1)
        raise AssertionError(f"{event['type']}: no answer")
