#!/usr/bin/env python3
"""Shows what guests reach in each network mode, with real guests in a network of its own.

    main.py [--binary target/debug/mayfly] [--double target/debug/examples/cloud-hypervisor-double]
            [--run qemu:root] [--run qemu:nobody] [--run cloud-hypervisor:nobody]

It makes two network namespaces: the *host*, in which the service and its guests run, with two interfaces, and the *world*
behind one of them, which has public, private and link-local addresses, a DNS server and web servers. For each run it starts
the service with one driver, as one user, and one guest per mode, whose job tries every destination. Each result is compared
with the table below; the tables are printed, and the exit status is 1 if one of them is wrong. Nothing outside of the
namespaces is touched. Needs root to make them. Cloud Hypervisor is simulated by its double, whose guests are real and are behind
the driver's own tap.
"""

import argparse
import base64
import concurrent.futures
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = pathlib.Path(os.environ.get("MAYFLY_TEST_IMAGE", pathlib.Path.home() / ".cache/mayfly/images/micro"))
MODES = ["isolated", "internet", "host"]
RUNS = ["qemu:root", "qemu:nobody", "cloud-hypervisor:nobody"]
# Below the service's data directory.
INSTANCES = {"qemu": "instances", "cloud-hypervisor": "cloud-hypervisor"}
# How long one guest may take from its creation to its end. Emulated guests on a busy machine are slow.
LIFE = 300

# Destination, as a URL for curl; what it is; the modes that reach it.
DESTINATIONS = [
    ("http://10.0.2.100/healthz", "the guest API", "isolated internet host"),
    ("http://1.1.1.1/", "the world", "internet host"),
    ("http://[2606:4700::1111]/", "the world over IPv6", "internet host"),
    ("http://public.test/", "the world by a name", "internet host"),
    ("http://large.test/", "the world by a name with a large answer (DNS over TCP)", "internet host"),
    ("http://10.88.0.9/", "a private address", "host"),
    ("http://[fd88::9]/", "a private address over IPv6", "host"),
    ("http://private.test/", "a name that resolves to a private address", "host"),
    ("http://loop.test:8081/", "a name that resolves to the guest's own loopback", ""),
    ("http://10.88.0.10/", "an allowed address with its port", "internet host"),
    ("http://10.88.0.10:8080/", "an allowed address with another port", "host"),
    ("http://allowed.test/", "an allowed name at a private address", "internet host"),
    ("http://10.88.0.11:8080/", "the address of an allowed name with another port", "host"),
    ("http://[2a64:64::a58:9]/", "a private address through NAT64 with a prefix of the network", "host"),
    ("http://[2a64:64::101:101]/", "the world through NAT64 with a prefix of the network", "internet host"),
    ("http://169.254.169.254/", "the metadata service", "host"),
    ("http://[fd00:ec2::254]/", "the metadata service over IPv6", "host"),
    ("http://10.0.2.2:8081/", "the host's loopback", "host"),
    ("http://10.77.0.2:8081/", "the host's first interface", "host"),
    ("http://10.99.0.1:8081/", "the host's second interface", "host"),
    ("http://host.test:8081/", "a name that resolves to the host", "host"),
    ("http://5.5.5.5:8081/", "a public address of the host", "host"),
    ("http://[fd99::1]:8081/", "the host's second interface over IPv6", "host"),
    ("http://[::ffff:10.99.0.1]:8081/", "the same as a mapped address", None),
    ("http://10.77.0.2:8470/healthz", "the admin API at the host's first interface", ""),
    ("http://10.0.2.2:8470/healthz", "the admin API on the host's loopback", "host"),
    ("http://10.0.2.16/", "the next address of the guest's network", ""),
    ("telnet://10.0.2.16:22", "SSH of another guest by its address", ""),
]

NAMES = {
    "public.test": ["1.1.1.1", "2606:4700::1111"], "large.test": ["1.1.1.1"], "private.test": ["10.88.0.9"], "loop.test": ["127.0.0.1"],
    "host.test": ["10.99.0.1"], "allowed.test": ["10.88.0.11"],
    # The network's announcement of its NAT64 prefix (RFC 7050).
    "ipv4only.arpa": ["192.0.0.170", "2a64:64::c000:aa"],
}
WORLD = ["1.1.1.1/32", "10.88.0.9/32", "10.88.0.10/32", "10.88.0.11/32", "169.254.169.254/32", "2606:4700::1111/128", "fd88::9/128",
         "fd00:ec2::254/128", "2a64:64::a58:9/128", "2a64:64::101:101/128", "10.88.0.12/32"]
