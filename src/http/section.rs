//! The sections `[server]` and `[guest]`.

use std::{net::SocketAddr, path::PathBuf};

use crate::platform::settings::section;

section! {
    /// The admin API.
    pub struct ServerSection {
        /// Address and port of the admin API. An address that other machines can reach needs TLS, here or in a proxy.
        /// Port 0: any free port.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8470));
        /// Certificate chain (PEM) for TLS. Set both `tls_cert` and `tls_key`, or neither.
        tls_cert: Option<PathBuf> = None;
        /// Private key (PEM) of that certificate, readable by its owner only (mode 0600).
        tls_key: Option<PathBuf> = None;
        /// A proxy in front of Mayfly terminates TLS. Allows `listen` to be an address that other machines can reach,
        /// without TLS here.
        behind_proxy: bool = false;
        /// Largest request body, in bytes (1024 to 67108864).
        max_body_bytes: u64 = 1024 * 1024, in 1024..=64 << 20;
        /// Longest time for one request, in seconds (1 to 3600). Long polls and streams have their own limits.
        request_timeout_seconds: u32 = 30, in 1..=3600;
        /// Requests handled at once (1 to 65536); further ones are refused with 503. Of this number, one token may use at
        /// most a half, and one address without a token at most a quarter. In at most a quarter, the body may still be
        /// arriving.
        max_concurrent_requests: u32 = 1024, in 1..=65_536;
        /// Open connections per listener (16 to 65536). At the limit, a new connection closes another one: of the client
        /// with most connections, the one that has been without a request for the longest time.
        max_connections: u32 = 4096, in 16..=65_536;
        /// Memory per listener for the bodies of requests, in bytes (33554432 to 4294967296). At the limit, the sender
        /// with most bytes loses its oldest unfinished request, with 503.
        max_body_memory_bytes: u64 = 128 << 20, in 32 << 20..=4 << 30;
    }
}

section! {
    /// How guests reach the guest API. QEMU guests need no setting here: each has its own forwarded address.
    pub struct GuestSection {
        /// Address and port of the guest API, for guests without a forwarded address. With the drivers
        /// `tart` and `macosvm` the default is all addresses, because the address that guests reach exists only while a
        /// guest runs; each request needs the token of its vm.
        listen: Option<SocketAddr> = None, shown as "none; `0.0.0.0:8471` with the drivers `tart` and `macosvm`";
        /// The guest API's URL as guests see it, if they cannot use the address in `listen`.
        advertise_url: Option<String> = None;
    }
}
