//! The part of the agent's protocol that Mayfly uses, as protocol buffers: service `Agent`, method `Exec`.
//!
//! Written by hand, so that building Mayfly needs no protobuf compiler. Unknown fields are skipped, as the encoding
//! provides for.

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExecRequest {
    #[prost(oneof = "AgentRequest", tags = "1, 2, 3")]
    pub kind: Option<AgentRequest>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum AgentRequest {
    /// The first message of a stream, and only that.
    #[prost(message, tag = "1")]
    Command(AgentCommand),
    /// No bytes: the end of the input.
    #[prost(message, tag = "2")]
    StandardInput(Bytes),
    #[prost(message, tag = "3")]
    TerminalResize(TerminalSize),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AgentCommand {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// Whether the command reads standard input.
    #[prost(bool, tag = "3")]
    pub interactive: bool,
    /// Whether it has a terminal. Then both outputs are standard output.
    #[prost(bool, tag = "4")]
    pub tty: bool,
    #[prost(message, optional, tag = "5")]
    pub terminal_size: Option<TerminalSize>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct TerminalSize {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub columns: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExecResponse {
    #[prost(oneof = "Response", tags = "1, 2, 3")]
    pub kind: Option<Response>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Response {
    #[prost(message, tag = "1")]
    Exit(Exit),
    #[prost(message, tag = "2")]
    StandardOutput(Bytes),
    #[prost(message, tag = "3")]
    StandardError(Bytes),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Exit {
    /// Negative if a signal ended the command.
    #[prost(int32, tag = "1")]
    pub code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Bytes {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Compares the encoded bytes, so that a wrong tag is found here and not only on a Mac.
    #[test]
    fn messages_are_encoded_as_the_agent_reads_them() {
        let command = AgentCommand {
            name: "/bin/sh".into(),
            args: vec!["-s".into()],
            interactive: true,
            tty: false,
            terminal_size: None,
        };
        let request = |command| ExecRequest { kind: Some(AgentRequest::Command(command)) };
        assert_eq!(request(command.clone()).encode_to_vec(), b"\x0a\x0f\x0a\x07/bin/sh\x12\x02-s\x18\x01");
        let size = TerminalSize { rows: 24, columns: 80 };
        let command = AgentCommand { args: vec![], tty: true, terminal_size: Some(size), ..command };
        assert_eq!(
            request(command).encode_to_vec(),
            b"\x0a\x13\x0a\x07/bin/sh\x18\x01\x20\x01\x2a\x04\x08\x18\x10\x50"
        );
        let resize = ExecRequest { kind: Some(AgentRequest::TerminalResize(size)) };
        assert_eq!(resize.encode_to_vec(), b"\x1a\x04\x08\x18\x10\x50");
        let input = |data: &[u8]| ExecRequest { kind: Some(AgentRequest::StandardInput(Bytes { data: data.into() })) };
        assert_eq!(input(b"hi").encode_to_vec(), b"\x12\x04\x0a\x02hi");
        // The end of the input is a message without content, not an absent message.
        assert_eq!(input(b"").encode_to_vec(), b"\x12\x00");
    }

    #[test]
    fn answers_are_read() {
        let read = |bytes: &[u8]| ExecResponse::decode(bytes).unwrap().kind;
        assert_eq!(read(b"\x0a\x02\x08\x07"), Some(Response::Exit(Exit { code: 7 })));
        // Zero is the default and is not sent.
        assert_eq!(read(b"\x0a\x00"), Some(Response::Exit(Exit { code: 0 })));
        let killed = b"\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(read(killed), Some(Response::Exit(Exit { code: -1 })));
        assert_eq!(read(b"\x12\x04\x0a\x02hi"), Some(Response::StandardOutput(Bytes { data: b"hi".into() })));
        assert_eq!(read(b"\x1a\x04\x0a\x02no"), Some(Response::StandardError(Bytes { data: b"no".into() })));
        // A kind of message that is not known yet.
        assert_eq!(read(b"\x22\x02\x08\x01"), None);
    }
}
