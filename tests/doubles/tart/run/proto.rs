//! The messages of the guest agent: gRPC service `Agent`, no package.

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecRequest {
    #[prost(oneof = "Ask", tags = "1, 2, 3")]
    pub ask: Option<Ask>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    #[prost(message, tag = "1")]
    Command(Command),
    #[prost(message, tag = "2")]
    StandardInput(Chunk),
    #[prost(message, tag = "3")]
    TerminalResize(TerminalSize),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    #[prost(bool, tag = "3")]
    pub interactive: bool,
    #[prost(bool, tag = "4")]
    pub tty: bool,
    #[prost(message, optional, tag = "5")]
    pub terminal_size: Option<TerminalSize>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TerminalSize {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub cols: u32,
}

/// Of standard input an empty one is the end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Chunk {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecResponse {
    #[prost(oneof = "Tell", tags = "1, 2, 3")]
    pub tell: Option<Tell>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Tell {
    #[prost(message, tag = "1")]
    Exit(Exit),
    #[prost(message, tag = "2")]
    StandardOutput(Chunk),
    #[prost(message, tag = "3")]
    StandardError(Chunk),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Exit {
    #[prost(int32, tag = "1")]
    pub code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ResolveIpRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ResolveIpResponse {
    #[prost(string, tag = "1")]
    pub ip: String,
}