# A stand-in for a proxy, at a private address that `network.allow` does not list. Its answers show that it was asked, with the
# credentials of the request, for a destination that only it reaches.
PROXY = ("10.88.0.12", 3128)
CREDENTIALS = "robot:p@ss word"
TRIES = [
    # What it is; the command in the guest; what it prints in the mode `internet`.
    ("through the proxy", "curl -s -m 20 http://only-the-proxy-knows.test/path",
     "proxied http://only-the-proxy-knows.test/path for robot:p@ss word"),
    ("a tunnel for HTTPS", "curl -s -m 20 -p http://only-the-proxy-knows.test/", "tunnel for robot:p@ss word"),
    ("the guest API without the proxy", "curl -s -m 20 -o /dev/null -w %{remote_ip} $MAYFLY_URL/healthz", "10.0.2.100"),
    ("another port of the proxy's host", "curl -s -m 20 --noproxy '*' -o /dev/null http://10.88.0.12:8080/; echo $?", "7"),
    ("a private address without the proxy", "curl -s -m 20 --noproxy '*' -o /dev/null http://10.88.0.9/; echo $?", "7"),
    ("TLS with an additional authority", "curl -s -m 20 --noproxy '*' https://public.test/", "ok"),
    ("TLS without it", "env -u CURL_CA_BUNDLE -u SSL_CERT_FILE curl -s -m 20 --noproxy '*' -o /dev/null https://public.test/; echo $?",
     "60"),
]


def run(*command):
    subprocess.run([str(word) for word in command], check=True)


# --- the world ---


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Web6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        # One socket for both families.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve_web(port, certificate=None):
    server = Web6(("::", port), Web)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate + ".key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def dns_answer(query):
    """The answer to a query for an address. That for `large.test` fits no packet of the guest's network: as a datagram it arrives
    in fragments at the host, and the gateway has to make the guest ask over TCP."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12:at + 5]
    name, kind = ".".join(labels).lower(), struct.unpack("!H", query[at + 1:at + 3])[0]
    addresses = [socket.inet_pton(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in NAMES.get(name, [])]
    records = b""
    found = [a for a in addresses if (len(a), kind) in [(4, 1), (16, 28)]]
    for address in found * (200 if name == "large.test" else 1):
        records += b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(address)) + address
    count = len(records) // (12 + (len(found[0]) if found else 0)) if found else 0
    flags = 0x8180 if name in NAMES else 0x8183
    return query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + question + records


class DnsDatagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        sock.sendto(dns_answer(data), self.client_address)


class DnsStream(socketserver.StreamRequestHandler):
    def handle(self):
        # Clients send several queries on one connection.
        while len(prefix := self.rfile.read(2)) == 2:
            answer = dns_answer(self.rfile.read(struct.unpack("!H", prefix)[0]))
            self.wfile.write(struct.pack("!H", len(answer)) + answer)


def world():
    run("ip", "link", "set", "lo", "up")
    for address in WORLD:
        run("ip", "address", "add", address, "dev", "lo")
    print("ready", flush=True)
    sys.stdin.readline()  # the other end of the link has been moved here
    run("ip", "address", "add", "10.77.0.1/24", "dev", "veth1")
    run("ip", "address", "add", "fd77::1/64", "dev", "veth1", "nodad")
    run("ip", "link", "set", "veth1", "up")
    for port in (80, 8080):
        serve_web(port)
    serve_web(443, os.environ["CERTIFICATE"])
    threading.Thread(target=http.server.ThreadingHTTPServer(PROXY, Proxy).serve_forever, daemon=True).start()
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    for server in (socketserver.ThreadingUDPServer(("10.77.0.1", 53), DnsDatagram),
                   socketserver.ThreadingTCPServer(("10.77.0.1", 53), DnsStream)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Says what it was asked for. It connects to nothing."""

    def user(self):
        kind, _, code = self.headers.get("Proxy-Authorization", "none ").partition(" ")
        return base64.b64decode(code).decode() if kind == "Basic" else "nobody"

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.answer(f"proxied {self.path} for {self.user()}")

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        # The other end of the tunnel is this, too.
        user = self.user()
        while self.rfile.readline().strip():
            pass
        self.answer(f"tunnel for {user}")
        self.close_connection = True

    def log_message(self, *_):
        pass


