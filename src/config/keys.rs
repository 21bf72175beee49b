//! THE list of settings. To add one, add it here: reading, checking for unknown keys and the documentation follow.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use super::{
    host::HostResources,
    source::{GivenSettings, Setting},
};
use crate::domain::{self, Scope};

/// A table of `mayfly.toml`.
#[derive(Debug)]
pub struct Section {
    pub path: &'static str,
    pub about: &'static str,
    pub keys: &'static [Key],
}

/// Tables of `mayfly.toml` that have the same keys and are named by whoever writes them: `[registries."host"]`.
#[derive(Debug)]
pub struct Named {
    /// What stands before the name.
    pub root: &'static str,
    /// What the name is, in words.
    pub name: &'static str,
    /// A name as it could be.
    pub example: &'static str,
    pub section: Section,
    /// A table inside of each of them.
    pub inner: Option<NestedTable>,
    /// The section that they are documented after.
    pub after: &'static str,
}

/// A table inside of a named one: `[pools."macos".budgets]`.
#[derive(Debug)]
pub struct NestedTable {
    pub name: &'static str,
    pub section: Section,
}

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// As in `server.listen`.
    pub path: &'static str,
    /// What it takes, in words.
    pub kind: &'static str,
    /// Its default as written in the documentation.
    pub default: fn() -> String,
    pub meaning: &'static str,
}

impl Key {
    /// The environment variable that sets it.
    pub fn env(&self) -> String {
        super::source::env_name(self.path)
    }
}

macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident = $path:literal {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr $(, shown as $shown:literal)?; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $name {
            pub(super) const SECTION: Section = Section {
                path: $path,
                about: concat!($($about),+),
                keys: &[ $( Key {
                    path: concat!($path, ".", stringify!($field)),
                    kind: <$type as Setting>::KIND,
                    default: || match concat!("" $(, $shown)?) {
                        "" => <$type as Setting>::show(&$default),
                        shown => shown.to_owned(),
                    },
                    meaning: concat!($($doc),+),
                }, )+ ],
            };

            /// From the table with this path.
            pub(super) fn read(path: &str, found: &mut GivenSettings) -> Self {
                Self { $( $field: found.take(&format!("{path}.{}", stringify!($field))).unwrap_or_else(|| $default), )+ }
            }
        }
    };
}

section! {
    /// The admin API.
    Server = "server" {
        /// Address and port of the admin API. An address that other machines can reach needs TLS, here or in a proxy.
        /// Port 0: any free port.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8470));
        /// Certificate chain (PEM) for TLS. Set both `tls_cert` and `tls_key`, or neither.
        tls_cert: Option<PathBuf> = None;
        /// Private key (PEM) of that certificate.
        tls_key: Option<PathBuf> = None;
        /// A proxy in front of Mayfly terminates TLS. Allows `listen` to be an address that other machines can reach,
        /// without TLS here.
        behind_proxy: bool = false;
        /// Largest request body, in bytes (1024 to 67108864).
        max_body_bytes: u64 = 1024 * 1024;
        /// Longest time for one request, in seconds (1 to 3600). Long polls and streams have their own limits.
        request_timeout_seconds: u32 = 30;
        /// Requests handled at once (1 to 65536); more are refused with 503.
        max_concurrent_requests: u32 = 1024;
    }
}

section! {
    /// How guests reach the guest API. QEMU guests need no setting here: each has its own forwarded address.
    Guest = "guest" {
        /// Address and port of the guest API, for guests without a forwarded address. With the `tart` driver the
        /// default is all addresses, because the address that guests reach exists only while a guest runs; each request
        /// needs the token of its vm.
        listen: Option<SocketAddr> = None, shown as "none; `0.0.0.0:8471` with the `tart` driver";
        /// The guest API's URL as guests see it, if they cannot use the address in `listen`.
        advertise_url: Option<String> = None;
    }
}

