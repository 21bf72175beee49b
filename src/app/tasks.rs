//! Runs the service: its listeners and its loops, from start to shutdown.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    build::{Built, Setup, build},
    drivers,
    error::StartError,
    listeners, network, sources, store, templates,
};
use crate::{
    adapters::nesting::{self, NestingListener},
    admission,
    client::ServiceOptions,
    config::Config,
    domain::AllowedDestination,
    guest::HostEnvironment,
    http::{self, AdminRouters, Http},
    platform::{data_dir::DataDir, version},
    reconcile::{self, JobLoops, PullLoops, Reconciler},
    service::{self, webhooks::WebhookSecrets},
    sources::Sources,
    telemetry,
    templates::layouts::Tools,
};

/// `run` serves until it is told to shut down.
pub struct App {
    lock: File,
    listener: TcpListener,
    admin_socket: UnixListener,
    guest_socket: UnixListener,
    guest_tcp: Option<TcpListener>,
    nesting: Option<NestingSocket>,
    http: Http,
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    reconciler: Reconciler,
    jobs: JobLoops,
    pulls: PullLoops,
    shutdown: CancellationToken,
    store_closed: JoinHandle<()>,
    unchecked: Option<crate::platform::database::Unchecked>,
}

/// The socket of `nesting`, whose calls become requests to the API of this service.
struct NestingSocket {
    listener: NestingListener,
    section: nesting::NestingSection,
    service: ServiceOptions,
}

impl App {
    /// Opens everything. An error leaves nothing changed that a later start cannot handle: everything that can be
    /// refused without an effect is refused first, as `check` does it.
    pub async fn start(config: &Config, shutdown: CancellationToken) -> Result<App, StartError> {
        let data = DataDir::new(config.data_dir.clone());
        let plan = StartPlan::new(config, &data).await?;
        let tls = plan.tls.clone();
        let lock = store::lock(&data)?;
        // Listening comes before the database: a port in use is the most common problem, and nothing has been changed
        // yet.
        let listener = listeners::listen(config.server.listen, "server.listen").await?;
        let guest_tcp = match config.guest_listen() {
            Some(address) => Some(listeners::listen(address, "guest.listen").await?),
            None => None,
        };
        let nesting = match &config.nesting.socket {
            Some(path) => Some(NestingSocket {
                listener: listeners::listen_nesting(path).await?,
                section: config.nesting.clone(),
                service: ServiceOptions {
                    data_dir: Some(data.path().to_owned()),
                    // Whatever token this process has in its environment.
                    token_file: Some(data.admin_token()),
                    ..ServiceOptions::default()
                },
            }),
            None => None,
        };
        let own_path = std::env::current_exe().map_err(StartError::OwnPath)?;
        let Built { parts: _, services, reconciler, jobs, pulls, store_closed, unchecked } =
            build(setup(config, data.clone(), &own_path, plan)?).await?;
        let guest_socket = listeners::listen_unix(&data.guest_socket())?;
        store::admin_token(&services.local_admin, &data.admin_token(), &config.log).await?;
        let admin_socket = listeners::listen_unix(&data.admin_socket())?;
        let http = Http {
            services,
            settings: http::Settings::from(&config.server),
            metrics: Arc::new(telemetry::render_metrics),
            shutdown: shutdown.clone(),
        };
        Ok(App {
            lock,
            listener,
            admin_socket,
            guest_socket,
            guest_tcp,
            nesting,
            http,
            tls,
            reconciler,
            jobs,
            pulls,
            shutdown,
            store_closed,
            unchecked,
        })
    }

    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until its token is cancelled: accepts no new requests, finishes requests under way, and leaves vms
    /// running. An error: a part ended unexpectedly, so the whole service ended.
    pub async fn run(self) -> Result<(), StartError> {
        let App {
            lock,
            listener,
            admin_socket,
            guest_socket,
            guest_tcp,
            nesting,
            http,
            tls,
            reconciler,
            jobs,
            pulls,
            shutdown,
            store_closed,
            unchecked,
        } = self;
        let (most, guest) = (http.settings.max_connections, || http::guest_router(&http));
        let guests = tokio::spawn(http::serve_unix(guest_socket, most, guest(), shutdown.clone()));
        let guests_tcp = guest_tcp.map(|l| tokio::spawn(http::serve_tcp(l, None, most, guest(), shutdown.clone())));
        let AdminRouters { admin, local } = http::admin_routers(&http);
        let admin = tokio::spawn(http::serve_tcp(listener, tls, most, admin, shutdown.clone()));
        let local = tokio::spawn(http::serve_unix(admin_socket, most, local, shutdown.clone()));
        let nesting = nesting.map(|NestingSocket { listener, section, service }| {
            tokio::spawn(nesting::serve(listener, section, service, shutdown.clone()))
        });
        let pulling = tokio::spawn(pulls.run(shutdown.clone()));
        let jobs = tokio::spawn(jobs.run(shutdown.clone()));
        let reconciling = tokio::spawn(reconciler.run(shutdown.clone()));
        if let Some(unchecked) = unchecked {
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(store::check_later(unchecked)));
        }
        drop(http);
        let parts = [
            ("guest API", Some(guests)),
            ("guest API over TCP", guests_tcp),
            ("admin API", Some(admin)),
            ("admin API on this machine", Some(local)),
            ("API of nesting", nesting),
            ("pulls", Some(pulling)),
            ("jobs", Some(jobs)),
            ("reconciler", Some(reconciling)),
        ];
        let mut parts: FuturesUnordered<_> =
            parts.into_iter().filter_map(|(name, task)| task.map(|task| async move { (name, task.await) })).collect();
        let mut broken = Ok(());
        // In the order in which they end: otherwise an unexpected end of one part would be noticed only after all
        // others have ended.
        while let Some((part, ended)) = parts.next().await {
            if ended.is_err() || !shutdown.is_cancelled() {
                let cause = ended.err().map(|error| format!(" ({error})")).unwrap_or_default();
                tracing::error!(part, "a part of the service ended unexpectedly{cause}; shutting down for a restart");
                broken = Err(StartError::Part { part });
                shutdown.cancel();
            }
        }
        // Closing checkpoints the write-ahead log into the database file. If something still uses the store, the next
        // start does it.
        let _ = tokio::time::timeout(Duration::from_secs(2), store_closed).await;
        drop(lock);
        broken
    }
}

