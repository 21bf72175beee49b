//! The messages of `myshoes.proto` and of go-plugin's own services, as protocol buffers.
//!
//! Written by hand, so that building Mayfly needs no protobuf compiler. Unknown fields are skipped, as the encoding
//! provides for.

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AddInstanceRequest {
    /// The same in every repetition for one job.
    #[prost(string, tag = "1")]
    pub runner_name: String,
    /// A secret: it holds the registration token of the runner.
    #[prost(string, tag = "2")]
    pub setup_script: String,
    #[prost(enumeration = "ResourceType", tag = "3")]
    pub resource_type: i32,
    #[prost(string, repeated, tag = "4")]
    pub labels: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AddInstanceResponse {
    #[prost(string, tag = "1")]
    pub cloud_id: String,
    #[prost(string, tag = "2")]
    pub shoes_type: String,
    #[prost(string, tag = "3")]
    pub ip_address: String,
    #[prost(enumeration = "ResourceType", tag = "4")]
    pub resource_type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteInstanceRequest {
    #[prost(string, tag = "1")]
    pub cloud_id: String,
    #[prost(string, repeated, tag = "2")]
    pub labels: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct DeleteInstanceResponse {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ResourceType {
    Unknown = 0,
    Nano = 1,
    Micro = 2,
    Small = 3,
    Medium = 4,
    Large = 5,
    XLarge = 6,
    XLarge2 = 7,
    XLarge3 = 8,
    XLarge4 = 9,
}

/// `plugin.Empty` and `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct EmptyMessage {}

/// Output for the host's own streams. This plugin sends none.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StdioData {
    #[prost(int32, tag = "1")]
    pub channel: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// Of the broker, which connects further services. This plugin has none.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConnInfo {
    #[prost(uint32, tag = "1")]
    pub service_id: u32,
    #[prost(string, tag = "2")]
    pub network: String,
    #[prost(string, tag = "3")]
    pub address: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}