section! {
    /// How many guests this host runs at once. All limits apply together.
    Slots = "slots" {
        /// Linux guests at once.
        linux: u32 = HostResources::this().cpus, shown as "the host's cores";
        /// macOS guests at once: at most 2, because Apple's licence and kernel allow no more on one host.
        macos: u32 = domain::capacity::MACOS_GUESTS_PER_HOST;
        /// Cores of all guests together.
        cpus: u32 = HostResources::this().guest_cpus(), shown as "the host's cores; twice that on Linux";
        /// Memory of all guests together, in MiB.
        memory_mib: u32 = HostResources::this().guest_memory_mib(), shown as "the host's memory less 1024";
        /// Guests that Mayfly did not start take slots too.
        count_foreign: bool = true;
    }
}

section! {
    /// Vms that wait for a slot.
    Queue = "queue" {
        /// Vms that may wait at once (0 to 1000000); more are refused with 429.
        max_length: u32 = 1000;
        /// How long a vm waits for a slot if its request does not set it, in seconds (0 to 2592000). 0: start at once
        /// or refuse.
        timeout_seconds: u32 = domain::Budgets::default().queue_seconds;
    }
}

section! {
    /// How long each part of a vm's life may take, unless the template sets it. Seconds: 1 to 2592000.
    Budgets = "budgets" {
        /// Cloning the template, in seconds.
        clone_seconds: u32 = domain::Budgets::default().clone_seconds;
        /// From the start of the hypervisor until the guest answers, in seconds.
        boot_seconds: u32 = domain::Budgets::default().boot_seconds;
        /// Provisioning the guest and configuring its runner, in seconds.
        configure_seconds: u32 = domain::Budgets::default().configure_seconds;
        /// From the configured guest until the CI system reports the runner online, in seconds (for runner kinds that
        /// register).
        registration_seconds: u32 = domain::Budgets::default().registration_seconds;
        /// How long a runner may be online without a job, in seconds (for runner kinds that wait for jobs).
        idle_seconds: u32 = domain::Budgets::default().idle_seconds;
        /// From the configured guest to the end of the vm, in seconds: a job that hangs ends here.
        lifetime_seconds: u32 = domain::Budgets::default().lifetime_seconds;
        /// From the announced end to the proof that the runner has finished, in seconds.
        drain_seconds: u32 = domain::Budgets::default().drain_seconds;
        /// Upper limit to which `drain_seconds` is extended while GitHub reports the runner as busy, in seconds.
        drain_cap_seconds: u32 = domain::Budgets::default().drain_cap_seconds;
        /// From GitHub's report that the runner has finished to the end of its guest, in seconds: time for the runner's
        /// last steps.
        settle_seconds: u32 = domain::Budgets::default().settle_seconds;
        /// How long a guest may take to power down if its work may be unfinished, in seconds (0 to 600).
        stop_grace_seconds: u32 = domain::Budgets::default().stop_grace_seconds;
        /// How often a vm is booted (1 to 10), each time from a fresh clone, before it is given up.
        max_attempts: u32 = domain::Budgets::default().max_attempts;
    }
}

section! {
    /// How long records are kept.
    Retention = "retention" {
        /// How long records and logs of deleted vms are kept, in days (0 to 3650).
        deleted_vms_days: u32 = 7;
    }
}

section! {
    /// Disk space of templates.
    Templates = "templates" {
        /// Largest size of all templates and unfinished pulls together, in bytes. 0: no limit.
        max_bytes: u64 = 0;
        /// Space that must stay free on the disk with the templates, in bytes: for the disks of guests, which grow
        /// while they run, and for the database. With less free space no vm is cloned and nothing is pulled; versions
        /// that nothing needs are removed first.
        min_free_bytes: u64 = MIN_FREE_BYTES, shown as "2147483648 (2 GiB); on macOS 21474836480 (20 GiB)";
        /// Versions that no name, vm or pin needs are removed after this many days without use (0 to 3650). 0: only
        /// when space is needed.
        keep_unused_days: u32 = 7;
    }
}

