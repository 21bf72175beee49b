//! Detects that an SSH server answers in a guest.
//!
//! The proof is the server's first line, not a connection: a forward may accept connections while the guest is still in
//! its boot loader and then stay silent, or close them at once when the guest is up without a server.
//!
//! A probe with a long time limit notices late that the guest was not up when it connected. A probe with a short one
//! misses a slow guest, and loads it with useless connections. So probes overlap: each may wait long, and new ones
//! start at short intervals, up to a number that the strictest server accepts (dropbear: five connections without a
//! login).

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, sleep_until, timeout},
};

use super::ssh::{self, SshError};
use crate::{domain::endpoint::Endpoint, platform::clock};

const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_millis(1500);
const GROWTH: f64 = 1.3;
const PROBE: Duration = Duration::from_millis(4500);
const AT_ONCE: usize = 3;
/// A server may send other lines first (RFC 4253, 4.2), but not this many.
const MOST_BYTES: usize = 8192;

/// Waits until an SSH server sends its identification, and returns that line (`SSH-2.0-…`). Dropping the future ends
/// all probes.
pub async fn banner(endpoint: &Endpoint, deadline: Instant) -> Result<String, SshError> {
    first(AT_ONCE, deadline, || probe(endpoint)).await.map_err(|last| {
        let last = last.unwrap_or("no probe came to an end");
        SshError::Retry(format!("no SSH server at {endpoint} before the deadline: {last}"))
    })
}

/// The first probe that succeeds, of `at_once` overlapping ones. After the deadline: the error of the last probe that
/// ended.
pub(super) async fn first<T, E, F>(at_once: usize, deadline: Instant, probe: impl Fn() -> F) -> Result<T, Option<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut probes = FuturesUnordered::new();
    let mut pause = FIRST_PAUSE;
    let mut next = clock::monotonic();
    let mut last = None;
    loop {
        tokio::select! {
            biased;
            Some(seen) = probes.next(), if !probes.is_empty() => match seen {
                Ok(seen) => return Ok(seen),
                Err(why) => last = Some(why),
            },
            () = sleep_until(deadline) => return Err(last),
            () = sleep_until(next), if probes.len() < at_once => {
                probes.push(probe());
                next = clock::monotonic() + pause;
                pause = pause.mul_f64(GROWTH).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn probe(endpoint: &Endpoint) -> Result<String, &'static str> {
    timeout(PROBE, async {
        let mut stream = ssh::connect(endpoint).await.map_err(|_| "the connection was refused")?;
        let mut bytes = Vec::with_capacity(256);
        loop {
            if let Some(line) = identification(&bytes) {
                return Ok(line);
            }
            if bytes.len() > MOST_BYTES {
                return Err("something else than an SSH server answers");
            }
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) if bytes.is_empty() => return Err("the connection was closed without a word"),
                Ok(0) | Err(_) => return Err("something else than an SSH server answers"),
                Ok(_) => {}
            }
        }
    })
    .await
    .unwrap_or(Err("nothing answers"))
}

/// The server's identification line, once it is complete.
fn identification(bytes: &[u8]) -> Option<String> {
    let mut lines = bytes.split_inclusive(|&b| b == b'\n').filter(|l| l.ends_with(b"\n"));
    let line = lines.find(|l| l.starts_with(b"SSH-"))?;
    // It goes into logs and events, so only printable characters.
    Some(line.iter().filter(|b| (b' '..=b'~').contains(*b)).take(255).map(|&b| char::from(b)).collect())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    fn soon(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[test]
    fn only_whole_identification_lines_count() {
        assert_eq!(identification(b"SSH-2.0-x"), None);
        assert_eq!(identification(b"hello\r\nSSH-2.0-x y\r\n").as_deref(), Some("SSH-2.0-x y"));
        assert_eq!(identification(b"xSSH-2.0\n"), None);
        assert_eq!(identification(b""), None);
    }

    #[tokio::test]
    async fn a_server_that_answers_is_seen_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-te").await.unwrap();
            stream.write_all(b"st\r\n").await.unwrap();
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        let at = Endpoint::address("127.0.0.1", port);
        tokio::select! {
            line = banner(&at, soon(5000)) => assert_eq!(line.unwrap(), "SSH-2.0-test"),
            () = server => unreachable!(),
        }
        assert!(begun.elapsed() < Duration::from_secs(2));
    }

    /// The behaviours of QEMU's port forward, then a slow guest: refused, closed, silent, late.
    #[tokio::test]
    async fn connections_prove_nothing_and_a_late_line_counts() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let server = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let listener = socket.listen(16).unwrap();
            let mut held = Vec::new();
            for n in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                match n {
                    0 => drop(stream),
                    1 => held.push(tokio::spawn(async move {
                        let _ = stream.read_u8().await;
                    })),
                    // Longer than the time limit of a short probe.
                    _ => held.push(tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(2600)).await;
                        let _ = stream.write_all(b"SSH-2.0-late\r\n").await;
                        let _ = stream.read_u8().await;
                    })),
                }
            }
        };
        let begun = Instant::now();
        let at = Endpoint::address("127.0.0.1", address.port());
        tokio::select! {
            line = banner(&at, soon(15_000)) => assert_eq!(line.unwrap(), "SSH-2.0-late"),
            () = server => unreachable!(),
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn the_deadline_holds_and_says_what_was_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let begun = Instant::now();
        let error = banner(&Endpoint::address("127.0.0.1", port), soon(500)).await.unwrap_err();
        assert!(matches!(error, SshError::Retry(_)));
        assert!(begun.elapsed() < Duration::from_secs(2));

        drop(listener);
        let error = banner(&Endpoint::address("127.0.0.1", port), soon(500)).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn another_kind_of_server_is_no_ssh_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            }
        };
        let at = Endpoint::address("127.0.0.1", port);
        tokio::select! {
            r = banner(&at, soon(700)) => {
                let error = r.unwrap_err().to_string();
                assert!(error.contains("something else"), "{error}");
            }
            () = server => unreachable!(),
        }
    }
}
