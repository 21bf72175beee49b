//! What is fuzzed: the modules themselves, as source, without the rest of Mayfly.

#[path = "../../src/registry/oci"]
pub mod oci {
    pub mod digest;
    pub mod document;
    pub mod form;
    pub mod index;
    pub mod lz4;
    pub mod manifest;
    pub mod manifest_error;
    pub use digest::Digest;
    pub use form::{ImageFormat, Role};
    pub use index::Index;
    pub use manifest::Image;

    /// What the decoder is compared with.
    #[path = "lz4/model.rs"]
    pub mod model;
}

#[path = "../../src/domain"]
pub mod domain {
    pub mod gateway;
    pub mod mac;
    pub mod machine_identity;
    pub mod tart_config;

    /// Of the original, that it exists: what a guest may reach is not fuzzed.
    #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
    pub struct NetworkPolicy {}

    /// Of the original, only what a VM's configuration says: the rest would bring half of Mayfly.
    pub mod template {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GuestOs {
            Linux,
            Macos,
        }

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Arch {
            X86_64,
            Aarch64,
        }

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DiskFormat {
            Raw,
            Asif,
        }

        impl DiskFormat {
            pub fn as_str(self) -> &'static str {
                match self {
                    DiskFormat::Raw => "raw",
                    DiskFormat::Asif => "asif",
                }
            }
        }
    }
}

pub mod platform {
    /// Of the original, the clock that the stack's timers use.
    pub mod clock {
        use std::time::Duration;

        use tokio::time::Instant;

        pub fn monotonic() -> Instant {
            Instant::now()
        }

        pub fn elapsed(since: Instant) -> Duration {
            since.elapsed()
        }
    }
}

#[path = "../../src/gateway"]
pub mod gateway {
    pub mod dns_message;
    pub mod link;
    pub mod neighbors;
    pub mod packet;
    #[expect(dead_code, reason = "the gateway's other modules use the rest")]
    mod stack;

    use std::{
        net::SocketAddr,
        pin::Pin,
        sync::Arc,
        task::{Context, Waker},
    };

    use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

    type Accepting = Pin<Box<dyn Future<Output = std::io::Result<stack::GuestStream>>>>;

    /// The stack, with connections whose ends are read and written whenever the target says so.
    pub struct Connections {
        stack: Arc<stack::Stack>,
        accepting: Vec<Accepting>,
        open: Vec<stack::GuestStream>,
    }

    /// Connections at once, as many as the gateway would refuse further ones for.
    const MOST: usize = 8;

    impl Connections {
        #[expect(clippy::new_without_default, reason = "it is no value")]
        pub fn new() -> Self {
            Self { stack: stack::Stack::new(), accepting: Vec::new(), open: Vec::new() }
        }

        pub fn take(&self, packet: Vec<u8>) {
            self.stack.take(packet);
        }

        /// As the gateway does with the first segment of a connection whose destination has accepted.
        pub fn accept(&mut self, to: SocketAddr, first: Vec<u8>) {
            if self.stack.connections() < MOST {
                let stack = self.stack.clone();
                self.accepting.push(Box::pin(async move { stack.accept(to, first).await }));
            }
        }

        /// Moves everything on that can move, and returns the packets for the guest.
        pub fn poll(&mut self) -> Vec<Vec<u8>> {
            let context = &mut Context::from_waker(Waker::noop());
            let open = &mut self.open;
            self.accepting.retain_mut(|accepting| match accepting.as_mut().poll(context) {
                std::task::Poll::Ready(accepted) => {
                    open.extend(accepted);
                    false
                }
                std::task::Poll::Pending => true,
            });
            self.stack.poll();
            std::iter::from_fn(|| self.stack.next_packet()).collect()
        }

        /// Reads and writes this many bytes of each connection.
        pub fn transfer(&mut self, bytes: usize) {
            let context = &mut Context::from_waker(Waker::noop());
            for stream in &mut self.open {
                let mut buffer = vec![0; bytes];
                let _ = Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut buffer));
                let _ = Pin::new(&mut *stream).poll_write(context, &buffer);
            }
        }

        /// Ends the sending side of the oldest connection.
        pub fn shut_down(&mut self) {
            let context = &mut Context::from_waker(Waker::noop());
            if let Some(stream) = self.open.first_mut() {
                let _ = Pin::new(stream).poll_shutdown(context);
            }
        }

        /// Drops the oldest connection.
        pub fn drop_one(&mut self) {
            if !self.open.is_empty() {
                self.open.remove(0);
            }
        }

        pub fn count(&self) -> usize {
            self.stack.connections()
        }
    }
}

#[path = "../../src/templates/layouts/payload.rs"]
pub mod payload;

/// Untrusted disks. The parsers read files, so each input is put into one in memory.
#[path = "../../src/templates"]
pub mod templates {
    use std::{fs::File, io::Write as _, sync::Arc};

    #[allow(dead_code, reason = "the service uses more of it")]
    mod qcow2;
    #[allow(dead_code, reason = "the service uses more of it")]
    mod read_budget;

    #[path = "layouts/linux"]
    mod linux {
        #[allow(dead_code, reason = "the service uses more of it")]
        pub mod file_system;
        pub mod partitions;
    }

    use self::{
        linux::{
            file_system::{GuestFileSystem, PartitionContent},
            partitions,
        },
        read_budget::ReadBudget,
    };

    fn file(parts: &[(u64, &[u8])], length: u64) -> File {
        use std::os::unix::fs::FileExt as _;
        let file = File::from(rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC).expect("memory"));
        file.set_len(length).expect("memory");
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).expect("memory");
        }
        file
    }

    /// The size of the disk in an image with these bytes, followed by a hole.
    pub fn check_qcow2(bytes: &[u8], hole: u64) -> Result<u64, String> {
        let file = file(&[(0, bytes)], bytes.len() as u64 + hole);
        let budget = ReadBudget::bounded_by(&file).expect("it is a file");
        qcow2::layer(&file, &budget)?;
        qcow2::check(&file, &budget)
    }

    /// What is found in a disk: the kernels of each file system, and the bytes that were copied.
    pub fn look_for_kernels(disk: &[u8]) -> Result<u64, String> {
        struct Counted(u64);
        impl std::io::Write for Counted {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 += bytes.len() as u64;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let file = file(&[(0, disk)], disk.len() as u64);
        let budget = Arc::new(ReadBudget::bounded_by(&file).expect("it is a file"));
        let mut copied = Counted(0);
        for partition in partitions::partitions(&file)? {
            assert!(partition.start + partition.bytes <= disk.len() as u64);
            let disk = file.try_clone().expect("a descriptor");
            let PartitionContent::System(system) = GuestFileSystem::load(disk, &partition, &budget) else { continue };
            for dir in ["/boot", "/"] {
                for version in system.kernels(dir).unwrap_or_default() {
                    assert!(!version.contains('/'));
                    let _ = system.copy(&format!("{dir}/vmlinuz-{version}"), &mut copied, 1 << 20);
                }
            }
            for name in ["/etc/os-release", "/sbin/init"] {
                if let Ok(real) = system.resolve(name) {
                    assert!(real.starts_with('/') && system.exists(&real));
                }
            }
        }
        copied.flush().expect("it counts");
        Ok(copied.0)
    }
}