section! {
    /// Settings for all registries. The table of one registry overrides them.
    Registry = "registry" {
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None;
        /// Use plain HTTP. Accepted for registries on this host only.
        plain_http: bool = false;
        /// Bandwidth limit of all pulls from registries and S3 together, in bytes per second (65536 to 4294967295). 0:
        /// no limit.
        bytes_per_second: u32 = 0;
        /// Bandwidth limit of all background pulls together, in bytes per second (65536 to 4294967295). 0: no limit. A
        /// background pull is one that no vm and no person waits for.
        background_bytes_per_second: u32 = 0;
    }
}

section! {
    /// Pulls of templates.
    Pulls = "pulls" {
        /// How long a pull is retried after temporary failures, counted from its request, in seconds (0 to 2592000). 0:
        /// no retry.
        deadline_seconds: u32 = 6 * 3600;
    }
}

section! {
    /// Access to GitHub, as an App or with a personal access token. Secrets are in separate files or in the
    /// environment: `MAYFLY_GITHUB_PRIVATE_KEY`, `MAYFLY_GITHUB_TOKEN`. `mayfly github check` tests these settings.
    GitHub = "github" {
        /// GitHub's address as used in a browser: `https://github.com`, `https://<name>.ghe.com`, or an Enterprise
        /// Server's address.
        url: String = "https://github.com".to_owned();
        /// The address of GitHub's API, if it does not follow from `url`.
        api_url: Option<String> = None, shown as "follows from `url`";
        /// The App's client id, or its number.
        app_id: Option<AppId> = None;
        /// Which installation of the App to use for everything.
        installation_id: Option<u64> = None, shown as "the one in each repository, organisation or enterprise";
        /// File with the App's private key (PEM), readable by the service's user only.
        private_key_file: Option<PathBuf> = None, shown as "none; `MAYFLY_GITHUB_PRIVATE_KEY` holds the key itself";
        /// File with a personal access token, if there is no App; readable by the service's user only.
        token_file: Option<PathBuf> = None, shown as "none; `MAYFLY_GITHUB_TOKEN` holds the token itself";
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None;
        /// Version of GitHub's API to use.
        api_version: String = crate::sources::github::API_VERSION.to_owned();
        /// Files with the secrets with which GitHub signs webhooks, each readable by the service's user only. List two
        /// while you replace one by the other.
        webhook_secret_files: Vec<PathBuf> = Vec::new(), shown as "none; `MAYFLY_GITHUB_WEBHOOK_SECRET` holds secrets, separated by commas";
        /// How often GitHub is polled for jobs whose webhooks were lost, in seconds (15 to 86400). 0: never.
        poll_seconds: u32 = 60;
        /// Directory of GitHub's runner in the guests.
        runner_directory: Option<String> = None, shown as "`~/actions-runner` and the usual places";
        /// Oldest runner version that is started: GitHub refuses older ones.
        runner_minimum_version: String = "2.329.0".to_owned();
    }
}

section! {
    /// Settings for one registry, by its name as in image references: `[registries."registry.example.com:5000"]`. These
    /// tables can be set in the file or on the command line, but not in the environment.
    RegistryHost = "registries.\"<host>\"" {
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None, shown as "that of `[registry]`";
        /// Use plain HTTP, wherever the registry is. Passwords and images are then sent unencrypted, and an attacker on
        /// the network can replace the image of a tag.
        plain_http: Option<bool> = None, shown as "that of `[registry]`";
        /// User name for the registry; needs `password_file`.
        username: Option<String> = None;
        /// File with that user's password or token, readable by its owner only (mode 0600).
        password_file: Option<PathBuf> = None;
    }
}

section! {
    /// GitHub's runner for guests that have none, or one that is too old. This host downloads it once, verifies it, and
    /// serves it to its guests. By platform: `[runners."osx-arm64"]`, `osx-x64`, `linux-arm64`, `linux-x64`. These
    /// tables can be set in the file or on the command line, but not in the environment.
    RunnerArchive = "runners.\"<platform>\"" {
        /// Address of the archive (`actions-runner-<platform>-<version>.tar.gz`).
        url: Option<String> = None;
        /// Its SHA-256, in 64 hexadecimal digits.
        sha256: Option<String> = None;
        /// Its version, such as 2.336.0.
        version: Option<String> = None;
    }
}

