//! The file of macOS's DHCP server, written as bootpd writes it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use crate::control::{Lease, state};

const SECONDS: i64 = 86_400;

/// `0a:0b` is `a:b` in this file.
fn shortened(mac: &str) -> String {
    let octets = mac.split(':').map(|octet| match octet.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    });
    octets.collect::<Vec<_>>().join(":")
}

/// Appends a lease under a lock of our own; readers see the file whole, old or new.
pub fn grant(home: &Path, path: &Path, lease: &Lease, mac: &str, ip: &str) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("leases: {e}");
    let lock = File::create(state(home).join("leases.lock")).map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    let mac = shortened(mac);
    let hardware = if lease.duid { format!("ff,f1:f5:dd:7f:0:2:0:0:ab:11:{mac}") } else { format!("1,{mac}") };
    let expires = jiff::Timestamp::now().as_second() + SECONDS;
    let block = format!(
        "{{\n\tname=Runners-Virtual-Machine\n\tip_address={ip}\n\thw_address={hardware}\n\tidentifier={hardware}\n\tlease=0x{expires:x}\n}}\n"
    );
    let text = fs::read_to_string(path).unwrap_or_default();
    let new = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, format!("{block}{text}")).and_then(|()| fs::rename(&new, path)).map_err(failed)
}

/// An address that no lease has. All of them are loopback addresses.
pub fn address(path: &Path, port: u16) -> Result<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    for _ in 0..100 {
        let random = uuid::Uuid::new_v4();
        let b = random.as_bytes();
        let ip = Ipv4Addr::new(127, 64 | (b[0] & 0x3f), b[1], 1 + b[2] % 254).to_string();
        if !text.contains(&format!("ip_address={ip}\n")) && TcpListener::bind((ip.as_str(), port)).is_ok() {
            return Ok(ip);
        }
    }
    Err(format!("no free address with port {port}: may this user bind it?"))
}
