//! The sections `[network]` and `[retention]`.

use toml::Value;

use crate::{
    domain::AllowedDestination,
    platform::settings::{SettingType, section},
};

impl SettingType for Vec<AllowedDestination> {
    const KIND: &'static str = "list of addresses, networks and names";

    fn fault(value: &Value) -> Option<String> {
        let texts = value.as_array()?.iter().filter_map(Value::as_str);
        texts.filter_map(|text| text.parse::<AllowedDestination>().err()).next()
    }
}

section! {
    /// What guests may reach; docs/networks.md explains the network modes.
    pub struct NetworkSection {
        /// What guests in the mode `internet` may reach besides public addresses: networks, addresses and names, each with
        /// an optional port, such as `10.1.0.0/16`, `10.1.2.3:443`, `[fd12::/48]:443` or `gitea.example.org:3000`. A
        /// network does not include addresses of this host; one service of this host is listed by its address and port.
        allow: Vec<AllowedDestination> = Vec::new();
    }
}

section! {
    /// How long records are kept.
    pub struct RetentionSection {
        /// How long records and logs of deleted vms are kept, in days (0 to 3650).
        deleted_vms_days: u32 = 7, in 0..=3650;
    }
}