section! {
    /// One pool: which of GitHub's jobs get a vm on this host, and what that vm is like. Pools can also be made through
    /// the API. These tables can be set in the file or on the command line, but not in the environment.
    PoolTable = "pools.\"<name>\"" {
        /// Template that each vm is cloned from: name or digest of a template, or an image in a registry.
        template: Option<String> = None, shown as "none; required";
        /// Where its runners are registered. This decides whose jobs they can get.
        scope: Option<Scope> = None, shown as "none; required";
        /// Labels of its runners. A job matches the pool if every label that it asks for is among these.
        labels: Vec<String> = Vec::new(), shown as "none; required";
        /// Name of the runner group (organisations and enterprises only).
        group: Option<String> = None, shown as "the default group";
        /// Repositories whose jobs the pool takes: `owner/name`, where either part may be `*`.
        repositories: Vec<String> = Vec::new(), shown as "all that the scope covers";
        /// Live vms at once (1 to 10000).
        max_vms: u32 = domain::pool::USUAL_VMS;
        /// Vms booted ahead of jobs. Not possible yet: must be 0.
        warm: u32 = 0;
        /// Cores of each vm.
        cpus: Option<u32> = None, shown as "the template's";
        /// Memory of each vm, in MiB.
        memory_mib: Option<u32> = None, shown as "the template's";
        /// `false`: jobs get no new vms from this pool; existing vms keep their jobs.
        enabled: bool = true;
    }
}

section! {
    /// Budgets of a pool's vms that differ from the template's. Seconds: 1 to 2592000.
    PoolBudgets = "pools.\"<name>\".budgets" {
        /// Cloning the template, in seconds.
        clone_seconds: Option<u32> = None, shown as "the template's";
        /// From the start of the hypervisor until the guest answers, in seconds.
        boot_seconds: Option<u32> = None, shown as "the template's";
        /// Provisioning the guest and configuring its runner, in seconds.
        configure_seconds: Option<u32> = None, shown as "the template's";
        /// From the configured guest until GitHub reports the runner online, in seconds.
        registration_seconds: Option<u32> = None, shown as "the template's";
        /// How long a runner may be online without a job, in seconds.
        idle_seconds: Option<u32> = None, shown as "the template's";
        /// From the configured guest to the end of the vm, in seconds: a job that hangs ends here.
        lifetime_seconds: Option<u32> = None, shown as "the template's";
        /// From the announced end to the proof that the runner has finished, in seconds.
        drain_seconds: Option<u32> = None, shown as "the template's";
        /// Upper limit to which `drain_seconds` is extended while GitHub reports the runner as busy, in seconds.
        drain_cap_seconds: Option<u32> = None, shown as "the template's";
        /// From GitHub's report that the runner has finished to the end of its guest, in seconds.
        settle_seconds: Option<u32> = None, shown as "the template's";
        /// How long a guest may take to power down if its work may be unfinished, in seconds (0 to 600).
        stop_grace_seconds: Option<u32> = None, shown as "the template's";
        /// How often a vm is booted (1 to 10), each time from a fresh clone, before it is given up.
        max_attempts: Option<u32> = None, shown as "the template's";
    }
}

