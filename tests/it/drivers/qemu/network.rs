//! The guest's network: what a real guest reaches in each mode, and what its gateway costs.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixListener,
};

use super::*;

impl QemuRig {
    async fn running(&self, network: GuestNetwork) -> InstanceSpec {
        let mut spec = self.spec(VmId::mint());
        spec.network = network;
        self.driver.create(&spec).await.unwrap();
        self.driver.start(&spec).await.unwrap();
        self.up(&spec.name).await;
        spec
    }

    fn instance(&self, name: &InstanceName) -> PathBuf {
        self.dir.path().join("instances").join(name.as_str())
    }

    fn gateway(&self, name: &InstanceName) -> rustix::process::Pid {
        let lock = std::fs::File::open(self.instance(name).join("gateway.lock")).unwrap();
        let held =
            rustix::process::fcntl_getlk(&lock, &rustix::process::Flock::from(rustix::process::FlockType::ReadLock));
        held.unwrap().and_then(|lock| lock.pid).expect("a gateway holds its lock")
    }
}

/// Answers every connection with the same line, until the test ends.
fn greeter(text: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(text.as_bytes());
        }
    });
    port
}

/// A guest API that answers each request with the number of connections that it has at that moment.
fn guest_api(socket: &Path) -> Arc<std::sync::atomic::AtomicUsize> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let listener = UnixListener::bind(socket).unwrap();
    let most = Arc::new(AtomicUsize::new(0));
    let (now, seen) = (Arc::new(AtomicUsize::new(0)), most.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, now, seen) = (stream.unwrap(), now.clone(), seen.clone());
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length == 1) {
                    request.push(byte[0]);
                }
                if request.ends_with(b"\r\n\r\n") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
                }
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_guest_reaches_the_guest_api_and_nothing_else() {
    let rig = QemuRig::new();
    let network = rig.network();
    guest_api(&network.guest_api);
    let port = greeter("forbidden");
    let spec = rig.running(network).await;
    assert_eq!(rig.ssh(&spec.name, "curl -s -m 10 http://10.0.2.100/vms").await, "hello");
    let tries = format!(
        "curl -s -m 5 telnet://10.0.2.2:{port} </dev/null; echo $?; curl -s -m 5 http://10.0.2.100:81/; echo $?; \
         curl -s -m 5 http://127.1.1.1:{port}/; echo $?; curl -s -m 5 http://1.1.1.1/; echo $?"
    );
    // Refused at once (7), not after a time limit (28).
    assert_eq!(rig.ssh(&spec.name, &tries).await, "7\n7\n7\n7\n");
    let log = std::fs::read_to_string(rig.instance(&spec.name).join("gateway.log")).unwrap();
    assert!(log.contains("1.1.1.1:80") && log.contains("the vm is isolated"), "{log}");
    let gateway = rig.gateway(&spec.name);
    let began = Instant::now();
    rig.driver.destroy(&spec.name).await.unwrap();
    eprintln!("qemu: a guest that runs Linux was destroyed after {:?}", began.elapsed());
    assert!(rustix::process::test_kill_process(gateway).is_err(), "the gateway ends with its guest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_in_the_mode_host_reaches_the_hosts_loopback() {
    let rig = QemuRig::new();
    let mut network = rig.network();
    network.policy.mode = NetworkMode::Host;
    let port = greeter("from the host");
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = echo.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut datagram = [0; 2000];
        while let Ok((length, from)) = echo.recv_from(&mut datagram) {
            let _ = echo.send_to(&datagram[..length], from);
        }
    });
    let spec = rig.running(network).await;
    let said = rig.ssh(&spec.name, &format!("curl -s -m 10 telnet://10.0.2.2:{port} </dev/null")).await;
    assert_eq!(said, "from the host");
    let ask =
        format!("exec 3<>/dev/udp/10.0.2.2/{udp}; echo datagram >&3; timeout 10 dd bs=2000 count=1 <&3 2>/dev/null");
    assert_eq!(rig.ssh(&spec.name, &format!("bash -c '{ask}'")).await, "datagram\n");
    assert_eq!(rig.ssh(&spec.name, "ping -c 1 -W 5 10.0.2.2 >/dev/null; echo $?").await, "0\n");
    rig.driver.destroy(&spec.name).await.unwrap();
}

