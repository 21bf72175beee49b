//! Host names of registries: `host[:port]`.

/// The normalised name of a registry, or `None` if it is not valid. Only normalised names become parts of file names
/// or are passed to programs.
pub fn normal(registry: &str) -> Option<String> {
    if registry.len() > 255 {
        return None;
    }
    let lower = registry.to_ascii_lowercase();
    let (host, port) = match lower.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (None, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match lower.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(lower.as_str()), None),
        },
    };
    if let Some(host) = host {
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !host.split('.').all(label) {
            return None;
        }
    }
    if let Some(port) = port
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0))
    {
        return None;
    }
    // Three names of one registry: references use the first, clients the second, and it answers at the third.
    Some(match lower.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        _ => lower,
    })
}

/// Whether two names mean the same registry. An invalid name means none.
pub fn same(a: &str, b: &str) -> bool {
    normal(a).is_some_and(|a| normal(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        for (given, expected) in [
            ("ghcr.io", "ghcr.io"),
            ("GHCR.io", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]", "[::1]"),
            ("[::1]:5000", "[::1]:5000"),
            ("index.docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            assert_eq!(normal(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for given in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            "a\n",
            "a\0",
            "-a",
            "a-",
            "a..b",
            "a.",
            ".a",
            "a:",
            "a:0",
            "a:65536",
            "a:+5",
            "a:1:2",
            "[::1",
            "[::1]x",
            "[x]",
            "u@h",
            "é.io",
            "https://ghcr.io",
        ] {
            assert_eq!(normal(given), None, "{given:?}");
        }
        assert_eq!(normal(&"a".repeat(256)), None);
    }

    #[test]
    fn nothing_is_the_same_as_what_is_no_name() {
        assert!(same("GHCR.io", "ghcr.io"));
        assert!(!same("ghcr.io", "ghcr.io:443"));
        assert!(!same("", ""));
    }
}
