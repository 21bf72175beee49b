//! The only place where everything is wired: builds each part, runs it, ends it in order.

use std::{
    collections::BTreeMap,
    fs::{File, Permissions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Accelerator, Config, GuestArch, TartNetwork, TartResolver},
    domain::{Arch, token::TokenScope},
    drivers::{
        fake::{Fake, FakeWorld},
        qemu::{self, AcceleratorChoice, Qemu},
        registry::Registry,
        tart::{self, Tart},
    },
    http::{self, Http},
    platform::{Clock, files},
    reconcile::{self, Reconciler},
    registry::{
        self, BandwidthLimit, BandwidthLimits, HostOptions,
        credentials::{Chain, DockerConfig, Ecr, Environment, LoginStore, Static},
        logins::Logins,
        s3::S3,
    },
    service::{self, HostInspector, Service},
    sources::github::{GitHubClient, runner_archives::RunnerArchives},
    store::{self, Vault, logs::Logs, vault},
    telemetry,
    templates::{
        self, Catalog,
        layouts::Tools,
        pull::{self, Puller},
    },
};

/// Why the service did not start: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("another mayfly serves {dir}; stop it first, or give this one its own --data-dir")]
    InUse { dir: String },
    #[error("cannot use the data directory {dir}: {cause}")]
    DataDir { dir: String, cause: io::Error },
    #[error(
        "the path of the data directory {dir} has {length} bytes and may have {limit}, because systems limit the path of a \
         socket: choose a shorter one with --data-dir"
    )]
    TooLong { dir: String, length: usize, limit: usize },
    #[error(transparent)]
    Database(#[from] store::OpenError),
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    #[error("the templates under {dir} cannot be used: {cause}")]
    Templates { dir: String, cause: crate::domain::Error },
    #[error("cannot listen on {address}: {cause}; choose another address with {setting}")]
    Listen { address: String, setting: &'static str, cause: io::Error },
    #[error("{0}")]
    Tls(String),
    #[error(
        "{key} is missing and {database} was written with it; restore the key from a backup, or move the database away to start anew"
    )]
    KeyLost { key: String, database: String },
    #[error("the driver {driver} cannot be used: {cause}")]
    Driver { driver: &'static str, cause: String },
    #[error("GitHub cannot be used: {0}; `mayfly github check` says more")]
    GitHub(String),
    #[error("the service ended, because a part of it ({part}) had ended by itself; its log has the cause")]
    Part { part: &'static str },
    #[error("cannot set up the admin token: {0}")]
    AdminToken(String),
    #[error("cannot find this program's own path, which guests' connections are relayed with: {0}")]
    OwnPath(io::Error),
}

/// Where things are in the data directory.
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A service that is up; `run` serves until it is told to stop.
pub struct App {
    lock: File,
    listener: TcpListener,
    guest_socket: UnixListener,
    guest_tcp: Option<TcpListener>,
    http: Http,
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    reconciler: Arc<Reconciler>,
    shutdown: CancellationToken,
    store_closed: JoinHandle<()>,
    unchecked: Option<store::Unchecked>,
}

impl App {
    /// Opens everything. On an error nothing was changed but what is safe to find again: whatever can be refused without
    /// touching the database is refused before it is touched.
    pub async fn start(config: &Config, shutdown: CancellationToken) -> Result<App, StartError> {
        let layout = Layout { dir: config.data_dir.clone() };
        let guest_path = layout.at("guest.sock");
        check_paths(config, &layout)?;
        let lock = lock(&layout)?;
        // Listening comes before the database: a port in use is the most common trouble, and nothing was touched yet.
        let listener = listen(config.server.listen, "server.listen").await?;
        let guest_tcp = match config.guest_listen() {
            Some(address) => Some(listen(address, "guest.listen").await?),
            None => None,
        };
        let tls = tls(config)?;
        let own_path = std::env::current_exe().map_err(StartError::OwnPath)?;
        let drivers = Arc::new(self::drivers(config, &layout, &own_path)?);
        let (key, database) = (layout.at("secret.key"), layout.at("mayfly.db"));
        // A new key beside old records would make live vms' scripts unreadable and their guests' tokens worthless, silently.
        if !key.exists() && std::fs::metadata(&database).is_ok_and(|file| file.len() > 0) {
            return Err(StartError::KeyLost {
                key: key.display().to_string(),
                database: database.display().to_string(),
            });
        }
        let vault = Arc::new(Vault::open(&key)?);
        let store = store::open(&database).await?;
        let catalog_dir = layout.at("templates");
        let catalog = Arc::new(
            Catalog::open_with(catalog_dir.clone(), space(config))
                .map_err(|cause| StartError::Templates { dir: catalog_dir.display().to_string(), cause })?,
        );
        let clock = Clock::system();
        let capacity = config.capacity();
        let host = HostInspector::new(drivers.clone(), capacity, config.slots.count_foreign, clock.clone());
        let logs = Logs::new(layout.at("logs"));
        let guest_socket = listen_unix(&guest_path)?;

        let limits = limits(config);
        let github = github(config)?;
        let programs = RunnerArchives::new(layout.at("runners"), config.runner_archives());
        let (puller, logins) = registries(config, &catalog, &limits);
        let service = Service::new(
            store.ledger.clone(),
            store.reader.clone(),
            vault.clone(),
            logs.clone(),
            catalog.clone(),
            drivers.clone(),
            puller.clone(),
            logins,
            S3::new(layout.at("s3"), limits),
            github.clone(),
            programs.clone(),
            host.clone(),
            clock.clone(),
            service::Settings {
                max_queued: config.queue.max_length,
                queue_timeout_seconds: config.queue.timeout_seconds,
                budgets: config.default_budgets(),
                jobs: jobs(config)?,
                pulls: service::pulls::Settings {
                    deadline: Duration::from_secs(u64::from(config.pulls.deadline_seconds)),
                    ..Default::default()
                },
                pools: config.pools.clone(),
                tools: Tools { qemu_img: config.drivers.qemu.qemu_img.clone().unwrap_or_else(|| "qemu-img".into()) },
            },
        );
        admin_token(&service, &layout.at("admin.token")).await?;

        let reconciler = Arc::new(Reconciler {
            ledger: store.ledger,
            reader: store.reader,
            vault,
            logs,
            catalog,
            puller,
            drivers,
            programs,
            github,
            reach: Default::default(),
            presence: Default::default(),
            clock,
            host,
            starts: Default::default(),
            settings: reconcile::Settings {
                capacity,
                guest_socket: guest_path,
                relay: vec![own_path.display().to_string(), "guest-relay".to_owned()],
                guest_urls: guest_urls(config),
                isolated: config.drivers.qemu.isolated,
                retry_backoff: Duration::from_secs(2),
                disk_full: Duration::from_secs(u64::from(config.drivers.qemu.disk_full_seconds)),
                sweep_every: Duration::from_secs(60),
                heartbeat: layout.at("heartbeat"),
                beat_every: Duration::from_secs(1),
                keep_deleted: Duration::from_secs(u64::from(config.retention.deleted_vms_days) * 24 * 3600),
                budgets: config.default_budgets(),
                github: Default::default(),
                runner: reconcile::RunnerSettings {
                    github_web: config.github.url.clone(),
                    directory: config.github.runner_directory.clone(),
                    minimum_version: config.github.runner_minimum_version.clone(),
                },
            },
        });
        let http = Http {
            service,
            settings: http::Settings {
                max_body_bytes: usize::try_from(config.server.max_body_bytes).unwrap_or(usize::MAX),
                request_timeout: Duration::from_secs(u64::from(config.server.request_timeout_seconds)),
                max_concurrent: usize::try_from(config.server.max_concurrent_requests).unwrap_or(usize::MAX),
            },
            metrics: Arc::new(telemetry::render_metrics),
            shutdown: shutdown.clone(),
        };
        Ok(App {
            lock,
            listener,
            guest_socket,
            guest_tcp,
            http,
            tls,
            reconciler,
            shutdown,
            store_closed: store.closed,
            unchecked: store.unchecked,
        })
    }

    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the token that it was started with is cancelled: no new requests, requests under way are finished, vms keep
    /// running. An error: a part of it ended by itself, and the whole ended with it.
    pub async fn run(self) -> Result<(), StartError> {
        let App { lock, listener, guest_socket, guest_tcp, http, tls, reconciler, shutdown, store_closed, unchecked } =
            self;
        let guests = tokio::spawn(http::serve_unix(guest_socket, http::guest_router(&http), shutdown.clone()));
        let guests_tcp =
            guest_tcp.map(|l| tokio::spawn(http::serve_tcp(l, None, http::guest_router(&http), shutdown.clone())));
        let admin = tokio::spawn(http::serve_tcp(listener, tls, http::admin_router(&http), shutdown.clone()));
        let pulling = tokio::spawn(http.service.clone().run_pulls(shutdown.clone()));
        let jobs = tokio::spawn(http.service.clone().run_jobs(shutdown.clone()));
        let reconciling = tokio::spawn(reconciler.run(shutdown.clone()));
        if let Some(unchecked) = unchecked {
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(check_later(unchecked)));
        }
        drop(http);
        let parts = [
            ("guest API", Some(guests)),
            ("guest API over TCP", guests_tcp),
            ("admin API", Some(admin)),
            ("pulls", Some(pulling)),
            ("jobs", Some(jobs)),
            ("reconciler", Some(reconciling)),
        ];
        let mut parts: FuturesUnordered<_> =
            parts.into_iter().filter_map(|(name, task)| task.map(|task| async move { (name, task.await) })).collect();
        let mut broken = Ok(());
        // In the order in which they end: a part that is gone would otherwise be missed until all the others have ended.
        while let Some((part, ended)) = parts.next().await {
            if ended.is_err() || !shutdown.is_cancelled() {
                let cause = ended.err().map(|error| format!(" ({error})")).unwrap_or_default();
                tracing::error!(part, "a part of the service ended by itself{cause}: ending, to be started again");
                broken = Err(StartError::Part { part });
                shutdown.cancel();
            }
        }
        // Closing brings the write-ahead log into the database file. If something still holds on to the store, the next start
        // does that.
        let _ = tokio::time::timeout(Duration::from_secs(2), store_closed).await;
        drop(lock);
        broken
    }
}