/// Data in both directions at once, more than all buffers on the way hold, without a changed byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_arrive_whole() {
    const SIZE: usize = 8 << 20;
    let rig = QemuRig::new();
    let mut network = rig.network();
    network.policy.mode = NetworkMode::Host;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Sends what it receives back, as long as the other side sends.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                let copied = std::io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                copied
            });
        }
    });
    let spec = rig.running(network).await;
    let command = format!(
        "head -c {SIZE} /dev/urandom > /tmp/sent; \
         bash -c 'exec 3<>/dev/tcp/10.0.2.2/{port}; cat /tmp/sent >&3 & head -c {SIZE} <&3 > /tmp/received'; \
         cmp /tmp/sent /tmp/received && echo same"
    );
    let began = Instant::now();
    assert_eq!(rig.ssh(&spec.name, &command).await, "same\n");
    eprintln!("qemu: {} MiB went to the host and back in {:?}", SIZE >> 20, began.elapsed());
    rig.driver.destroy(&spec.name).await.unwrap();
}

/// Resident memory in KiB.
#[cfg(target_os = "linux")]
fn memory(pid: rustix::process::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[cfg(target_os = "linux")]
fn processes() -> usize {
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    numbers.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok())).count()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_cost_no_process_and_little_memory() {
    let rig = QemuRig::new();
    let network = rig.network();
    let most = guest_api(&network.guest_api);
    let spec = rig.running(network).await;
    let gateway = rig.gateway(&spec.name);
    let (memory_before, processes_before) = (memory(gateway), processes());
    // Connections that ask nothing, as many as the shell can hold open.
    let open = "bash -c 'ulimit -n 700; n=0; for i in $(seq 500); do exec {fd}<>/dev/tcp/10.0.2.100/80 && n=$((n+1)); done \
                2>/dev/null; echo opened $n; sleep 1000' >/tmp/opened 2>/dev/null </dev/null &";
    rig.ssh(&spec.name, open).await;
    let began = Instant::now();
    let opened = loop {
        let opened = rig.ssh(&spec.name, "cat /tmp/opened").await;
        if opened.starts_with("opened") {
            break opened;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "the guest did not try: {opened:?}");
    };
    let (memory_after, processes_after) = (memory(gateway), processes());
    let most = most.load(std::sync::atomic::Ordering::SeqCst);
    eprintln!(
        "qemu: after 500 connections ({}): {most} reached the guest API, gateway {memory_before} KiB before and \
         {memory_after} KiB then, {processes_before} and {processes_after} processes",
        opened.trim()
    );
    assert!(most <= 32, "{most} connections reached the guest API");
    assert!(memory_after < memory_before + 16 * 1024);
    // Other tests start and end processes meanwhile.
    assert!(processes_after < processes_before + 100);
    rig.driver.destroy(&spec.name).await.unwrap();
}

/// A gateway that was killed is started again, and the guest goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_ended_is_replaced() {
    use rustix::process::{Signal, kill_process};
    let rig = QemuRig::new();
    let network = rig.network();
    guest_api(&network.guest_api);
    let spec = rig.running(network).await;
    let (driver, name) = (rig.driver.clone(), spec.name.clone());
    // As the service waits for the end of a running guest.
    let waiting = tokio::spawn(async move { driver.ended(&name).await });
    let first = rig.gateway(&spec.name);
    kill_process(first, Signal::KILL).unwrap();
    let began = Instant::now();
    let socket = rig.ssh_socket(&spec.name).await;
    while !greets(&socket) {
        assert!(began.elapsed() < Duration::from_secs(30), "the guest stays without a network");
    }
    assert_ne!(rig.gateway(&spec.name), first);
    assert_eq!(rig.ssh(&spec.name, "curl -s -m 10 http://10.0.2.100/vms").await, "hello");
    assert!(!waiting.is_finished());
    rig.driver.destroy(&spec.name).await.unwrap();
    waiting.await.unwrap().unwrap();
}

/// A filter of system calls is `Seccomp: 2` in the state of the process.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_confines_itself() {
    let rig = QemuRig::new();
    let spec = rig.deaf(VmId::mint());
    rig.driver.create(&spec).await.unwrap();
    rig.driver.start(&spec).await.unwrap();
    let pid = std::fs::read_to_string(rig.instance(&spec.name).join("qemu.pid")).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
    assert!(status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])), "{status}");
    // A dump would hold the guest's memory. No limit of this test's process is that low.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.trim())).unwrap();
    for limit in ["Max core file size 0 0 bytes", "Max open files 4096 4096 files"] {
        let found = |line: &str| line.split_whitespace().eq(limit.split_whitespace());
        assert!(limits.lines().any(found), "{limit}: {limits}");
    }
    assert_eq!(rig.driver.probe(false).await.unwrap().unconfined, None);
    rig.driver.destroy(&spec.name).await.unwrap();
}
