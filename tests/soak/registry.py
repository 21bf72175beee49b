"""A hostile registry on loopback. Each repository `evil/<kind>` has one kind of image, under every tag:

    bomb       a chunk of the disk that unpacks to 512 times of what it claims
    large      a chunk that claims 900 GiB
    endless    a blob that does not end: valid blocks, and more of them than its manifest claims
    slow       a blob that arrives at one byte a second
    manifest   a manifest that does not end
    redirect   a blob that is elsewhere: at the trap
    realm      a token service that is elsewhere: at the trap

The trap is another port of the same host, to which no request may come."""

import collections
import hashlib
import http.server
import json
import platform
import socketserver
import threading

MIB = 1 << 20
KINDS = ("bomb", "large", "endless", "slow", "manifest", "redirect", "realm")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TYPE = "application/vnd.mayfly.template."
BLOCK = 64 << 10
ARCH = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def packed(blocks):
    """Apple's framing of LZ4 blocks, each of which is 64 KiB of one byte."""
    # One literal; a match with it that is as long as the block less the last five bytes, which have to be literals.
    match = BLOCK - 1 - 5 - 4 - 15
    block = b"\x1fA\x01\x00" + b"\xff" * (match // 255) + bytes([match % 255]) + b"\x50AAAAA"
    one = b"bv41" + BLOCK.to_bytes(4, "little") + len(block).to_bytes(4, "little") + block
    return one * blocks + b"bv4$"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


# A block that is not packed.
STORED = b"bv4-" + BLOCK.to_bytes(4, "little") + b"A" * BLOCK
BOMB = packed(512 * MIB // BLOCK)
SETTINGS = json.dumps({"version": 1, "driver": "qemu", "os": "linux", "arch": ARCH, "disk_format": "raw", "cpus": 1,
                       "memory_mib": 192, "handover": "seed", "user": "root"}).encode()


def manifest(kind, tag):
    claimed = {"large": 900 << 30, "endless": 256 * MIB, "slow": 256 * MIB}.get(kind, MIB)
    unknown = hashlib.sha256(f"{kind} {tag}".encode()).hexdigest()
    is_real = kind in ("bomb", "large")
    return json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.mayfly.template.v1",
        "config": {"mediaType": TYPE + "config.v1+json", "digest": digest(SETTINGS), "size": len(SETTINGS)},
        "layers": [{
            "mediaType": TYPE + "disk.v1", "digest": digest(BOMB) if is_real else "sha256:" + unknown,
            "size": len(BOMB) if is_real else MIB,
            "annotations": {
                "dev.mayfly.template.uncompressed-size": str(claimed),
                "dev.mayfly.template.uncompressed-digest": "sha256:" + unknown,
            },
        }],
        # Another manifest for each tag, so that nothing is known from the last time.
        "annotations": {"dev.mayfly.template.disk-size": str(claimed), "tag": tag},
    }).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if len(parts) != 5 or parts[:2] != ["v2", "evil"] or parts[2] not in KINDS:
            return self.answer(200 if parts == ["v2"] else 404, b"{}")
        _, _, kind, what, name = parts
        self.server.served[f"{kind} {what}"] += 1
        if kind == "realm":
            return self.answer(401, b"{}", ("WWW-Authenticate", f'Bearer realm="http://{self.server.trap}/token",service="x"'))
        if what == "manifests":
            return self.endless() if kind == "manifest" else self.answer(200, manifest(kind, name), ("Content-Type", MANIFEST))
        if name == digest(SETTINGS):
            return self.answer(200, SETTINGS)
        if kind == "redirect":
            return self.answer(307, b"", ("Location", f"http://{self.server.trap}/blob"))
        if kind == "slow":
            return self.slow()
        return self.answer(200, BOMB) if name == digest(BOMB) else self.endless()

    do_HEAD = do_GET

    def answer(self, status, body, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def endless(self):
        self.send_response(200)
        self.send_header("Content-Type", MANIFEST)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        piece = b"%x\r\n%s\r\n" % (len(STORED), STORED)
        while self.command == "GET" and not self.server.stop.is_set():
            self.wfile.write(piece)
            self.server.served["endless bytes"] += BLOCK

    def slow(self):
        self.send_response(200)
        self.send_header("Content-Length", str(MIB))
        self.end_headers()
        self.close_connection = True
        for n in range(len(STORED)):
            if self.command != "GET" or self.server.stop.wait(1):
                return
            self.wfile.write(STORED[n:n + 1])

    def log_message(self, *_):
        pass


class Quiet:
    """Clients that hang up are what this is about."""

    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_):
        pass


class Registry(Quiet, http.server.ThreadingHTTPServer):
    pass


class TrapHandler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(2)
        try:
            said = self.request.recv(200).decode(errors="replace")
        except OSError:
            said = ""
        self.server.visits.append(said.split("\r\n")[0] or "a connection without a request")


class Trap(Quiet, socketserver.ThreadingTCPServer):
    pass


def start(stop):
    """The registry and the trap, both running."""
    trap = Trap(("127.0.0.1", 0), TrapHandler)
    trap.visits = []
    registry = Registry(("127.0.0.1", 0), Handler)
    registry.stop, registry.served = stop, collections.Counter()
    registry.trap = "127.0.0.1:%d" % trap.server_address[1]
    for server in (trap, registry):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    return registry, trap
