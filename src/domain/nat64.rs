//! NAT64: how a network translates IPv6 addresses to IPv4 addresses (RFC 6052), and how it announces that (RFC 7050).

use std::net::{Ipv4Addr, Ipv6Addr};

/// A prefix with which a network translates IPv6 addresses to IPv4 addresses (NAT64), and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nat64Prefix {
    bits: u128,
    length: u32,
}

/// The addresses of `ipv4only.arpa` (RFC 7050): a network with NAT64 answers the question for its IPv6 addresses with these
/// in it.
const WELL_KNOWN_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

impl Nat64Prefix {
    /// The lengths that a prefix can have (RFC 6052, 2.2).
    const LENGTHS: [u32; 6] = [96, 64, 56, 48, 40, 32];

    /// The prefixes that an IPv6 address of `ipv4only.arpa` announces: usually one. More than one if the addresses of that
    /// name are in it at several places.
    pub fn announced_by(address: Ipv6Addr) -> Vec<Nat64Prefix> {
        let prefix = |length| Nat64Prefix { bits: address.to_bits() & mask(length), length };
        let prefixes = Self::LENGTHS.into_iter().map(prefix);
        prefixes
            .filter(|prefix| prefix.translate(address).is_some_and(|inner| WELL_KNOWN_V4.contains(&inner)))
            .collect()
    }

    /// The IPv4 address in an address with this prefix. Bits 64 to 71 are not part of it.
    pub fn translate(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bits = address.to_bits();
        if bits & mask(self.length) != self.bits {
            return None;
        }
        if self.length == 96 {
            return Some(Ipv4Addr::from_bits(bits as u32));
        }
        let without_gap = (bits >> 64 << 56) | (bits & ((1 << 56) - 1));
        Some(Ipv4Addr::from_bits((without_gap >> (120 - 32 - self.length)) as u32))
    }
}

fn mask(length: u32) -> u128 {
    u128::MAX << (128 - length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_translated_by_prefixes_of_every_length() {
        let cases = [
            ("2001:db8:c000:221::", "2001:db8:c000:aa::"),
            ("2001:db8:1c0:2:21::", "2001:db8:1c0:0:aa::"),
            ("2001:db8:122:c000:2:2100::", "2001:db8:122:c000:0:aa00::"),
            ("2001:db8:122:3c0:0:221::", "2001:db8:122:3c0:0:aa::"),
            ("2001:db8:122:344:c0:2:2100:0", "2001:db8:122:344:c0:0:aa00:0"),
            ("2001:db8:122:344::192.0.2.33", "2001:db8:122:344::192.0.0.170"),
        ];
        for (translated, announced) in cases {
            let prefixes = Nat64Prefix::announced_by(announced.parse().unwrap());
            let found: Vec<_> = prefixes.iter().filter_map(|p| p.translate(translated.parse().unwrap())).collect();
            assert_eq!(found, [Ipv4Addr::new(192, 0, 2, 33)], "{translated} by {prefixes:?}");
        }
        for other in ["2a00::1", "::", "2606:4700::1111", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(Nat64Prefix::announced_by(other.parse().unwrap()).is_empty(), "{other}");
        }
        let [prefix] = Nat64Prefix::announced_by("64:ff9b::c000:ab".parse().unwrap())[..] else { panic!("one prefix") };
        assert_eq!(prefix.translate("64:ff9c::1".parse().unwrap()), None);
    }
}
