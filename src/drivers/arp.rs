//! Parses `arp -an`: which Ethernet addresses answered at which IP addresses.
//!
//! ```text
//! ? (192.168.64.1) at be:d0:74:22:80:64 on bridge100 ifscope permanent [bridge]
//! ? (192.168.64.7) at (incomplete) on bridge100 ifscope [bridge]
//! ```

use std::net::Ipv4Addr;

use super::failure::shown;
use crate::domain::mac::Mac;

/// The address of the guest `mac`, or `None` if it has none or more than one: an entry of a former address lives on
/// for minutes, and nothing shows which of two is older.
pub fn find(output: &[u8], mac: Mac) -> Result<Option<Ipv4Addr>, String> {
    let text = String::from_utf8_lossy(output);
    let (mut addresses, mut understood) = (Vec::new(), false);
    for line in text.lines() {
        let Some((ip, hardware)) = entry(line) else { continue };
        understood = true;
        if Mac::parse(hardware) == Some(mac) && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    if !understood && !text.trim().is_empty() {
        return Err(format!(
            "expected lines like `? (192.168.64.2) at a:b:c:d:e:f on bridge100`; found: {}",
            shown(output)
        ));
    }
    Ok(match addresses.as_slice() {
        [one] => Some(*one),
        _ => None,
    })
}

fn entry(line: &str) -> Option<(Ipv4Addr, &str)> {
    let (ip, rest) = line.split_once('(')?.1.split_once(')')?;
    let hardware = rest.strip_prefix(" at ")?.split_ascii_whitespace().next()?;
    Some((ip.parse().ok()?, hardware))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &[u8] = b"? (10.0.1.1) at 0:1c:73:0:0:99 on en0 ifscope [ethernet]\n\
        ? (10.0.1.7) at a:b:c:d:e:f on en0 ifscope [ethernet]\n\
        ? (10.0.1.8) at (incomplete) on en0 ifscope [ethernet]\n\
        ? (10.0.1.9) at 2:0:0:0:0:9 on en0 ifscope [ethernet]\n\
        ? (10.0.1.10) at 2:0:0:0:0:9 on en0 ifscope [ethernet]\n\
        ? (224.0.0.251) at 1:0:5e:0:0:fb on en0 ifscope permanent [ethernet]\n";

    fn mac(text: &str) -> Mac {
        Mac::parse(text).unwrap()
    }

    #[test]
    fn a_guest_is_found_by_its_address() {
        assert_eq!(find(OUTPUT, mac("0a:0b:0c:0d:0e:0f")), Ok(Some(Ipv4Addr::new(10, 0, 1, 7))));
        assert_eq!(find(OUTPUT, mac("0a:0b:0c:0d:0e:10")), Ok(None));
        assert_eq!(find(OUTPUT, mac("02:00:00:00:00:09")), Ok(None), "two addresses");
        assert_eq!(find(b"", mac("02:00:00:00:00:09")), Ok(None));
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let error = find(b"arp: unknown option", mac("02:00:00:00:00:09")).unwrap_err();
        assert!(error.ends_with("; found: \"arp: unknown option\""), "{error}");
    }
}
