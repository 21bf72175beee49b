//! How long a durable `POST /vms` takes, against one bare durable insert.
//!
//! ```text
//! cargo bench --bench accept [-- --quick]
//! ```
//!
//! The whole service runs in this process as `mayfly serve` would run it, reconciler and log included, on a database of
//! 100,000 vms that ended long ago. It has no slots, so that a new vm is stored and waits. One client on a runtime of its own
//! sends one request after the other over a connection that stays open; its own time counts.
//!
//! The anchor is one row of a vm's size, inserted in a transaction of its own by one connection of the same SQLite with the
//! same journal and `synchronous=FULL`, into an empty database on the same file system. It is taken in turns with the
//! requests, twice: between them, one request and one insert, and in a tight loop after each round of requests.

#![allow(clippy::disallowed_methods, reason = "a measurement has a clock of its own")]
#![expect(clippy::print_stdout, reason = "a table on the terminal is what it is for")]

use std::{
    error::Error,
    fs::File,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use mayfly::{
    app::App,
    config::Config,
    domain::{Announcer, EndProof, Event, VmId, event::ReadyVia, runner::RunnerFact},
    store::{self, Expect},
    telemetry,
};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio_util::sync::CancellationToken;

const GOAL: f64 = 2.0;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

struct Scale {
    old_vms: u32,
    rounds: usize,
    per_round: usize,
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let scale = if quick {
        Scale { old_vms: 2_000, rounds: 3, per_round: 50 }
    } else {
        Scale { old_vms: 100_000, rounds: 10, per_round: 300 }
    };
    let dir = tempfile::Builder::new().prefix("accept").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    // The service's log is written and formatted as always, to a file instead of a terminal.
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(Mutex::new(File::create(dir.path().join("log"))?))
        .init();
    telemetry::start_metrics();

    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let data = dir.path().join("data");
    let service = Service::start(&data)?;
    let id = client.block_on(async {
        let api = Api::new(&service)?;
        api.template(dir.path()).await?;
        api.create(0).await
    })?;
    service.stop();
    client.block_on(fill(&data.join("mayfly.db"), id, scale.old_vms))?;

    let service = Service::start(&data)?;
    let rounds = client.block_on(measure(&Api::new(&service)?, dir.path(), &scale))?;
    service.stop();
    report(&rounds)
}

/// The service on a runtime of its own.
struct Service {
    runtime: tokio::runtime::Runtime,
    running: tokio::task::JoinHandle<Result<(), mayfly::app::StartError>>,
    shutdown: CancellationToken,
    url: String,
    token: String,
}

impl Service {
    fn start(data: &Path) -> Result<Service> {
        let settings = [
            ("server.listen", "127.0.0.1:0"),
            ("drivers.qemu.enabled", "false"),
            ("drivers.fake.enabled", "true"),
            ("slots.linux", "0"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        let config = Config::load(Some(data.to_owned()), settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let shutdown = CancellationToken::new();
        let app = runtime.block_on(App::start(&config, shutdown.clone()))?;
        let url = format!("http://{}", app.address()?);
        let token = std::fs::read_to_string(data.join("admin.token"))?.trim().to_owned();
        let running = runtime.spawn(app.run());
        Ok(Service { runtime, running, shutdown, url, token })
    }

    fn stop(self) {
        self.shutdown.cancel();
        let _ = self.runtime.block_on(self.running);
        self.runtime.shutdown_background();
    }
}

struct Api {
    client: Client,
    url: String,
    token: String,
}

impl Api {
    fn new(service: &Service) -> Result<Api> {
        let client = Client::builder().no_proxy().tcp_nodelay(true).timeout(Duration::from_secs(30)).build()?;
        Ok(Api { client, url: service.url.clone(), token: service.token.clone() })
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>, expected: StatusCode) -> Result<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, body) = (response.status(), response.bytes().await?);
        if status != expected {
            return Err(format!("{path} answered {status}: {}", String::from_utf8_lossy(&body)).into());
        }
        Ok(serde_json::from_slice(&body)?)
    }

    async fn template(&self, dir: &Path) -> Result<()> {
        let disk = dir.join("disk.raw");
        std::fs::write(&disk, [1; 64 * 1024])?;
        let body = json!({"name": "micro", "driver": "fake", "disk": disk, "cpus": 1, "memory_mib": 192});
        self.call(Method::POST, "/templates", Some(body), StatusCode::CREATED).await.map(drop)
    }

    /// A request as a CI system makes it.
    async fn create(&self, n: usize) -> Result<VmId> {
        let body = json!({
            "template": "micro",
            "name": format!("build-{n}"),
            "runner": {"kind": "command", "command": "make test", "env": {"CI": "true"}},
            "labels": {"repository": "octo/example", "workflow": "test"},
        });
        let vm = self.call(Method::POST, "/vms", Some(body), StatusCode::CREATED).await?;
        Ok(vm["id"].as_str().ok_or("no id")?.parse()?)
    }

    async fn end(&self, id: VmId) -> Result<()> {
        self.call(Method::DELETE, &format!("/vms/{id}?force=true"), None, StatusCode::ACCEPTED).await.map(drop)
    }
}

/// Leads the vm through a whole life and copies it, with its events, `count` times.
async fn fill(database: &Path, id: VmId, count: u32) -> Result<()> {
    let store = store::open(database).await?;
    for event in [
        Event::SlotTaken,
        Event::Cloned,
        Event::GuestReady { via: ReadyVia::GuestCall },
        Event::GuestConfigured,
        Event::RunnerChanged { fact: RunnerFact::Online },
        Event::RunnerChanged { fact: RunnerFact::JobStarted },
        Event::EndAnnounced { by: Announcer::Hook },
        Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) },
        Event::InstanceStopped,
        Event::InstanceAbsent,
    ] {
        let applied = store.ledger.apply(id, Expect::Anything, event.clone(), jiff::Timestamp::now()).await?;
        if !applied.changed() {
            return Err(format!("{event:?} did nothing").into());
        }
    }
    drop((store.ledger, store.reader));
    store.closed.await?;

    let mut db = SqliteConnectOptions::new().filename(database).connect().await?;
    sqlx::raw_sql("CREATE TEMP TABLE copies (n INTEGER PRIMARY KEY, id TEXT NOT NULL)").execute(&mut db).await?;
    let mut transaction = db.begin().await?;
    sqlx::query(
        "WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < ?)
         INSERT INTO copies SELECT n, printf('01800000-0000-7000-8000-%012x', n) FROM counter",
    )
    .bind(count)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO vms (id, name, state, generation, template, template_digest, os, cpus, memory_mib, request_hash,
                          created_at, deleted_at, record)
         SELECT copies.id, 'old-' || n, state, generation, template, template_digest, os, cpus, memory_mib, request_hash,
                created_at, deleted_at, replace(record, vms.id, copies.id)
         FROM copies JOIN vms ON vms.id = ? ORDER BY n",
    )
    .bind(id.to_string())
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO events (vm_id, generation, at, state, event)
         SELECT copies.id, generation, at, state, replace(event, vm_id, copies.id)
         FROM copies JOIN events ON vm_id = ? ORDER BY n, generation",
    )
    .bind(id.to_string())
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut db).await?;
    Ok(db.close().await?)
}

