//! Any bytes, as what the hypervisor sends to a guest's gateway: nothing panics, what is passed on is well-formed, and each answer
//! fits the guest's network and goes back to the guest.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::{
    domain::gateway::MTU,
    gateway::{
        dns_message::{LARGEST_ANSWER, is_question, truncated},
        link,
        neighbors::{self, Discovery},
        packet::{self, Transport},
    },
};

fn answers(request: &[u8], answer: &[u8]) {
    assert!(answer.len() <= MTU);
    let (request, answer) = (packet::parse(request).unwrap(), packet::parse(answer).expect("an answer is well-formed"));
    assert_eq!(answer.destination.ip(), request.source.ip());
    assert_eq!(answer.source.ip(), request.destination.ip());
}

fn ip(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MTU)];
    let _ = packet::is_reset(bytes);
    if let Some(Discovery::Answer(answer)) = neighbors::discovery(bytes) {
        assert!(packet::parse(&answer).is_some());
    }
    let Some(parsed) = packet::parse(bytes) else { return };
    if let Some(answer) = packet::refusal(bytes) {
        answers(bytes, &answer);
    }
    if parsed.transport == Transport::Echo
        && let Some(answer) = packet::echo_reply(bytes)
    {
        answers(bytes, &answer);
    }
    if let Transport::Udp { payload } = parsed.transport {
        dns(payload);
        dhcp(payload);
        let answer = packet::udp(parsed.destination, parsed.source, payload).expect("as large as the question");
        answers(bytes, &answer);
    }
}

fn dns(message: &[u8]) {
    if is_question(message) {
        assert_eq!(message[2] & 0x80, 0);
        let mut at = 12;
        while message[at] != 0 {
            assert!(message[at] < 64, "a question has no pointer");
            at += 1 + usize::from(message[at]);
        }
        assert!(!matches!(message[at + 1..at + 5], [0, 251 | 252, _, _]), "transfers of zones are not passed on");
    }
    if let Some(short) = truncated(message) {
        assert!(short.len() <= LARGEST_ANSWER && short.len() <= message.len());
        assert!(short[2] & 2 != 0 && short[6..12] == [0; 6]);
        assert_eq!(truncated(&short).as_ref(), Some(&short));
    }
}

fn dhcp(message: &[u8]) {
    if let Some(reply) = neighbors::dhcp_reply(message) {
        let parsed = packet::parse(&reply).expect("an answer is well-formed");
        assert_eq!(parsed.destination.port(), 68);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut read = BytesMut::from(input);
    while let Ok(Some(frame)) = link::next_frame(&mut read) {
        assert!(frame.len() <= input.len());
        if let Some(payload) = frame.get(14..) {
            ip(payload);
            if let Some(reply) = neighbors::arp_reply(payload) {
                assert_eq!(reply.len(), 28);
            }
        }
    }
    // The same without the layers around it, which few inputs get right.
    ip(input);
    dns(input);
    dhcp(input);
    let _ = neighbors::arp_reply(input);
    // A checksum keeps most inputs from everything behind it.
    if input.len() <= MTU - 28
        && let Some(datagram) = packet::udp(([10, 0, 2, 15], 1000).into(), ([1, 1, 1, 1], 53).into(), input)
    {
        ip(&datagram);
    }
});