section! {
    /// QEMU: with KVM on Linux, with HVF on macOS, in emulation anywhere.
    QemuDriver = "drivers.qemu" {
        /// Use this driver.
        enabled: bool = true;
        /// The hypervisor: a path, or a name looked up in `PATH`.
        binary: Option<PathBuf> = None, shown as "`qemu-system-<host's architecture>`";
        /// The disk tool: a path, or a name looked up in `PATH`.
        qemu_img: Option<PathBuf> = None, shown as "`qemu-img`";
        /// How guests are run. `auto` uses KVM (on macOS HVF) if a test guest passes under it and is clearly faster
        /// than in emulation; otherwise `tcg`, which is emulation. The other values are used without a test.
        accelerator: Accelerator = Accelerator::Auto;
        /// `true`: guests reach the guest API and nothing else. `false`: also the internet, the host's network and
        /// every service on the host's loopback.
        isolated: bool = true;
        /// With `accelerator = "auto"`: how long the first guest under an accelerator may give no sign of life (on its
        /// console or by a call to the guest API) before guests are emulated instead, in seconds (5 to 600).
        first_guest_seconds: u32 = 45;
        /// A guest that writes while the host's disk is full is paused, and continues when there is space. A guest with
        /// a runner is given up after this many seconds (1 to 3600); CI systems also give up a silent runner after some
        /// minutes.
        disk_full_seconds: u32 = 300;
    }
}

section! {
    /// Tart: macOS and Linux guests on Apple Silicon.
    TartDriver = "drivers.tart" {
        /// Use this driver.
        enabled: bool = cfg!(target_os = "macos"), shown as "`true` on macOS";
        /// The program: a path, or a name looked up in `PATH`, in Homebrew's directories too.
        binary: Option<PathBuf> = None, shown as "`tart`";
        /// Directory in which Tart keeps its VMs. Put it on the volume of the data directory: a clone to another volume
        /// would be a full copy, which is refused unless `copy_across_volumes` is set.
        home: Option<PathBuf> = None, shown as "`TART_HOME`, else `~/.tart`";
        /// Processor architecture of the guests.
        arch: Option<GuestArch> = None, shown as "the host's";
        /// How guests are connected. `nat`: macOS's own NAT. `softnet`: Tart's filter, which keeps guests away from the
        /// local network. `bridged`: as machines of the local network.
        network: TartNetwork = TartNetwork::Nat;
        /// Networks that guests behind `softnet` may reach besides the internet (CIDR).
        softnet_allow: Vec<String> = Vec::new();
        /// Networks that guests behind `softnet` may not reach (CIDR).
        softnet_block: Vec<String> = Vec::new();
        /// Interfaces of the host that `bridged` guests are connected to.
        bridged_interfaces: Vec<String> = Vec::new();
        /// The host's address as guests see it.
        gateway: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 64, 1));
        /// Port of the guests' SSH server.
        ssh_port: u16 = 22;
        /// How a guest's address is found: `dhcp` in the host's lease file; `arp` in the host's ARP table, needed for
        /// `bridged`; `agent` from the agent in the guest.
        resolver: TartResolver = TartResolver::Dhcp;
        /// The host's file of DHCP leases.
        lease_file: PathBuf = "/var/db/dhcpd_leases".into();
        /// Directories of the host that are shared with guests, as in `tart run --dir`: `name:/path:ro`.
        dirs: Vec<String> = Vec::new();
        /// Size of the guests' display, as in `tart set --display`: `1920x1080`.
        display: Option<String> = None, shown as "the template's";
        /// How the guests' disk is written, as in `tart run --root-disk-opts`. The disks of guests are deleted
        /// afterwards, so writes need not reach the host's disk.
        root_disk_opts: String = "sync=none,caching=cached".to_owned();
        /// Enables Rosetta for Linux guests, under this tag.
        rosetta: Option<String> = None;
        /// Enables nested virtualisation in Linux guests (M3 and later).
        nested: bool = false;
        /// Starts macOS guests in a way that allows suspending them: without audio, entropy and USB devices.
        suspendable: bool = false;
        /// Copy a template's disk if it cannot be cloned because Tart's directory is on another volume.
        copy_across_volumes: bool = false;
    }
}

section! {
    /// A driver that only simulates guests. For tests and demonstrations.
    FakeDriver = "drivers.fake" {
        /// Use this driver. Jobs on it are not run.
        enabled: bool = false;
    }
}