/// One connection that inserts.
struct Anchor {
    db: SqliteConnection,
    row: Vec<u8>,
}

impl Anchor {
    async fn open(dir: &Path, size: usize) -> Result<Anchor> {
        let mut db = SqliteConnectOptions::new()
            .filename(dir.join("anchor.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .connect()
            .await?;
        sqlx::raw_sql("CREATE TABLE anchor (id INTEGER PRIMARY KEY, row BLOB NOT NULL)").execute(&mut db).await?;
        Ok(Anchor { db, row: vec![7; size] })
    }

    async fn insert(&mut self) -> Result<()> {
        let mut transaction = self.db.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO anchor (row) VALUES (?)").bind(&self.row).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// Milliseconds.
#[derive(Default)]
struct Round {
    posts: Vec<f64>,
    inserts_between: Vec<f64>,
    inserts_alone: Vec<f64>,
}

async fn measure(api: &Api, dir: &Path, scale: &Scale) -> Result<Vec<Round>> {
    let first = api.create(0).await?;
    let mut anchor = Anchor::open(dir, row_size(&dir.join("data/mayfly.db"), first).await?).await?;
    api.end(first).await?;
    let mut rounds = Vec::new();
    // The first round warms up caches and connections on both sides and does not count.
    for round in 0..=scale.rounds {
        let mut samples = Round::default();
        let mut made = Vec::new();
        for n in 0..scale.per_round {
            let begun = Instant::now();
            made.push(api.create(round * scale.per_round + n).await?);
            samples.posts.push(ms(begun));
            let begun = Instant::now();
            anchor.insert().await?;
            samples.inserts_between.push(ms(begun));
        }
        for _ in 0..scale.per_round {
            let begun = Instant::now();
            anchor.insert().await?;
            samples.inserts_alone.push(ms(begun));
        }
        // Every round begins with an empty queue.
        for id in made {
            api.end(id).await?;
        }
        if round > 0 {
            println!(
                "round {round}: p99 of POST {:.3} ms, of an insert {:.3} ms between and {:.3} ms alone",
                quantile(&samples.posts, 0.99),
                quantile(&samples.inserts_between, 0.99),
                quantile(&samples.inserts_alone, 0.99)
            );
            rounds.push(samples);
        }
    }
    Ok(rounds)
}

/// What a vm's row takes, without its event and its secrets.
async fn row_size(database: &Path, id: VmId) -> Result<usize> {
    let mut db = SqliteConnectOptions::new().filename(database).read_only(true).connect().await?;
    let row = sqlx::query(
        "SELECT length(id) + length(name) + length(state) + length(template) + length(template_digest) + length(os)
                + length(request_hash) + length(record) AS size FROM vms WHERE id = ?",
    )
    .bind(id.to_string())
    .fetch_one(&mut db)
    .await?;
    Ok(usize::try_from(row.try_get::<i64, _>("size")?)?)
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() as f64 * q) as usize).min(sorted.len() - 1)]
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(&values.collect::<Vec<_>>(), 0.5)
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn report(rounds: &[Round]) -> Result<()> {
    let all = |of: fn(&Round) -> &Vec<f64>| rounds.iter().flat_map(|r| of(r).clone()).collect::<Vec<_>>();
    let (posts, between, alone) = (all(|r| &r.posts), all(|r| &r.inserts_between), all(|r| &r.inserts_alone));
    let rows = [
        ("POST /vms", &posts),
        ("bare insert, between the requests", &between),
        ("bare insert, in a tight loop", &alone),
    ];
    println!("\naccept");
    for (label, samples) in rows {
        println!(
            "  {label:<46} p50 {:10.3} ms   p99 {:10.3} ms   min {:.3}  max {:.3}  n {}",
            quantile(samples, 0.5),
            quantile(samples, 0.99),
            quantile(samples, 0.0),
            quantile(samples, 1.0),
            samples.len()
        );
    }
    let over = |q: f64, of: fn(&Round) -> &Vec<f64>| {
        let ratio = median(rounds.iter().map(|r| quantile(&r.posts, q) / quantile(of(r), q)));
        (ratio * 1000.0).round() / 1000.0
    };
    let pooled = |q: f64, of: &[f64]| (quantile(&posts, q) / quantile(of, q) * 1000.0).round() / 1000.0;
    let ratio = over(0.99, |r| &r.inserts_between);
    let ratios = [
        ("ratio", ratio),
        ("ratio_to_tight_loop", over(0.99, |r| &r.inserts_alone)),
        ("ratio_pooled", pooled(0.99, &between)),
        ("ratio_pooled_to_tight_loop", pooled(0.99, &alone)),
        ("ratio_of_p50", over(0.5, |r| &r.inserts_between)),
        ("ratio_of_p50_to_tight_loop", over(0.5, |r| &r.inserts_alone)),
    ];
    let goal = format!("ratio of p99 <= {GOAL}");
    let mut record = json!({"name": "accept", "unit": "ms", "goal": goal, "samples": {}});
    for (label, samples) in rows {
        record["samples"][label] = json!(samples);
    }
    for (key, value) in ratios {
        println!("  {key:<46} {value}");
        record[key] = json!(value);
    }
    println!("  goal: {goal}");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../bench");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("accept.json"), format!("{record:#}\n"))?;
    Ok(())
}
