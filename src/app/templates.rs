//! Templates and the registries that they come from.

use std::sync::Arc;

use crate::{
    config::Config,
    registry::{
        self, BandwidthLimit, BandwidthLimits, HostOptions,
        credentials::{Chain, DockerConfig, Ecr, Environment, LoginStore, Static},
    },
    templates::{self, pull},
};

/// How registries are reached, and with which credentials.
pub struct RegistryAccess {
    pub pull: pull::Settings,
    pub credentials: Arc<Chain>,
    /// Registry and user of each login of the configuration.
    pub users: Vec<(String, String)>,
}

impl Default for RegistryAccess {
    /// Without any credentials.
    fn default() -> Self {
        Self { pull: pull::Settings::default(), credentials: Arc::new(Chain::new(Vec::new())), users: Vec::new() }
    }
}

pub(super) fn limits(config: &Config) -> templates::SpaceLimits {
    let t = &config.templates;
    templates::SpaceLimits {
        max_bytes: t.max_bytes,
        min_free_bytes: t.min_free_bytes,
        keep_unused_days: t.keep_unused_days,
    }
}

/// How fast bytes may come, from everywhere together.
fn bandwidth(config: &Config) -> BandwidthLimits {
    BandwidthLimits {
        all: BandwidthLimit::of(config.registry.bytes_per_second),
        background: BandwidthLimit::of(config.registry.background_bytes_per_second),
    }
}

pub(super) fn registries(config: &Config) -> RegistryAccess {
    let configured: Vec<_> = config
        .registries
        .iter()
        .filter_map(|(name, host)| Some((name.clone(), host.username.clone()?, host.password_file.clone()?)))
        .collect();
    let of_configuration =
        configured.iter().fold(Static::default(), |all, (name, user, file)| all.with(name, user, file));
    let chain = Arc::new(Chain::new(vec![
        Box::new(Environment::of_process()),
        Box::new(of_configuration),
        Box::new(LoginStore::new(&config.data_dir)),
        Box::new(DockerConfig::of_process()),
        Box::new(Ecr),
    ]));
    let options = registry::RegistryOptions {
        ca_file: config.registry.ca_file.clone(),
        plain_http: config.registry.plain_http,
        limits: bandwidth(config),
        hosts: config
            .registries
            .iter()
            .map(|(name, host)| {
                (name.clone(), HostOptions { ca_file: host.ca_file.clone(), plain_http: host.plain_http })
            })
            .collect(),
        ..registry::RegistryOptions::default()
    };
    let users = configured.into_iter().map(|(name, user, _)| (name, user)).collect();
    RegistryAccess {
        pull: pull::Settings { registry: options, ..pull::Settings::default() },
        credentials: chain,
        users,
    }
}