# --- the host ---


def make_certificate(directory):
    """A certificate for `public.test` that no system trusts, which is its own authority."""
    path = f"{directory}/ca.pem"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=public.test", "-addext",
        "subjectAltName=DNS:public.test", "-keyout", path + ".key", "-out", path)
    return path


def host_network():
    run("ip", "link", "set", "lo", "up")
    other = subprocess.Popen(["unshare", "--net", sys.executable, __file__, "--world"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
    assert other.stdout.readline() == "ready\n"
    run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", other.pid)
    run("ip", "address", "add", "10.77.0.2/24", "dev", "veth0")
    run("ip", "address", "add", "fd77::2/64", "dev", "veth0", "nodad")
    run("ip", "link", "set", "veth0", "up")
    run("ip", "link", "add", "second", "type", "veth", "peer", "name", "nowhere")
    run("ip", "link", "set", "nowhere", "up")
    for address in (["10.99.0.1/24"], ["5.5.5.5/32"], ["fd99::1/64", "nodad"]):
        run("ip", "address", "add", address[0], "dev", "second", *address[1:])
    run("ip", "link", "set", "second", "up")
    other.stdin.write("go\n")
    other.stdin.flush()
    assert other.stdout.readline() == "ready\n"
    run("ip", "route", "add", "default", "via", "10.77.0.1")
    run("ip", "-6", "route", "add", "default", "via", "fd77::1")
    resolver = pathlib.Path(tempfile.mkdtemp(prefix="mayfly-net-")) / "resolv.conf"
    resolver.write_text("nameserver 10.77.0.1\n")
    run("mount", "--bind", resolver, os.path.realpath("/etc/resolv.conf"))
    serve_web(8081)
    # For services of other users than root, as on a host that is prepared for Cloud Hypervisor.
    run("mount", "-t", "tmpfs", "none", "/dev/net")
    run("mknod", "-m", "666", "/dev/net/tun", "c", "10", "200")
    return other


JOB = "\n".join(
    [
        # The gateway announces the IPv6 network when the guest asks for it, which the guest does by itself.
        "for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show scope global | grep -q inet6 && break; sleep 1; done",
        "try() { curl -s -g --noproxy '*' -o /dev/null -m 8 \"$1\" </dev/null; echo \"RESULT $1 $?\"; }",
    ]
    + [f"try '{url}' &\n[ $(( $(jobs -p | wc -l) )) -ge 6 ] && wait" for url, _, _ in DESTINATIONS]
    + ["wait"]
    + [f"echo \"TRY {number} $({command})\"" for number, (_, command, _) in enumerate(TRIES)]
    + ["echo \"TRY set ${HTTPS_PROXY+x}${https_proxy+x}${HTTP_PROXY+x}${http_proxy+x}${NO_PROXY+x}${no_proxy+x}\"", "true"]
)


def interfaces():
    return sorted(name for _, name in socket.if_nameindex())


class Service:
    def __init__(self, binary, double, driver, user):
        self.driver = driver
        self.interfaces = interfaces()
        self.looked = set()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mayfly-net-", dir="/tmp"))
        # For a user that may not enter the directories of the one who builds.
        program, image = self.dir / "mayfly", self.dir / "image"
        shutil.copy(binary, program)
        shutil.copytree(IMAGE, image)
        self.data = self.dir / "d"
        self.data.mkdir(mode=0o700)
        shutil.copy(os.environ["CERTIFICATE"], self.data / "ca.pem")
        credentials = self.data / "proxy.credentials"
        credentials.write_text(CREDENTIALS + "\n")
        credentials.chmod(0o600)
        if user != "root":
            run("chown", "-R", user, self.dir)
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.dir),
            "MAYFLY_SERVER__LISTEN": "127.0.0.1:8470", "MAYFLY_SLOTS__LINUX": "3", "MAYFLY_SLOTS__COUNT_FOREIGN": "false",
            "MAYFLY_SLOTS__CPUS": "8", "MAYFLY_SLOTS__MEMORY_MIB": "2048", "MAYFLY_DRIVERS__QEMU__ACCELERATOR": "tcg",
            "MAYFLY_NETWORK__ALLOW": '["10.88.0.10:80", "allowed.test:80"]', "MAYFLY_QUEUE__TIMEOUT_SECONDS": "600",
            "MAYFLY_NETWORK__HTTPS_PROXY": "http://%s:%d" % PROXY, "MAYFLY_NETWORK__HTTP_PROXY": "http://%s:%d" % PROXY,
            "MAYFLY_NETWORK__CA_BUNDLE_FILE": "ca.pem", "MAYFLY_NETWORK__PROXY_CREDENTIALS_FILE": "proxy.credentials",
        }
        if driver == "cloud-hypervisor":
            hypervisor = self.dir / "cloud-hypervisor"
            shutil.copy(double, hypervisor)
            env |= {"MAYFLY_DRIVERS__QEMU__ENABLED": "false", "MAYFLY_DRIVERS__CLOUD_HYPERVISOR__ENABLED": "true",
                    "MAYFLY_DRIVERS__CLOUD_HYPERVISOR__BINARY": str(hypervisor)}
        drop = ["setpriv", "--reuid", user, "--regid", "nogroup", "--clear-groups"] if user != "root" else []
        self.log = open(self.dir / "service.log", "w")
        self.process = subprocess.Popen(drop + [str(program), "--data-dir", str(self.data), "serve"], env=env, stdout=self.log,
                                        stderr=self.log, cwd="/")
        until = time.monotonic() + 60
        while True:
            try:
                self.request("GET", "/readyz")
                break
            except (OSError, AssertionError):
                assert self.process.poll() is None and time.monotonic() < until, (self.dir / "service.log").read_text()
                time.sleep(0.1)
        description = json.loads((image / "template.json").read_text())
        fields = {key: value for key, value in description.items() if key in ("cpus", "memory_mib", "cmdline", "handover", "user", "os", "arch")}
        self.request("POST", "/templates", {
            "name": "micro", "driver": driver, "disk": str(image / "disk.qcow2"), "kernel": str(image / "vmlinuz"),
            "initramfs": str(image / "initramfs.img"), "ssh_key": str(image / "id_ed25519"), **fields})

    def request(self, method, path, body=None):
        token = self.data / "admin.token"
        headers = {"Content-Type": "application/json"}
        if token.exists():
            headers["Authorization"] = "Bearer " + token.read_text().strip()
        request = urllib.request.Request("http://127.0.0.1:8470" + path, method=method, headers=headers,
                                         data=None if body is None else json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def life(self, mode):
        """The job's result for each destination, in one mode."""
        vm = self.request("POST", "/vms", {"template": "micro", "network": mode, "runner": {"kind": "command", "command": JOB}})
        assert vm["network"] == mode, vm
        until = time.monotonic() + LIFE
        while vm["state"] != "deleted":
            assert time.monotonic() < until, f"{mode}: {json.dumps(vm)}"
            if vm["state"] == "running":
                self.look(vm["id"])
            vm = self.request("GET", f"/vms/{vm['id']}?wait_generation={vm['generation']}&timeout_seconds=20")
        log = self.request("GET", f"/vms/{vm['id']}/logs?source=job")
        lines = [line.split() for line in str(log).splitlines() if line.startswith("RESULT ")]
        said = dict(line.split(" ", 2)[1:] for line in str(log).splitlines() if line.startswith("TRY "))
        return {url: int(status) for _, url, status in lines}, said, vm

    def look(self, vm):
        """From the host: the hypervisor is confined, and nobody else has a way to the guest's SSH port."""
        directory = self.data / INSTANCES[self.driver] / f"mayfly-{vm}"
        try:
            if self.driver == "qemu":
                process = pathlib.Path("/proc") / (directory / "qemu.pid").read_text().strip()
            else:
                process = pathlib.Path("/proc") / str(json.loads((directory / "hypervisor.process").read_text())["pid"])
            status = (process / "status").read_text()
            network = os.readlink(process / "ns" / "net")
        except OSError:
            return  # it has ended meanwhile
        if self.driver == "qemu":
            assert "Seccomp:\t2\n" in status, f"QEMU has no sandbox:\n{status}"
        else:
            assert "CapEff:\t0000000000000000\n" in status and "NoNewPrivs:\t1\n" in status, f"it has rights:\n{status}"
            assert network != os.readlink("/proc/self/ns/net"), "the hypervisor is in the host's network"
        assert interfaces() == self.interfaces, f"a guest has an interface of the host: {interfaces()}"
        try_connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(directory / 'ssh.sock')!r})"
        stranger = subprocess.run(["setpriv", "--reuid", "daemon", "--regid", "daemon", "--clear-groups", "python3", "-c", try_connect],
                                  capture_output=True, text=True, cwd="/")
        assert "Permission" in stranger.stderr or not directory.exists(), f"another user reaches SSH: {stranger}"
        listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True).stdout
        ports = sorted({line.split()[3].rsplit(":", 1)[1] for line in listening.splitlines()})
        assert set(ports) <= {"8081", "8470", "8471"}, f"unexpected listeners: {listening}"
        self.looked.add(vm)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        shutil.rmtree(self.dir)


