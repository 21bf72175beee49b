//! The gRPC methods that the host calls: those of `myshoes.proto`, and go-plugin's own.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use hyper::{Request, Response, body::Incoming};
use tokio_stream::Pending;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, Streaming, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{
    add::AddCall,
    call_time::CallTime,
    delete,
    failure::ShoesFailure,
    log::note,
    messages::{
        AddInstanceRequest, AddInstanceResponse, ConnInfo, DeleteInstanceRequest, EmptyMessage, HealthCheckRequest,
        HealthCheckResponse, StdioData,
    },
    service::ShoesService,
    settings::ShoesSettings,
};
use crate::client::ServiceOptions;

/// By this name go-plugin asks for a plugin's health.
const HEALTH_OF: &str = "plugin";
const SERVING: i32 = 1;

pub(super) struct PluginCalls {
    options: ServiceOptions,
    config: Option<PathBuf>,
    /// Calls that outlive the host's interest in them, because they have something to take back.
    pub work: TaskTracker,
    /// The host is done with this process.
    pub shutdown: CancellationToken,
}

impl PluginCalls {
    pub fn new(options: ServiceOptions, config: Option<PathBuf>) -> Self {
        Self { options, config, work: TaskTracker::new(), shutdown: CancellationToken::new() }
    }

    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let time = CallTime::of(request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok()));
        let path = request.uri().path().to_owned();
        Ok(match path.as_str() {
            "/whywaita.myshoes.Shoes/AddInstance" => {
                let add = service_fn(move |request: tonic::Request<AddInstanceRequest>| {
                    let calls = Arc::clone(&self);
                    async move { calls.add(request.into_inner(), time).await.map(tonic::Response::new) }
                });
                Grpc::new(ProstCodec::default()).unary(add, request).await
            }
            "/whywaita.myshoes.Shoes/DeleteInstance" => {
                let delete = service_fn(move |request: tonic::Request<DeleteInstanceRequest>| {
                    let calls = Arc::clone(&self);
                    async move {
                        let (_, service) = calls.set_up()?;
                        let deleted = delete::run(&request.into_inner(), time, &service).await?;
                        Ok::<_, Status>(tonic::Response::new(deleted))
                    }
                });
                Grpc::new(ProstCodec::default()).unary(delete, request).await
            }
            "/plugin.GRPCController/Shutdown" => {
                let shut_down = service_fn(move |_: tonic::Request<EmptyMessage>| {
                    self.shutdown.cancel();
                    async { Ok::<_, Status>(tonic::Response::new(EmptyMessage {})) }
                });
                Grpc::new(ProstCodec::default()).unary(shut_down, request).await
            }
            "/plugin.GRPCStdio/StreamStdio" => {
                // Open as long as the connection: there is nothing to send.
                let stream = service_fn(|_: tonic::Request<EmptyMessage>| async {
                    let nothing: Pending<Result<StdioData, Status>> = tokio_stream::pending();
                    Ok::<_, Status>(tonic::Response::new(nothing))
                });
                Grpc::new(ProstCodec::default()).server_streaming(stream, request).await
            }
            "/plugin.GRPCBroker/StartStream" => {
                let stream = service_fn(|_: tonic::Request<Streaming<ConnInfo>>| async {
                    let nothing: Pending<Result<ConnInfo, Status>> = tokio_stream::pending();
                    Ok::<_, Status>(tonic::Response::new(nothing))
                });
                Grpc::new(ProstCodec::default()).streaming(stream, request).await
            }
            "/grpc.health.v1.Health/Check" => {
                let check = service_fn(|request: tonic::Request<HealthCheckRequest>| async move {
                    match request.into_inner().service.as_str() {
                        "" | HEALTH_OF => Ok(tonic::Response::new(HealthCheckResponse { status: SERVING })),
                        _ => Err(Status::not_found("there is no such service in this plugin")),
                    }
                });
                Grpc::new(ProstCodec::default()).unary(check, request).await
            }
            _ => Status::unimplemented("this plugin has no such method").into_http(),
        })
    }

    /// In a task of its own: the future of a call whose host has ended is dropped, and the vm has to be taken back.
    async fn add(&self, request: AddInstanceRequest, time: CallTime) -> Result<AddInstanceResponse, Status> {
        let (settings, service) = self.set_up()?;
        let cancelled = CancellationToken::new();
        let of_call = cancelled.clone().drop_guard();
        let task = self.work.spawn(async move {
            AddCall { settings: &settings, service: &service, request: &request, time, cancelled }.run().await
        });
        let result = task.await.map_err(|_| Status::internal("the call was not completed"))?;
        of_call.disarm();
        Ok(result?)
    }

    /// For each call, so that an error in the file reaches the host as the call's error.
    fn set_up(&self) -> Result<(ShoesSettings, ShoesService), ShoesFailure> {
        let settings = ShoesSettings::read(self.config.clone())?;
        let service = ShoesService::new(settings.service_options(self.options.clone())?)?;
        if let Some(warning) = service.warning() {
            note("WARN", warning);
        }
        Ok((settings, service))
    }
}
