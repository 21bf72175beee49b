//! Parses host names of Amazon's private registries.

/// The parts of `<account>.dkr.ecr.<region>.amazonaws.com` and similar names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EcrHost {
    pub account: String,
    pub region: String,
    /// Use only FIPS endpoints.
    pub fips: bool,
}

/// All domains of Amazon's registries. A token is sent to the host with this name, so a name that only looks similar
/// must not match.
const DOMAINS: &[&str] = &[
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "on.aws",
    "on.amazonwebservices.com.cn",
    "sc2s.sgov.gov",
    "c2s.ic.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];

impl EcrHost {
    /// `None`: not one of Amazon's private registries. Neither is `public.ecr.aws`, which gives tokens to everyone.
    pub fn of(registry: &str) -> Option<Self> {
        let lower = registry.to_ascii_lowercase();
        let host = match lower.split_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => host,
            Some(_) => return None,
            None => &lower,
        };
        let (account, rest) = host.split_once('.')?;
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // The newer names, which also have IPv6 addresses, have a dash between the two.
        let rest = rest.strip_prefix("dkr.ecr").or_else(|| rest.strip_prefix("dkr-ecr"))?;
        let (fips, rest) = match rest.strip_prefix("-fips") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (region, domain) = rest.strip_prefix('.')?.split_once('.')?;
        let is_region = !region.starts_with('-')
            && !region.is_empty()
            && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (is_region && DOMAINS.contains(&domain)).then(|| Self { account: account.into(), region: region.into(), fips })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_of_amazon_are_known_by_their_names() {
        for (name, region, fips) in [
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com", "us-east-1", false),
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com:443", "us-east-1", false),
            ("123456789012.DKR.ECR.eu-central-1.amazonaws.com", "eu-central-1", false),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", true),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", false),
            ("123456789012.dkr-ecr.us-west-2.on.aws", "us-west-2", false),
            ("123456789012.dkr-ecr-fips.us-west-2.on.aws", "us-west-2", true),
            ("123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "cn-north-1", false),
            ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", false),
        ] {
            let expected = EcrHost { account: "123456789012".into(), region: region.into(), fips };
            assert_eq!(EcrHost::of(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        for name in [
            "public.ecr.aws",
            "ghcr.io",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example",
            "123456789012.dkr.ecr.us-east-1.evil.example",
            "123456789012.dkr.ecr.evil.example.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.xamazonaws.com",
            "12345678901.dkr.ecr.us-east-1.amazonaws.com",
            "1234567890123.dkr.ecr.us-east-1.amazonaws.com",
            "x23456789012.dkr.ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.ecrus-east-1.amazonaws.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.-x.amazonaws.com",
            "123456789012.dkr.ecr.us_east.amazonaws.com",
            "123456789012.dkr.ecr.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com:evil",
            "dkr.ecr.us-east-1.amazonaws.com",
            "",
        ] {
            assert_eq!(EcrHost::of(name), None, "{name}");
        }
    }
}