def matrix(binary, double, driver, user):
    service = Service(binary, double, driver, user)
    run_as = f"{driver} as {user}"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = dict(zip(MODES, pool.map(service.life, MODES)))
    wrong = []
    print(f"\n{run_as}\n\n| destination | " + " | ".join(MODES) + " |\n|---" * 1 + "|---" * len(MODES) + "|")
    for url, what, reached_in in DESTINATIONS:
        cells = []
        for mode in MODES:
            status = results[mode][0].get(url)
            reached = status == 0 or (url.startswith("telnet:") and status == 28)
            cells.append({0: "reached", 7: "refused", 6: "no such name", 28: "no answer"}.get(status, f"curl {status}"))
            if reached_in is not None and (status is None or reached != (mode in reached_in.split())):
                wrong.append(f"{run_as}, {mode}: {url} ({what}) gave {status}")
        print(f"| {what} ({url}) | " + " | ".join(cells) + " |")
    for mode in MODES:
        said = results[mode][1]
        print(f"\nproxy and certificates in the mode {mode}:")
        for number, (what, _, expected) in enumerate(TRIES):
            print(f"- {what}: {said.get(str(number))}")
            if mode == "internet" and said.get(str(number)) != expected:
                wrong.append(f"{run_as}, {mode}: {what}: {said.get(str(number))!r}, not {expected!r}")
        if said.get("set", "") != ("" if mode == "isolated" else "xxxxxx"):
            wrong.append(f"{run_as}, {mode}: variables of the proxy: {said.get('set')!r}")
    secret = urllib.parse.quote(CREDENTIALS.split(":")[1])
    for text in (CREDENTIALS, secret):
        # The seed is a private file of the instance, which is gone; everything else must never have had it.
        found = subprocess.run(["grep", "-rlaF", "--exclude=proxy.credentials", text, service.data, service.dir / "service.log"],
                               capture_output=True, text=True).stdout.split()
        found = [file for file in found if not file.endswith("job.log")]
        if found:
            wrong.append(f"{run_as}: the proxy's password is in {found}")
    for mode in MODES:
        vm = results[mode][2]
        if (vm.get("outcome") or {}).get("result") != "completed":
            wrong.append(f"{run_as}, {mode}: the vm ended with {vm.get('outcome')}")
        if vm["id"] not in service.looked:
            wrong.append(f"{run_as}, {mode}: the guest was not looked at while it ran")
    if wrong:
        print((service.dir / "service.log").read_text()[-4000:])
    service.stop()
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target" / "debug" / "mayfly"))
    parser.add_argument("--double", default=str(ROOT / "target" / "debug" / "examples" / "cloud-hypervisor-double"))
    parser.add_argument("--run", action="append", help="a driver and the user that the service runs as; default: " + ", ".join(RUNS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--world", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.world:
        return world()
    if not options.inside:
        inside = [sys.executable, __file__, "--inside", "--binary", options.binary, "--double", options.double]
        inside += [word for one in options.run or RUNS for word in ("--run", one)]
        # The namespaces, and all processes in them, end with this one.
        os.execvp("unshare", ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"] + inside)
    certificates = tempfile.TemporaryDirectory(prefix="mayfly-net-")
    os.environ["CERTIFICATE"] = make_certificate(certificates.name)
    other = host_network()
    wrong = [line for one in options.run for line in matrix(options.binary, options.double, *one.split(":"))]
    other.terminate()
    print("\n" + ("\n".join(wrong) if wrong else "all as expected"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