/// What can be said of a configuration without starting anything or touching the data directory.
pub fn check(config: &Config) -> Result<(), StartError> {
    let layout = Layout { dir: config.data_dir.clone() };
    check_paths(config, &layout)?;
    tls(config).map(drop)
}

/// Reads all of a database that is too large to be read at the start.
async fn check_later(unchecked: store::Unchecked) {
    // Whatever waits for the service after its start comes first.
    tokio::time::sleep(Duration::from_secs(10)).await;
    unchecked.check().await;
}

/// Runs the service until `shutdown`.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), StartError> {
    let app = App::start(&config, shutdown).await?;
    let scheme = if app.tls.is_some() { "https" } else { "http" };
    let address = app.address().map_err(|cause| StartError::Listen {
        address: config.server.listen.to_string(),
        setting: "server.listen",
        cause,
    })?;
    // Said on standard error whatever the log's format and level are: scripts wait for it, people open it.
    let _ =
        writeln!(io::stderr(), "mayfly: listening on {scheme}://{address} with data in {}", config.data_dir.display());
    app.run().await
}

/// One service per data directory. The lock is the kernel's: it goes with the process, however that ends.
fn lock(layout: &Layout) -> Result<File, StartError> {
    let dir = || layout.dir.display().to_string();
    let file = files::private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(layout.at("serve.lock"))
        .map_err(|cause| StartError::DataDir { dir: dir(), cause })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse { dir: dir() }),
        Err(std::fs::TryLockError::Error(cause)) => Err(StartError::DataDir { dir: dir(), cause }),
    }
}

