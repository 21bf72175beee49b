//! The plugin of myshoes, seen by a host that does what go-plugin does: a process for each call.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mayfly::domain::{Event, VmId, event::ReadyVia};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::UnixStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    api::{Api, api},
    cli::program,
};

mod create;
mod delete;
mod go_host;
mod guest;
mod handshake;
mod host_ends;
mod messages;
mod refused;
mod waits;

use messages::{AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, Empty};

pub const COOKIE: (&str, &str) = ("SHOES_PLUGIN_MAGIC_COOKIE", "are_you_a_shoes?");
pub const SECRET: &str = "hush-hush-secret";
/// What myshoes' own environment holds.
const HOST_SECRET: &str = "LS0tLS1CRUdJTiBSU0Eg-host";

/// A myshoes with its configuration, and the service that its plugin asks.
pub struct Shoes {
    pub api: Api,
    dir: tempfile::TempDir,
}

/// One process of the plugin, and the connection to it.
pub struct Plugin {
    child: Child,
    pub channel: Channel,
    out: BufReader<ChildStdout>,
    pub line: String,
}

impl Shoes {
    pub async fn new() -> Shoes {
        let api = api().await;
        let url = api.url.clone();
        Shoes::asking(api, &url)
    }

    /// The plugin asks the service at this address.
    pub fn asking(api: Api, url: &str) -> Shoes {
        let dir = tempfile::tempdir().expect("a directory");
        let shoes = Shoes { api, dir };
        let token = shoes.write("token", &shoes.api.create);
        let text = format!(
            "url = '{url}'\ntoken_file = '{}'\ntemplate = 'micro'\n[resource_types.large]\ncpus = 2\nmemory_mib = 256\n",
            token.display()
        );
        shoes.write("shoes.toml", &text);
        shoes
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// As myshoes starts it: no arguments, its own environment, and what go-plugin adds.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env(COOKIE.0, COOKIE.1).env("MAYFLY_SHOES_CONFIG", self.path("shoes.toml"));
        command.env("PLUGIN_MIN_PORT", "10000").env("PLUGIN_MAX_PORT", "25000").env("PLUGIN_PROTOCOL_VERSIONS", "1");
        command.env("GITHUB_PRIVATE_KEY_BASE64", HOST_SECRET).env("TMPDIR", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn plugin(&self) -> Plugin {
        self.plugin_of(self.command(program())).await
    }

    pub async fn plugin_of(&self, mut command: Command) -> Plugin {
        let log = self.path(&format!("log-{}", uuid::Uuid::new_v4()));
        command.stderr(std::fs::File::create(&log).expect("a file"));
        let mut child = command.spawn().expect("the program starts");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        timeout(Duration::from_secs(20), out.read_line(&mut line)).await.expect("a line").expect("a line");
        let fields: Vec<&str> = line.trim_end_matches('\n').split('|').collect();
        let ["1", "1", "unix", socket, "grpc", ""] = fields.as_slice() else {
            panic!("{line:?}: {}", std::fs::read_to_string(&log).unwrap_or_default())
        };
        let socket = (*socket).to_owned();
        let channel = Endpoint::from_static("http://unused")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .expect("the socket listens before it is announced");
        Plugin { child, channel, out, line }
    }

    /// A whole call of the host: its process, the call, and `Shutdown`. With what the process wrote to its log.
    pub async fn add(
        &self,
        request: AddInstanceRequest,
        within: Option<Duration>,
    ) -> Result<AddInstanceResponse, Status> {
        let plugin = self.plugin().await;
        let answer = plugin.add(request, within).await;
        plugin.shut_down().await;
        answer
    }

    pub async fn delete(&self, cloud_id: &str) -> Result<(), Status> {
        let plugin = self.plugin().await;
        let answer = plugin.delete(cloud_id).await;
        plugin.shut_down().await;
        answer
    }

    /// Vms that are not deleted, newest first.
    pub async fn vms(&self) -> Vec<Value> {
        let listed = self.api.get("/vms?limit=200", &self.api.admin).await.ok(200);
        listed["items"].as_array().expect("a list").clone()
    }

    /// The vms, once there are so many and they are in this state.
    pub async fn until_vms(&self, count: usize, state: &str) -> Vec<Value> {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let vms = self.vms().await;
            if vms.len() == count && vms.iter().all(|vm| vm["state"] == state) {
                return vms;
            }
            assert!(tokio::time::Instant::now() < end, "{vms:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The vm gets its slot, boots, and its guest begins with the setup script.
    pub async fn up(&self, vm: &Value) {
        let id = id(vm);
        self.booting(vm).await;
        for event in [Event::GuestReady { via: ReadyVia::GuestCall }, Event::GuestConfigured] {
            self.api.apply(id, event).await;
        }
    }

    pub async fn booting(&self, vm: &Value) {
        for event in [Event::SlotTaken, Event::Cloned] {
            self.api.apply(id(vm), event).await;
        }
    }

    /// Adds an instance whose vm gets its slot at once.
    pub async fn added(&self, request: AddInstanceRequest) -> AddInstanceResponse {
        let plugin = self.plugin().await;
        let (answer, ()) = tokio::join!(plugin.add(request, None), async {
            let vms = self.until_vms(1, "queued").await;
            self.up(&vms[0]).await;
        });
        plugin.shut_down().await;
        answer.expect("an instance")
    }

    /// What all processes of the plugin have written to their logs.
    pub fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.dir.path()).expect("a directory").flatten();
        let logs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log-"));
        logs.map(|entry| std::fs::read_to_string(entry.path()).expect("text")).collect()
    }
}

impl Plugin {
    pub async fn call<Q, A>(&self, path: &'static str, request: Q, within: Option<Duration>) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(request);
        if let Some(within) = within {
            request.set_timeout(within);
        }
        let codec = ProstCodec::<Q, A>::default();
        Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    pub async fn add(
        &self,
        request: AddInstanceRequest,
        within: Option<Duration>,
    ) -> Result<AddInstanceResponse, Status> {
        self.call("/whywaita.myshoes.Shoes/AddInstance", request, within).await
    }

    pub async fn delete(&self, cloud_id: &str) -> Result<(), Status> {
        let request = DeleteInstanceRequest { cloud_id: cloud_id.to_owned(), labels: Vec::new() };
        let answer: Result<Empty, Status> = self.call("/whywaita.myshoes.Shoes/DeleteInstance", request, None).await;
        answer.map(|_| ())
    }

    pub fn pid(&self) -> i32 {
        self.child.id().expect("it runs") as i32
    }

    /// `Shutdown`, and the end of the connection. How long it took the process to end, and how it did.
    pub async fn shut_down(self) -> (Duration, ExitStatus) {
        let begun = tokio::time::Instant::now();
        let answer: Result<Empty, Status> = self.call("/plugin.GRPCController/Shutdown", Empty {}, None).await;
        if let Err(status) = answer {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
        }
        let (status, rest) = self.left_alone().await;
        assert_eq!(rest, "", "only the first line belongs on standard output");
        (begun.elapsed(), status)
    }

    /// The host is gone without a word. How the process ended, and what else it wrote to standard output.
    pub async fn left_alone(self) -> (ExitStatus, String) {
        let Plugin { mut child, channel, mut out, .. } = self;
        drop(channel);
        let status = timeout(Duration::from_secs(20), child.wait()).await.expect("it ends").expect("a status");
        let mut rest = String::new();
        out.read_to_string(&mut rest).await.expect("text");
        (status, rest)
    }
}

pub fn id(vm: &Value) -> VmId {
    vm["id"].as_str().expect("an id").parse().expect("an id")
}

/// As myshoes asks for the runner of a job.
pub fn request(name: &str, script: &str) -> AddInstanceRequest {
    AddInstanceRequest {
        runner_name: name.to_owned(),
        setup_script: format!("#!/bin/bash\n\nset -e\n# {script}\n"),
        resource_type: 1,
        labels: vec!["self-hosted".to_owned(), "linux".to_owned()],
    }
}
