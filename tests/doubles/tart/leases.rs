//! The file of macOS's DHCP server, read as Tart reads it and written as bootpd writes it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use crate::{failure::Failure, home::Home};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub ip: String,
    /// With its type: `1,MAC` or `ff,…`, octets without leading zeros.
    pub hardware: String,
    /// Seconds since the epoch.
    pub expires: i64,
}

pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// `0a:0b` is `a:b` in this file.
pub fn shortened(mac: &str) -> String {
    let octets: Vec<&str> = mac
        .split(':')
        .map(|o| match o.trim_start_matches('0') {
            "" => "0",
            rest => rest,
        })
        .collect();
    octets.join(":")
}

/// `None` when there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<Entry>>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io("failed to read the DHCP leases", &e)),
    }
}

fn parse(text: &str) -> Result<Vec<Entry>, Failure> {
    let wrong = |line: &str| Failure::Other(format!("UnexpectedDHCPLeasesFormat(line: \"{}\")", line.trim()));
    let mut entries = Vec::new();
    let mut open: Option<Entry> = None;
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        match (line.trim(), &mut open) {
            ("{", none @ None) => {
                *none = Some(Entry { name: String::new(), ip: String::new(), hardware: String::new(), expires: 0 });
            }
            ("}", Some(_)) => entries.extend(open.take()),
            (pair, Some(entry)) => {
                let (key, value) = pair.split_once('=').ok_or_else(|| wrong(line))?;
                match key {
                    "name" => entry.name = value.to_owned(),
                    "ip_address" => entry.ip = value.to_owned(),
                    "hw_address" => entry.hardware = value.to_owned(),
                    "lease" => {
                        let hex = value.strip_prefix("0x").ok_or_else(|| wrong(line))?;
                        entry.expires = i64::from_str_radix(hex, 16).map_err(|_| wrong(line))?;
                    }
                    _ => {}
                }
            }
            _ => return Err(wrong(line)),
        }
    }
    match open {
        Some(_) => Err(wrong("{")),
        None => Ok(entries),
    }
}

/// The address of a MAC: unexpired, newest expiry first.
pub fn find(entries: &[Entry], mac: &str) -> Option<String> {
    let wanted = format!("1,{}", shortened(mac));
    let live = entries.iter().filter(|e| e.hardware == wanted && e.expires > now());
    live.max_by_key(|e| e.expires).map(|e| e.ip.clone())
}

fn render(entries: &[Entry]) -> String {
    let blocks = entries.iter().map(|e| {
        format!(
            "{{\n\tname={}\n\tip_address={}\n\thw_address={}\n\tidentifier={}\n\tlease=0x{:x}\n}}\n",
            e.name, e.ip, e.hardware, e.hardware, e.expires
        )
    });
    blocks.collect()
}

/// Changes the file under a lock of our own; readers see it whole, old or new.
pub fn change(home: &Home, path: &Path, change: impl FnOnce(&mut Vec<Entry>)) -> Result<(), Failure> {
    let lock = File::create(home.state("leases").join("lock")).map_err(|e| Failure::io("leases", &e))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| Failure::io("leases", &e.into()))?;
    // A file that a test has broken is replaced, as bootpd would.
    let mut entries = read(path).ok().flatten().unwrap_or_default();
    change(&mut entries);
    let new = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, render(&entries)).and_then(|()| fs::rename(&new, path)).map_err(|e| Failure::io("leases", &e))
}

/// Adds or renews the lease of a guest. As with bootpd, other entries stay, expired ones included.
pub fn grant(home: &Home, path: &Path, entry: Entry) -> Result<(), Failure> {
    change(home, path, |entries| {
        entries.retain(|e| !(e.hardware == entry.hardware && e.ip == entry.ip));
        // bootpd puts the newest first.
        entries.insert(0, entry);
    })
}

/// The address that a MAC had last, or one that nobody has. All of them are loopback addresses.
pub fn address(path: &Path, mac: &str, port: u16) -> Result<String, Failure> {
    let entries = read(path).ok().flatten().unwrap_or_default();
    let hardware = format!("1,{}", shortened(mac));
    let free = |ip: &str| TcpListener::bind((ip, port)).is_ok();
    if let Some(had) = entries.iter().find(|e| e.hardware == hardware)
        && had.ip.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        && free(&had.ip)
    {
        return Ok(had.ip.clone());
    }
    for _ in 0..100 {
        let random = uuid::Uuid::new_v4();
        let b = random.as_bytes();
        let ip = Ipv4Addr::new(127, 64 | (b[0] & 0x3f), b[1], 1 + b[2] % 254).to_string();
        if !entries.iter().any(|e| e.ip == ip) && free(&ip) {
            return Ok(ip);
        }
    }
    Err(Failure::Double(format!("no free address with port {port}: may this user bind it?")))
}
