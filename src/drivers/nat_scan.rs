//! Looks for guests by connecting to the SSH port of every address of the NAT network: the last way to find a guest
//! that is missing in the host's tables and whose agent returns no address.
//!
//! An SSH server that answers does not show whose it is, and two guests may boot at once. So an address that answers is
//! a guest's only if the host's ARP table has it, and no other one, for the guest's Ethernet address. The connection
//! itself puts it into that table.

use std::{net::Ipv4Addr, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::platform::clock;

/// How long a guest is looked for, from the moment when it is due.
const LONGEST: Duration = Duration::from_secs(180);
/// Minimum interval between two passes.
const PAUSE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_millis(300);
const BANNER: Duration = Duration::from_millis(700);
const AT_ONCE: usize = 32;

/// Whether a guest that started `age` ago is looked for: after the other ways had time to find it, and for a limited time.
pub fn is_due(age: Duration, after: Duration) -> bool {
    age >= after && age < after + LONGEST
}

/// Passes over one network. Guests that are looked for at the same time share them.
#[derive(Default)]
pub struct NatScan(Mutex<Option<(Instant, Vec<Ipv4Addr>)>>);

impl NatScan {
    /// The addresses in the /24 network of `gateway`, except its own, at which an SSH server answers. Empty while
    /// another pass is under way.
    pub async fn answering(&self, gateway: Ipv4Addr, port: u16) -> Vec<Ipv4Addr> {
        let Ok(mut last) = self.0.try_lock() else { return Vec::new() };
        if let Some((at, answered)) = &*last
            && clock::elapsed(*at) < PAUSE
        {
            return answered.clone();
        }
        // Noted before the pass: one that is cut short must not be followed by another at once.
        *last = Some((clock::monotonic(), Vec::new()));
        let [a, b, c, own] = gateway.octets();
        let candidates = (1..=254).filter(|host| *host != own).map(|host| Ipv4Addr::new(a, b, c, host));
        let mut answered: Vec<Ipv4Addr> = stream::iter(candidates)
            .map(|ip| async move { is_ssh(ip, port).await.then_some(ip) })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        answered.sort_unstable();
        *last = Some((clock::monotonic(), answered.clone()));
        answered
    }
}

async fn is_ssh(ip: Ipv4Addr, port: u16) -> bool {
    let Ok(Ok(mut stream)) = timeout(CONNECT, TcpStream::connect((ip, port))).await else { return false };
    let mut first = [0; 4];
    matches!(timeout(BANNER, stream.read_exact(&mut first)).await, Ok(Ok(_))) && first == *b"SSH-"
}

// Only Linux has a whole network of loopback addresses.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn only_ssh_servers_count_and_a_pass_is_shared() {
        let gateway = Ipv4Addr::new(127, 64, 7, 1);
        let at = |host| Ipv4Addr::new(127, 64, 7, host);
        let first = TcpListener::bind((at(3), 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut servers = vec![(first, &b"SSH-2.0-a\r\n"[..])];
        for (host, says) in
            [(1, &b"SSH-2.0-gateway\r\n"[..]), (254, b"SSH-2.0-b\r\n"), (9, b"HTTP/1.1 400\r\n"), (10, b"")]
        {
            servers.push((TcpListener::bind((at(host), port)).await.unwrap(), says));
        }
        let (seen, mut connections) = tokio::sync::mpsc::unbounded_channel();
        for (listener, says) in servers {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Ok((mut stream, _)) = listener.accept().await {
                    seen.send(stream.local_addr().unwrap().ip()).unwrap();
                    let _ = stream.write_all(says).await;
                    held.push(stream);
                }
            });
        }
        let scan = NatScan::default();
        let (one, other) = tokio::join!(scan.answering(gateway, port), scan.answering(gateway, port));
        assert_eq!((one, other), (vec![at(3), at(254)], vec![]), "the second did not wait");
        assert_eq!(scan.answering(gateway, port).await, [at(3), at(254)], "from the first pass");
        let mut asked = Vec::new();
        while let Ok(ip) = connections.try_recv() {
            asked.push(ip);
        }
        asked.sort_unstable();
        assert_eq!(asked, [at(3), at(9), at(10), at(254)], "once each, and not the gateway");
    }
}