async fn listen(address: std::net::SocketAddr, setting: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Listen {
        address: address.to_string(),
        setting,
        cause,
    })
}

fn listen_unix(path: &Path) -> Result<UnixListener, StartError> {
    // We hold the directory's lock, so a socket that is here was left by a process that is gone.
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

/// A socket's path has a limit far below that of other paths.
fn check_paths(config: &Config, layout: &Layout) -> Result<(), StartError> {
    if config.drivers.qemu.enabled {
        qemu::paths::check(&layout.at("instances"))
            .map_err(|error| StartError::Driver { driver: Qemu::NAME, cause: error.summary })?;
    }
    let length = layout.dir.as_os_str().len();
    let limit = qemu::paths::SOCKET_PATH_LIMIT - "/guest.sock".len();
    if length > limit {
        return Err(StartError::TooLong { dir: layout.dir.display().to_string(), length, limit });
    }
    Ok(())
}

/// Who we are to GitHub; connects to nothing.
fn github(config: &Config) -> Result<Option<Arc<GitHubClient>>, StartError> {
    let Some(source) = config.github.source(|name| std::env::var(name).ok()).map_err(StartError::GitHub)? else {
        if let Some(pool) = config.pools.first() {
            return Err(StartError::GitHub(format!(
                "the pool {} registers runners, and nobody said who we are: set `github.app_id` and its key, or a token",
                pool.name
            )));
        }
        return Ok(None);
    };
    let options = config.github.options().map_err(StartError::GitHub)?;
    Ok(Some(Arc::new(GitHubClient::new(options, source).map_err(|error| StartError::GitHub(error.to_string()))?)))
}

/// How GitHub's jobs are heard of.
fn jobs(config: &Config) -> Result<service::jobs::Settings, StartError> {
    let secrets = config.github.webhook_secrets(|name| std::env::var(name).ok()).map_err(StartError::GitHub)?;
    let poll = Duration::from_secs(u64::from(config.github.poll_seconds));
    Ok(service::jobs::Settings {
        webhook_secrets: secrets,
        poll_every: (!poll.is_zero()).then_some(poll),
        ..Default::default()
    })
}

fn drivers(config: &Config, layout: &Layout, own_path: &Path) -> Result<Registry, StartError> {
    let mut registry = Registry::default();
    let qemu = &config.drivers.qemu;
    if qemu.enabled {
        let driver = Qemu::new(qemu::Settings {
            binary: qemu.binary.clone(),
            qemu_img: qemu.qemu_img.clone(),
            accelerator: match qemu.accelerator {
                Accelerator::Auto => AcceleratorChoice::Auto,
                Accelerator::Kvm => AcceleratorChoice::Kvm,
                Accelerator::Hvf => AcceleratorChoice::Hvf,
                Accelerator::Tcg => AcceleratorChoice::Tcg,
            },
            first_guest: Duration::from_secs(u64::from(qemu.first_guest_seconds)),
            count_foreign: config.slots.count_foreign,
            ..qemu::Settings::new(layout.at("instances"), layout.at("qemu-probe.json"))
        })
        .map_err(|error| StartError::Driver { driver: Qemu::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.tart.enabled {
        let driver = Tart::new(tart_settings(config, layout, own_path))
            .map_err(|error| StartError::Driver { driver: Tart::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.fake.enabled {
        tracing::warn!("the fake driver is enabled: its vms are not real");
        registry.add(Arc::new(Fake::new(FakeWorld::new())));
    }
    Ok(registry)
}

fn tart_settings(config: &Config, layout: &Layout, own_path: &Path) -> tart::Settings {
    let t = &config.drivers.tart;
    let launcher = vec![own_path.display().to_string(), "detach".to_owned(), "--".to_owned()];
    tart::Settings {
        binary: t.binary.clone(),
        arch: t.arch.map(|arch| match arch {
            GuestArch::Aarch64 => Arch::Aarch64,
            GuestArch::X86_64 => Arch::X86_64,
        }),
        lease_file: t.lease_file.clone(),
        ssh_port: t.ssh_port,
        resolver: match t.resolver {
            TartResolver::Dhcp => tart::Resolver::Dhcp,
            TartResolver::Arp => tart::Resolver::Arp,
            TartResolver::Agent => tart::Resolver::Agent,
        },
        network: match t.network {
            TartNetwork::Nat => tart::Network::Nat,
            TartNetwork::Softnet => {
                tart::Network::Softnet { allow: t.softnet_allow.clone(), block: t.softnet_block.clone() }
            }
            TartNetwork::Bridged => tart::Network::Bridged { interfaces: t.bridged_interfaces.clone() },
        },
        dirs: t.dirs.clone(),
        rosetta: t.rosetta.clone(),
        nested: t.nested,
        suspendable: t.suspendable,
        root_disk_opts: t.root_disk_opts.clone(),
        display: t.display.clone(),
        copy_across_volumes: t.copy_across_volumes,
        ..tart::Settings::new(config.tart_home(), layout.at("tart"), launcher)
    }
}

fn space(config: &Config) -> templates::SpaceLimits {
    let t = &config.templates;
    templates::SpaceLimits {
        max_bytes: t.max_bytes,
        min_free_bytes: t.min_free_bytes,
        keep_unused_days: t.keep_unused_days,
    }
}

/// How fast bytes may come, from everywhere together.
fn limits(config: &Config) -> BandwidthLimits {
    BandwidthLimits {
        all: BandwidthLimit::of(config.registry.bytes_per_second),
        background: BandwidthLimit::of(config.registry.background_bytes_per_second),
    }
}

/// Who pulls templates, as whoever we are to each registry, and who keeps what we are told of that.
fn registries(config: &Config, catalog: &Catalog, limits: &BandwidthLimits) -> (Puller, Logins) {
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
        limits: limits.clone(),
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
    let logins = Logins::new(config.data_dir.clone(), options.clone(), users, chain.clone());
    let settings = pull::Settings { registry: options, ..pull::Settings::default() };
    (Puller::new(catalog.clone(), settings, chain), logins)
}

/// Where each driver's guests find the guest API, unless the configuration names one place for all.
fn guest_urls(config: &Config) -> BTreeMap<String, String> {
    let port = config.guest_listen().map_or(config::GUEST_PORT, |address| address.port());
    let tart = SocketAddr::new(config.drivers.tart.gateway, port);
    [
        (Qemu::NAME, qemu::args::GUEST_API_ADDRESS.to_owned()),
        (Tart::NAME, tart.to_string()),
        (Fake::NAME, tart.to_string()),
    ]
    .into_iter()
    .map(|(driver, address)| {
        let url = config.guest.advertise_url.clone().unwrap_or_else(|| format!("http://{address}"));
        (driver.to_owned(), url)
    })
    .collect()
}

fn tls(config: &Config) -> Result<Option<Arc<tokio_rustls::rustls::ServerConfig>>, StartError> {
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
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|e| explain("the private key", "server.tls_key", key, &e))?;
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

/// On the first start, an admin token for whoever may read the data directory. Made again when the file was removed.
async fn admin_token(service: &Service, path: &Path) -> Result<(), StartError> {
    let failed = |what: &dyn std::fmt::Display| StartError::AdminToken(format!("{}: {what}", path.display()));
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let token: SecretString = text.trim().to_owned().into();
            return match service.authenticate(&token).await {
                Ok(_) => Ok(()),
                Err(error) if error.code == crate::domain::Code::AuthRequired => {
                    tracing::warn!(path = %path.display(), "the token in this file is not valid; remove the file to get a new one at the next start");
                    Ok(())
                }
                Err(error) => Err(failed(&error)),
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&error)),
    }
    // A start that died between the row and the file left a token that nobody knows.
    for token in service.list_tokens().await.map_err(|e| failed(&e))? {
        if token.name == LOCAL_ADMIN && token.revoked_at.is_none() {
            service.revoke_token(token.id).await.map_err(|e| failed(&e))?;
        }
    }
    let (_, secret) = service.create_token(LOCAL_ADMIN.to_owned(), TokenScope::Admin).await.map_err(|e| failed(&e))?;
    let mut text = secret.expose_secret().to_owned();
    text.push('\n');
    files::replace(path, text.as_bytes()).map_err(|e| failed(&e))?;
    tracing::info!(path = %path.display(), "wrote an admin token");
    // Said on standard error too, so that it is seen whatever the log's format and level are.
    let _ = writeln!(io::stderr(), "admin token written to {}", path.display());
    Ok(())
}

const LOCAL_ADMIN: &str = "local-admin";