/// What a start reads before its first effect. Whatever of it is refused, `serve --check` and `doctor` refuse as well.
struct StartPlan {
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    sources: Sources,
    webhook_secrets: WebhookSecrets,
    allow: Vec<AllowedDestination>,
    guest_urls: BTreeMap<String, String>,
    host_environments: BTreeMap<String, HostEnvironment>,
}

impl StartPlan {
    async fn new(config: &Config, data: &DataDir) -> Result<Self, StartError> {
        listeners::check_paths(config, data)?;
        store::check_key(data)?;
        crate::store::check_version(&data.database()).await?;
        drivers::check(config, data)?;
        let proxies = network::proxies(config)?;
        let guest_urls = drivers::guest_urls(config);
        let (sources, webhook_secrets) = sources::sources(config)?;
        Ok(Self {
            tls: listeners::tls(config)?,
            sources,
            webhook_secrets,
            allow: network::allowed(config, &proxies),
            host_environments: network::host_environments(config, &proxies, &guest_urls)?,
            guest_urls,
        })
    }
}

fn setup(config: &Config, data: DataDir, own_path: &Path, plan: StartPlan) -> Result<Setup, StartError> {
    let StartPlan { tls: _, sources, webhook_secrets, allow, guest_urls, host_environments } = plan;
    let drivers = drivers::registry(config, &data, own_path)?;
    let capacity = config.slots.capacity();
    let usual = Setup::new(data, drivers, capacity);
    Ok(Setup {
        count_foreign: config.slots.count_foreign,
        database_reserve: config.database.reserve_bytes,
        template_limits: config.templates.limits(),
        registries: templates::registries(config),
        sources,
        runner_archives: config.runner_archives(),
        budgets: config.default_budgets(),
        service: service::Settings {
            vms: admission::vms::Settings {
                max_queued: config.queue.max_length,
                queue_timeout_seconds: config.queue.timeout_seconds,
                ..Default::default()
            },
            pulls: admission::pulls::Settings {
                deadline: Duration::from_secs(u64::from(config.pulls.deadline_seconds)),
            },
            pools: config.pools.clone(),
            webhook_secrets,
            tools: Tools { qemu_img: config.drivers.qemu.qemu_img.clone().unwrap_or_else(|| "qemu-img".into()) },
        },
        reconcile: reconcile::Settings {
            allow,
            host_environments,
            guest_urls,
            disk_full: Duration::from_secs(u64::from(config.drivers.qemu.disk_full_seconds)),
            keep_deleted: Duration::from_secs(u64::from(config.retention.deleted_vms_days) * 24 * 3600),
            ..usual.reconcile
        },
        ..usual
    })
}

/// A start that ends before its first effect: it starts nothing and changes nothing in the data directory.
pub async fn check(config: &Config) -> Result<(), StartError> {
    StartPlan::new(config, &DataDir::new(config.data_dir.clone())).await.map(drop)
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
    tracing::info!(version = version::NUMBER, commit = version::COMMIT, "started");
    // On standard error with every level of the log, because scripts wait for it.
    let ready = format!("listening on {scheme}://{address} with data in {}", config.data_dir.display());
    let _ = writeln!(io::stderr(), "{}", telemetry::line(&config.log, &ready));
    app.run().await
}
