//! Parses `info usernet` of the human monitor.

/// The host's port that is forwarded to `guest_port`.
///
/// ```text
/// Hub -1 (n0):
///   Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
///   TCP[HOST_FORWARD]   9       127.0.0.1 33987       10.0.2.15    22     0     0
/// ```
pub fn forwarded_port(text: &str, guest_port: u16) -> Option<u16> {
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        if fields.next()? != "TCP[HOST_FORWARD]" {
            return None;
        }
        let (host_port, guest) = (fields.nth(2)?.parse::<u16>().ok()?, fields.nth(1)?.parse::<u16>().ok()?);
        (guest == guest_port && host_port != 0).then_some(host_port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forward_to_ssh_is_found_among_connections() {
        let text = include_str!("fixtures/info-usernet.txt");
        assert_eq!(forwarded_port(text, 22), Some(33987));
        assert_eq!(forwarded_port(text, 8080), Some(41001));
        assert_eq!(forwarded_port(text, 443), None);
        assert_eq!(forwarded_port("", 22), None);
        assert_eq!(forwarded_port("unknown command: 'info usernet'\r\n", 22), None);
    }
}
