//! The messages, as the other side of the protocol knows them.

#[derive(Clone, PartialEq, prost::Message)]
pub struct AddInstanceRequest {
    #[prost(string, tag = "1")]
    pub runner_name: String,
    #[prost(string, tag = "2")]
    pub setup_script: String,
    #[prost(int32, tag = "3")]
    pub resource_type: i32,
    #[prost(string, repeated, tag = "4")]
    pub labels: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AddInstanceResponse {
    #[prost(string, tag = "1")]
    pub cloud_id: String,
    #[prost(string, tag = "2")]
    pub shoes_type: String,
    #[prost(string, tag = "3")]
    pub ip_address: String,
    #[prost(int32, tag = "4")]
    pub resource_type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteInstanceRequest {
    #[prost(string, tag = "1")]
    pub cloud_id: String,
    #[prost(string, repeated, tag = "2")]
    pub labels: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}
