//! DNS messages (RFC 1035): which of the guest's are passed on, and how an answer is shortened.

use crate::domain::gateway::MTU;

/// Largest payload of a datagram over IPv4.
pub const LARGEST_ANSWER: usize = MTU - 28;
const HEADER: usize = 12;
/// Transfers of zones: IXFR (RFC 1995) and AXFR (RFC 5936).
const TRANSFERS: [u16; 2] = [251, 252];

/// One question, for something else than a transfer of a zone.
pub fn is_question(message: &[u8]) -> bool {
    const RESPONSE_AND_OPCODE: u8 = 0xf8;
    message.len() >= HEADER
        && message[2] & RESPONSE_AND_OPCODE == 0
        && message[4..6] == [0, 1]
        && question_end(message, HEADER).is_some_and(|end| {
            let kind = u16::from_be_bytes([message[end - 4], message[end - 3]]);
            !TRANSFERS.contains(&kind)
        })
}

/// Where the question that begins at `at` ends: after its name, type and class.
fn question_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        at += 1 + usize::from(length);
        match length {
            0 => break,
            // A pointer, which no question has.
            64.. => return None,
            _ => {}
        }
    }
    (at + 4 <= message.len()).then_some(at + 4)
}

/// The header and the question of a DNS message that is too large for a datagram, marked as truncated: the guest then
/// asks over TCP (RFC 1035, 4.1.1).
pub fn truncated(answer: &[u8]) -> Option<Vec<u8>> {
    let mut short = answer.get(..HEADER)?.to_vec();
    let mut end = HEADER;
    for _ in 0..u16::from_be_bytes([short[4], short[5]]) {
        end = question_end(answer, end)?;
    }
    short[2] |= 0x02;
    // No answers, authorities or additional records.
    short[6..HEADER].fill(0);
    short.extend_from_slice(answer.get(HEADER..end)?);
    (short.len() <= LARGEST_ANSWER).then_some(short)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn question(kind: u8) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend_from_slice(b"\x07example\x03org\x00\x00");
        query.extend_from_slice(&[kind, 0, 1]);
        query
    }

    #[test]
    fn only_questions_for_records_are_passed_on() {
        assert!(is_question(&question(1)));
        for transfer in [251, 252] {
            assert!(!is_question(&question(transfer)));
        }
        for (at, byte) in [(2, 0x81), (2, 0x28), (2, 0x20), (5, 0), (5, 2), (12, 0xc0)] {
            let mut other = question(1);
            other[at] = byte;
            assert!(!is_question(&other), "byte {at} is {byte:#x}");
        }
        for length in 0..question(1).len() {
            assert!(!is_question(&question(1)[..length]), "{length} bytes");
        }
    }

    #[test]
    fn a_large_answer_is_marked_as_truncated() {
        let mut answer = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 90, 0, 2, 0, 1];
        answer.extend_from_slice(b"\x07example\x03org\x00\x00\x10\x00\x01");
        let question = answer.len();
        answer.resize(3000, 9);
        let short = truncated(&answer).unwrap();
        assert_eq!(short.len(), question);
        assert_eq!(short[..12], [0x12, 0x34, 0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(short[12..], answer[12..question]);
        // Cut in the middle of the question, a pointer, no header.
        assert_eq!(truncated(&answer[..question - 6]), None);
        answer[12] = 0xc0;
        assert_eq!(truncated(&answer), None);
        assert_eq!(truncated(b"short"), None);
    }
}
