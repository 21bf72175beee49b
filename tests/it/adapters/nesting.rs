//! The socket of GitLab's `nesting`, asked by a client that is built by hand, as GitLab Runner's is generated.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use mayfly::{
    adapters::nesting::{NestingListener, NestingSection, serve},
    client::ServiceOptions,
    domain::endpoint::Endpoint,
    templates::NewTemplate,
};
use serde_json::{Value, json};
use tokio::{net::UnixStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    simulated_vms::{Address, ended, service_with_vms},
    sshd::{self, Sshd},
};
use crate::api::{Api, disk, new_template};

// ---- the protocol, as the other side has it ----

#[derive(Clone, PartialEq, prost::Message)]
struct InitRequest {
    #[prost(bytes = "vec", tag = "1")]
    config: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateRequest {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, optional, tag = "2")]
    slot: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateResponse {
    #[prost(message, optional, tag = "1")]
    vm: Option<VirtualMachine>,
    #[prost(string, optional, tag = "2")]
    stomped: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeleteRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    vms: Vec<VirtualMachine>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VirtualMachine {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    addr: String,
}

#[derive(Clone)]
struct Client(Channel);

impl Client {
    async fn connected(socket: &Path) -> Client {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        Client(endpoint.connect_with_connector(connect).await.unwrap())
    }

    async fn call<Q, A>(&self, method: &str, asked: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.expect("the socket is served");
        let path: PathAndQuery = format!("/nesting.Nesting/{method}").parse().unwrap();
        Ok(grpc.unary(Request::new(asked), path, ProstCodec::<Q, A>::default()).await?.into_inner())
    }

    async fn init(&self) -> Result<(), Status> {
        self.call("Init", InitRequest { config: b"{}".to_vec() }).await
    }

    async fn create(&self, image: &str, slot: Option<i32>) -> Result<CreateResponse, Status> {
        self.call("Create", CreateRequest { name: image.to_owned(), slot }).await
    }

    /// The id of a new vm.
    async fn create_micro(&self, slot: Option<i32>) -> String {
        self.create("micro", slot).await.unwrap().vm.unwrap().id
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        self.call("Delete", DeleteRequest { id: id.to_owned() }).await
    }

    async fn list(&self) -> Result<Vec<VirtualMachine>, Status> {
        Ok(self.call::<(), ListResponse>("List", ()).await?.vms)
    }

    /// In the order of their ids.
    async fn listed(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.list().await.unwrap().into_iter().map(|vm| vm.id).collect();
        ids.sort();
        ids
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert!(status.code() == code && status.message().contains(text), "{text}: {status:?}");
}

struct Socket {
    api: Api,
    path: PathBuf,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Socket {
    async fn new(ssh: Endpoint) -> Socket {
        Socket::of(service_with_vms(ssh, Address::Early).await).await
    }

    async fn of(api: Api) -> Socket {
        let path = api.dir.path().join("nesting.sock");
        let (server, shutdown) = serving(&path, &api, &api.create).await;
        Socket { api, path, shutdown, server }
    }

    async fn usual() -> (Socket, Client) {
        let socket = Socket::new(Endpoint::address("192.168.64.7", 22)).await;
        let client = Client::connected(&socket.path).await;
        client.init().await.unwrap();
        (socket, client)
    }

    async fn restart(&mut self) -> Client {
        self.shutdown.cancel();
        (&mut self.server).await.unwrap();
        (self.server, self.shutdown) = serving(&self.path, &self.api, &self.api.create).await;
        Client::connected(&self.path).await
    }

    async fn vm(&self, id: &str) -> Value {
        self.api.get(&format!("/vms/{id}"), &self.api.admin).await.ok(200)
    }

    /// A vm of another client.
    async fn other(&self, labels: Value) -> String {
        let body = json!({"template": "micro", "runner": {"kind": "none"}, "labels": labels});
        self.api.post("/vms", &self.api.create, body).await.ok(201)["id"].as_str().unwrap().to_owned()
    }
}

async fn serving(path: &Path, api: &Api, token: &str) -> (JoinHandle<()>, CancellationToken) {
    let token_file = api.dir.path().join("nesting.token");
    std::fs::write(&token_file, token).unwrap();
    let options =
        ServiceOptions { url: Some(api.url.clone()), token_file: Some(token_file), ..ServiceOptions::default() };
    let templates = ["micro", "guest"].map(str::to_owned).to_vec();
    let section = NestingSection { templates, ..NestingSection::default() };
    let listener = NestingListener::bind(path).await.unwrap();
    let shutdown = CancellationToken::new();
    (tokio::spawn(serve(listener, section, options, shutdown.clone())), shutdown)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_creates_lists_and_deletes_its_own_vms() {
    let socket = Socket::new(Endpoint::address("192.168.64.7", 22)).await;
    assert_eq!(std::fs::metadata(&socket.path).unwrap().permissions().mode() & 0o777, 0o600);
    let client = Client::connected(&socket.path).await;
    // Clients compare the texts, and call `Init` then.
    let not_yet = Code::FailedPrecondition;
    for result in [
        client.list().await.map(drop),
        client.create("micro", None).await.map(drop),
        client.delete("x").await,
        client.call::<(), ()>("Shutdown", ()).await,
    ] {
        let status = result.unwrap_err();
        assert_eq!((status.code(), status.message()), (not_yet, "not initialized"));
    }
    client.init().await.unwrap();
    let again = client.init().await.unwrap_err();
    assert_eq!((again.code(), again.message()), (not_yet, "already initialized"));
    refused(client.call::<(), ()>("Suspend", ()).await, Code::Unimplemented, "Suspend");

    let other = socket.other(json!({"owner": "somebody-else", "nesting.slot": "3"})).await;
    let created = client.create("micro", Some(3)).await.unwrap();
    assert_eq!(created.stomped, None, "a vm of another owner is in no slot");
    let vm = created.vm.unwrap();
    assert_eq!((vm.name.as_str(), vm.addr.as_str()), ("micro", "192.168.64.7"));
    let shown = socket.vm(&vm.id).await;
    assert_eq!((&shown["labels"]["owner"], &shown["labels"]["nesting.slot"]), (&json!("nesting"), &json!("3")));
    assert_eq!((&shown["budgets"]["lifetime_seconds"], &shown["network"]), (&json!(86_400), &json!("internet")));
    assert_eq!(client.list().await.unwrap(), std::slice::from_ref(&vm));

    refused(
        client.create("linux", None).await,
        Code::Unknown,
        "\"linux\" is not allowed on this host, only micro, guest",
    );
    for id in ["01999999-9999-7999-8999-999999999999", "no id", "../vms", &other] {
        refused(client.delete(id).await, Code::Unknown, "nesting has no vm");
    }
    client.delete(&vm.id).await.unwrap();
    assert_eq!(client.list().await.unwrap(), []);
    ended(&socket.api, &vm.id).await;
    // It was one of ours.
    client.delete(&vm.id).await.unwrap();
    assert_eq!(socket.vm(&other).await["outcome"], Value::Null);

    client.call::<(), ()>("Shutdown", ()).await.unwrap();
    refused(client.call::<(), ()>("Shutdown", ()).await, not_yet, "already initialized");
    refused(client.list().await, not_yet, "not initialized");
    client.init().await.unwrap();
    assert_eq!(client.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_has_one_vm_and_none_blocks_it() {
    let (mut socket, client) = Socket::usual().await;
    let first = client.create_micro(Some(0)).await;
    let other = client.create_micro(Some(1)).await;
    let second = client.create("micro", Some(0)).await.unwrap();
    assert_eq!(second.stomped.as_deref(), Some(first.as_str()));
    let second = second.vm.unwrap().id;
    ended(&socket.api, &first).await;
    let mut both = vec![other.clone(), second.clone()];
    both.sort();
    assert_eq!(client.listed().await, both, "the vm of the other slot was left");

    // Gone by itself.
    socket.api.delete(&format!("/vms/{second}?force=true"), &socket.api.admin).await;
    ended(&socket.api, &second).await;
    let third = client.create("micro", Some(0)).await.unwrap();
    assert_eq!(third.stomped, None);
    let third = third.vm.unwrap().id;

    // A restart forgets neither vms nor slots. The socket of before is still there.
    let client = socket.restart().await;
    refused(client.list().await, Code::FailedPrecondition, "not initialized");
    client.init().await.unwrap();
    assert_eq!(client.listed().await.len(), 2);
    let fourth = client.create("micro", Some(0)).await.unwrap();
    assert_eq!(fourth.stomped.as_deref(), Some(third.as_str()));

    // Two at once: one vm is left, whichever came first.
    let (one, two) = tokio::join!(client.create("micro", Some(0)), client.create("micro", Some(0)));
    assert!(one.is_ok() || two.is_ok());
    let listed = client.listed().await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    let live = [one, two].into_iter().flatten().filter(|made| listed.contains(&made.vm.as_ref().unwrap().id));
    assert_eq!(live.count(), 1);
    for id in listed {
        client.delete(&id).await.unwrap();
        ended(&socket.api, &id).await;
    }
}

/// Guests that were provisioned through their agent have no known address, but a login finds it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_known_is_found_by_a_login() {
    let sshd = Sshd::start().await;
    let socket = Socket::of(service_with_vms(Endpoint::address("127.0.0.1", sshd.port), Address::Late).await).await;
    let template = NewTemplate {
        ssh_key: Some(sshd.key()),
        user: Some(sshd::user()),
        ..new_template("guest", disk(&socket.api.dir, "guest.raw", 2))
    };
    socket.api.parts.catalog.register(template).await.unwrap();
    let client = Client::connected(&socket.path).await;
    client.init().await.unwrap();
    let vm = client.create("guest", Some(0)).await.unwrap().vm.unwrap();
    assert_eq!((vm.name.as_str(), vm.addr.as_str()), ("guest", "127.0.0.1"));
    // Without a login, the answer says what is missing, and the vm does not stay.
    refused(client.create("micro", Some(1)).await, Code::Unknown, "[vm.access_unsupported]");
    while client.listed().await != [vm.id.clone()] {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_no_vm() {
    let (socket, client) = Socket::usual().await;
    for _ in 0..2 {
        client.create_micro(None).await;
    }
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.create("micro", None).await }
    });
    let third = loop {
        let listed = client.list().await.unwrap();
        if let Some(vm) = listed.into_iter().find(|vm| vm.addr.is_empty()) {
            break vm.id;
        }
        tokio::task::yield_now().await;
    };
    waiting.abort();
    ended(&socket.api, &third).await;
    assert_eq!(client.listed().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_never_an_empty_list_and_a_guest_without_an_address_is_told() {
    let socket = Socket::new(Endpoint::Socket { socket: "/tmp/guest.sock".into() }).await;
    let client = Client::connected(&socket.path).await;
    client.init().await.unwrap();
    refused(client.create("micro", Some(1)).await, Code::Unknown, "no address that a runner could use");
    // Its vm is ended, and the slot is free.
    for vm in client.listed().await {
        ended(&socket.api, &vm).await;
    }

    socket.shutdown.cancel();
    let path = socket.path.with_extension("other");
    let _serving = serving(&path, &socket.api, "mfa_wrong").await;
    let client = Client::connected(&path).await;
    client.init().await.unwrap();
    refused(client.list().await, Code::Unknown, "is not accepted");
    refused(client.create("micro", Some(1)).await, Code::Unknown, "clearing slot: ");
}

#[tokio::test]
async fn a_socket_is_taken_over_only_if_nothing_listens_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nesting.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let _taken_over = NestingListener::bind(&path).await.expect("a stale socket");
    let error = NestingListener::bind(&path).await.err().unwrap().to_string();
    assert!(error.contains("another program listens on it"), "{error}");

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = NestingListener::bind(&file).await.err().unwrap().to_string();
    assert!(error.contains("something else than a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
