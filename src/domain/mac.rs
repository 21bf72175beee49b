//! Ethernet addresses, which identify guests on the host's network.

use std::fmt;

use uuid::Uuid;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Accepts octets with and without leading zeros: the lease file and `arp` omit them, `config.json` does not.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next()?;
            if !matches!(part.len(), 1..=2) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *octet = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(octets))
    }

    /// A locally administered unicast address with 46 random bits.
    pub fn random() -> Mac {
        // The first six octets of such an id are random.
        let [a, b, c, d, e, f, ..] = Uuid::new_v4().into_bytes();
        Mac::local([a, b, c, d, e, f])
    }

    /// The locally administered unicast address with these octets.
    pub fn local(mut octets: [u8; 6]) -> Mac {
        octets[0] = octets[0] & 0xfc | 0x02;
        Mac(octets)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_do_not_matter() {
        let mac = Mac::parse("0a:0b:c:00:ee:F").unwrap();
        assert_eq!(mac.to_string(), "0a:0b:0c:00:ee:0f");
        assert_eq!(Mac::parse("a:b:0c:0:EE:0f"), Some(mac));
        for wrong in ["", "a:b:c:d:e", "a:b:c:d:e:f:0", "a:b:c:d:e:fff", "a:b:c:d:e:", "a:b:c:d:e:+f", "a b:c:d:e:f:0"]
        {
            assert_eq!(Mac::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_fresh_one_is_local_and_unicast() {
        for _ in 0..64 {
            let mac = Mac::random();
            assert_eq!(mac.0[0] & 0x03, 0x02, "{mac}");
            assert_ne!(mac, Mac::random());
        }
    }
}