section! {
    /// The service's log, on standard error.
    Log = "log" {
        /// Lowest level that is written, or a filter by module such as `info,mayfly::http=debug`.
        level: String = "info".to_owned();
        /// `text` for people, `json` for machines (one object per line).
        format: LogFormat = LogFormat::Text;
    }
}

/// `doctor` warns below the same value. It is a number of bytes and not a percentage, because the space that guests
/// need does not grow with the disk.
const MIN_FREE_BYTES: u64 = if cfg!(target_os = "macos") { 20 << 30 } else { 2 << 30 };

/// The hypervisors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drivers {
    pub qemu: QemuDriver,
    pub tart: TartDriver,
    pub fake: FakeDriver,
}

/// Every section, in the order of the documentation.
pub const SECTIONS: &[Section] = &[
    Server::SECTION,
    Guest::SECTION,
    Slots::SECTION,
    Queue::SECTION,
    Budgets::SECTION,
    Retention::SECTION,
    Templates::SECTION,
    Registry::SECTION,
    Pulls::SECTION,
    GitHub::SECTION,
    QemuDriver::SECTION,
    TartDriver::SECTION,
    FakeDriver::SECTION,
    Log::SECTION,
];

/// Every kind of named table.
pub const NAMED: &[Named] = &[
    Named {
        root: "registries",
        name: "host",
        example: "registry.example.com",
        section: RegistryHost::SECTION,
        inner: None,
        after: Registry::SECTION.path,
    },
    Named {
        root: "pools",
        name: "name",
        example: "macos",
        section: PoolTable::SECTION,
        inner: Some(NestedTable { name: "budgets", section: PoolBudgets::SECTION }),
        after: GitHub::SECTION.path,
    },
    Named {
        root: "runners",
        name: "platform",
        example: "osx-arm64",
        section: RunnerArchive::SECTION,
        inner: None,
        after: GitHub::SECTION.path,
    },
];

/// Every key that has one place; those of named tables are as many as there are names.
pub fn all() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|s| s.keys)
}

/// A GitHub App's client id, or its number: both are shown on its page, and both are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppId(pub String);

impl Setting for AppId {
    const KIND: &str = "client id or number";
    fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-' || b == b'_');
        (!text.is_empty() && text.len() <= 100 && fits).then(|| AppId(text.to_owned()))
    }
    fn from_integer(n: i64) -> Option<Self> {
        (n > 0).then(|| AppId(n.to_string()))
    }
    fn show(&self) -> String {
        format!("`{}`", self.0)
    }
}

macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident $kind:literal { $( $(#[doc = $doc:literal])* $variant:ident = $text:literal, )+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $doc])* $variant, )+ }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )+ }
            }
        }

        impl Setting for $name {
            const KIND: &str = $kind;
            fn from_text(text: &str) -> Option<Self> {
                match text { $( $text => Some($name::$variant), )+ _ => None }
            }
            fn show(&self) -> String {
                format!("`{}`", self.as_str())
            }
        }
    };
}

choice! {
    /// How QEMU runs guests.
    Accelerator "`auto`, `kvm`, `hvf` or `tcg`" {
        /// The best one that is proven to run a guest here.
        Auto = "auto",
        Kvm = "kvm",
        Hvf = "hvf",
        /// Emulation: slow, and works everywhere.
        Tcg = "tcg",
    }
}

choice! {
    /// Processors of guests.
    GuestArch "`aarch64` or `x86_64`" {
        Aarch64 = "aarch64",
        X86_64 = "x86_64",
    }
}

choice! {
    /// How Tart's guests are connected.
    TartNetwork "`nat`, `softnet` or `bridged`" {
        Nat = "nat",
        Softnet = "softnet",
        Bridged = "bridged",
    }
}

choice! {
    /// How the address of Tart's guests is found.
    TartResolver "`dhcp`, `arp` or `agent`" {
        Dhcp = "dhcp",
        Arp = "arp",
        Agent = "agent",
    }
}

choice! {
    /// How log lines are written.
    LogFormat "`text` or `json`" {
        Text = "text",
        Json = "json",
    }
}
