//! Opens the listeners: addresses, the sockets in the data directory, certificates.

use std::{fs::Permissions, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use secrecy::ExposeSecret as _;
use tokio::net::{TcpListener, UnixListener};

use super::error::StartError;
use crate::{
    adapters::nesting::NestingListener,
    config::Config,
    drivers::{
        cloud_hypervisor::{self, CloudHypervisor},
        qemu::{self, Qemu},
    },
    platform::{data_dir::DataDir, files},
};

pub(super) async fn listen(address: std::net::SocketAddr, setting: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Listen {
        address: address.to_string(),
        setting,
        cause,
    })
}

pub(super) fn listen_unix(path: &Path) -> Result<UnixListener, StartError> {
    // The data directory is locked by this process, so an existing socket was left by a process that has ended. No other
    // user can be quicker: the directory is private.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StartError::Listen {
                address: path.display().to_string(),
                setting: "--data-dir",
                cause: error,
            });
        }
        _ => {}
    }
    let failed = |cause| StartError::Listen { address: path.display().to_string(), setting: "--data-dir", cause };
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

pub(super) async fn listen_nesting(path: &Path) -> Result<NestingListener, StartError> {
    NestingListener::bind(path).await.map_err(|cause| StartError::Listen {
        address: path.display().to_string(),
        setting: "nesting.socket",
        cause,
    })
}

/// The path of a socket has a much lower limit than other paths.
pub(super) fn check_paths(config: &Config, data: &DataDir) -> Result<(), StartError> {
    if config.drivers.qemu.enabled {
        qemu::paths::check(&data.qemu_instances())
            .map_err(|error| StartError::Driver { driver: Qemu::NAME, cause: error.summary })?;
    }
    if config.drivers.cloud_hypervisor.enabled {
        cloud_hypervisor::paths::check(&data.cloud_hypervisor_instances())
            .map_err(|error| StartError::Driver { driver: CloudHypervisor::NAME, cause: error.summary })?;
    }
    let length = data.path().as_os_str().len();
    let limit = qemu::paths::SOCKET_PATH_LIMIT - 1 - DataDir::LONGEST_SOCKET;
    if length > limit {
        return Err(StartError::TooLong { dir: data.path().display().to_string(), length, limit });
    }
    Ok(())
}

pub(super) fn tls(config: &Config) -> Result<Option<Arc<tokio_rustls::rustls::ServerConfig>>, StartError> {
    use tokio_rustls::rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    };
    let (Some(cert), Some(key)) = (&config.server.tls_cert, &config.server.tls_key) else { return Ok(None) };
    let explain = |what: &str, setting: &str, path: &Path, cause: &dyn std::fmt::Display| {
        let path = path.display();
        StartError::Tls(format!(
            "{what} in {path} cannot be used: {cause}; `{setting}` must name a PEM file that holds it"
        ))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| explain("the certificate", "server.tls_cert", cert, &e))?;
    if chain.is_empty() {
        return Err(explain("the certificate", "server.tls_cert", cert, &"there is none in it"));
    }
    // With its owner and mode: who reads this key can pretend to be this service.
    let pem = files::read_secret(key).map_err(|why| StartError::Tls(format!("`server.tls_key`: {why}")))?;
    let private = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes())
        .map_err(|e| explain("the private key", "server.tls_key", key, &e))?;
    let mut server =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, private).map_err(|cause| {
            StartError::Tls(format!(
                "the certificate in {} and the private key in {} cannot be used: {cause}; `server.tls_cert` and \
                 `server.tls_key` must belong together",
                cert.display(),
                key.display()
            ))
        })?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(server)))
}
