//! Builds the template catalog and the access to registries and S3.

use std::sync::Arc;

use crate::{
    config::Config,
    registry::credentials::{Chain, DockerConfig, Ecr, Environment, LoginStore, Static},
    templates::pull,
};

/// Access to registries, and its credentials.
pub struct RegistryAccess {
    pub pull: pull::Settings,
    pub credentials: Arc<Chain>,
    /// Registry and user of each login in the configuration.
    pub users: Vec<(String, String)>,
}

impl Default for RegistryAccess {
    /// Without any credentials.
    fn default() -> Self {
        Self { pull: pull::Settings::default(), credentials: Arc::new(Chain::new(Vec::new())), users: Vec::new() }
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
    let users = configured.into_iter().map(|(name, user, _)| (name, user)).collect();
    let mut registry = config.registry.options(&config.registries);
    // A registry of a GitHub Enterprise Server refers to that server, which usually has a private address. Another part
    // refuses addresses that cannot be parsed.
    if let Ok(server) = config.github.server() {
        registry.origins = vec![server.web().clone(), server.api().clone()];
    }
    RegistryAccess { pull: pull::Settings { registry, ..pull::Settings::default() }, credentials: chain, users }
}
