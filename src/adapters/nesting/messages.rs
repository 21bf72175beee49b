//! The messages of `nesting`, as protocol buffers. Written by hand, so that building Mayfly needs no protobuf compiler.

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InitRequest {
    /// JSON of a hypervisor's configuration, which has no meaning here.
    #[prost(bytes = "vec", tag = "1")]
    pub config: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CreateRequest {
    /// The image.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int32, optional, tag = "2")]
    pub slot: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CreateResponse {
    #[prost(message, optional, tag = "1")]
    pub vm: Option<VirtualMachine>,
    #[prost(string, optional, tag = "2")]
    pub stomped_vm_id: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub vms: Vec<VirtualMachine>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VirtualMachine {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// An address without a port.
    #[prost(string, tag = "3")]
    pub addr: String,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Compares the encoded bytes, so that a wrong tag is found.
    #[test]
    fn messages_are_encoded_as_the_client_reads_them() {
        let vm = VirtualMachine { id: "i".into(), name: "n".into(), addr: "a".into() };
        assert_eq!(vm.encode_to_vec(), b"\x0a\x01i\x12\x01n\x1a\x01a");
        let created = CreateResponse { vm: Some(vm.clone()), stomped_vm_id: Some("s".into()) };
        assert_eq!(created.encode_to_vec(), b"\x0a\x09\x0a\x01i\x12\x01n\x1a\x01a\x12\x01s");
        assert_eq!(ListResponse { vms: vec![vm] }.encode_to_vec(), b"\x0a\x09\x0a\x01i\x12\x01n\x1a\x01a");
        // Slot zero is a slot.
        let with_slot = CreateRequest::decode(&b"\x0a\x03mac\x10\x00"[..]).unwrap();
        assert_eq!(with_slot, CreateRequest { name: "mac".into(), slot: Some(0) });
        assert_eq!(CreateRequest::decode(&b"\x0a\x03mac"[..]).unwrap().slot, None);
    }
}
