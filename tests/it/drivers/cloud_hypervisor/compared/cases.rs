//! What the program is asked in each case. Each case has a process of its own, and most have a directory of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use mayfly::drivers::cloud_hypervisor::probe::pvh_kernel;
use serde_json::{Value, json};

use super::{
    super::rig::{DEAF, POWER_OFF, RESET},
    Entry, Transcript,
    stage::{Host, Stage, said_by},
};

/// Every request that changes or shows a vm, in the order in which they are asked about.
const REQUESTS: [(&str, &str); 8] = [
    ("GET", "vm.info"),
    ("PUT", "vm.boot"),
    ("PUT", "vm.power-button"),
    ("PUT", "vm.pause"),
    ("PUT", "vm.resume"),
    ("PUT", "vm.shutdown"),
    ("PUT", "vm.reboot"),
    ("PUT", "vm.delete"),
];

/// A directory with what a case needs.
struct Scene {
    dir: PathBuf,
    /// A link to the program, beside which its double finds orders.
    binary: PathBuf,
}

impl Scene {
    /// With a disk that is an overlay on another, and an order to the double: guests need not run where nothing depends on what they do.
    fn set(program: &Path, dir: &Path) -> Self {
        std::fs::create_dir(dir.join("bin")).unwrap();
        let scene = Self { dir: dir.to_owned(), binary: dir.join("bin/cloud-hypervisor") };
        std::os::unix::fs::symlink(program, &scene.binary).unwrap();
        scene.order(&json!({"inert": true}));
        for (name, size) in [("base", 1 << 20), ("seed.img", 4096)] {
            std::fs::File::create(dir.join(name)).unwrap().set_len(size).unwrap();
        }
        let overlay = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base"])
            .arg(dir.join("disk.qcow2"))
            .status();
        assert!(overlay.unwrap().success());
        scene
    }

    fn order(&self, control: &Value) {
        std::fs::write(self.dir.join("bin/double.json"), control.to_string()).unwrap();
    }

    fn stage(&self) -> Stage {
        self.stage_at(Host::Usual)
    }

    fn stage_at(&self, host: Host) -> Stage {
        Stage::start(&self.binary, &self.dir, host)
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn kernel(&self, name: &str, code: &[u8]) -> String {
        std::fs::write(self.dir.join(name), pvh_kernel(code)).unwrap();
        self.file(name)
    }

    /// As the driver describes a guest.
    fn machine(&self, code: &[u8]) -> Value {
        json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 64 << 20},
            "payload": {"kernel": self.kernel("kernel", code), "cmdline": "console=ttyS0"},
            "disks": [
                {"id": "disk", "path": self.file("disk.qcow2"), "readonly": false, "image_type": "Qcow2", "backing_files": true},
                {"id": "seed", "path": self.file("seed.img"), "readonly": true, "image_type": "Raw", "backing_files": false},
            ],
            "net": [{
                "id": "net", "tap": "tap0", "mac": "52:54:00:12:34:56", "offload_csum": false, "offload_tso": false,
                "offload_ufo": false,
            }],
            "rng": {"src": "/dev/urandom"},
            "serial": {"mode": "File", "file": self.file("console.log")},
            "console": {"mode": "Off"},
            "platform": {"uuid": "0198f3d2-0000-7000-8000-000000000001"},
            "pvpanic": true,
        })
    }
}

type Case = (&'static str, fn(&Scene) -> Vec<Entry>);

const CASES: &[Case] = &[
    ("command line", command_line),
    ("before a vm is created", before),
    ("requests that are malformed", malformed),
    ("a vm that is created", created),
    ("a vm with the least description", least),
    ("a serial line that cannot be opened", no_serial_line),
    ("a vm that is booted", booted),
    ("a vm that is paused", paused),
    ("a vm that is rebooted by request", rebooted),
    ("a vm that is deleted while it runs", deleted_running),
    ("a guest that powers off", powers_off),
    ("a guest that resets itself", resets),
    ("SIGTERM before a vm is created", term_before),
    ("SIGTERM while a guest runs", term_running),
    ("SIGINT while a guest runs", int_running),
    ("SIGKILL, and another process on the same socket", killed),
    ("two processes on one socket", two),
    ("two vms with one disk", one_disk),
    ("no /dev/kvm", no_kvm),
    ("no /dev/net/tun", no_tun),
];

/// A change of the usual machine with which it is refused.
type Change = fn(&Scene, &mut Value);

const REFUSED: &[(&str, Change)] = &[
    ("no payload", |_, machine| machine["payload"] = Value::Null),
    ("an empty payload", |_, machine| machine["payload"] = json!({})),
    ("a kernel and a firmware", |scene, machine| machine["payload"]["firmware"] = json!(scene.file("seed.img"))),
    ("no such kernel", |scene, machine| machine["payload"]["kernel"] = json!(scene.file("none"))),
    ("a kernel that is a directory", |scene, machine| machine["payload"]["kernel"] = json!(scene.dir)),
    ("a kernel that is a text", |scene, machine| {
        std::fs::write(scene.dir.join("text"), "no kernel").unwrap();
        machine["payload"]["kernel"] = json!(scene.file("text"));
    }),
    ("a kernel that is empty", |scene, machine| {
        std::fs::write(scene.dir.join("empty"), "").unwrap();
        machine["payload"]["kernel"] = json!(scene.file("empty"));
    }),
    ("a kernel without a PVH note", |scene, machine| {
        let mut kernel = pvh_kernel(DEAF);
        // The kind of the second segment: no note any more.
        kernel[64 + 56..][..4].copy_from_slice(&0u32.to_le_bytes());
        std::fs::write(scene.dir.join("bare"), kernel).unwrap();
        machine["payload"]["kernel"] = json!(scene.file("bare"));
    }),
    ("no such initramfs", |scene, machine| machine["payload"]["initramfs"] = json!(scene.file("none"))),
    ("no such disk", |scene, machine| machine["disks"][0]["path"] = json!(scene.file("none"))),
    ("a disk without a path", |_, machine| machine["disks"][0]["path"] = Value::Null),
    ("a raw disk that is called qcow2", |scene, machine| machine["disks"][0]["path"] = json!(scene.file("seed.img"))),
    ("a qcow2 disk that is called raw", |_, machine| machine["disks"][0]["image_type"] = json!("Raw")),
    ("backing files that are not allowed", |_, machine| machine["disks"][0]["backing_files"] = json!(false)),
    ("a backing file that is gone", |scene, _| std::fs::remove_file(scene.dir.join("base")).unwrap()),
    ("two disks of one name", |_, machine| machine["disks"][1]["id"] = json!("disk")),
    ("one disk twice", |scene, machine| machine["disks"][1]["path"] = json!(scene.file("disk.qcow2"))),
    ("no such tap", |_, machine| machine["net"][0]["tap"] = json!("tap9")),
    ("segmentation without checksums", |_, machine| machine["net"][0]["offload_tso"] = json!(true)),
    ("no processor", |_, machine| machine["cpus"] = json!({"boot_vcpus": 0, "max_vcpus": 0})),
    ("fewer processors than at the start", |_, machine| machine["cpus"] = json!({"boot_vcpus": 2, "max_vcpus": 1})),
    ("no memory", |_, machine| machine["memory"]["size"] = json!(0)),
];

/// All cases with this program.
pub fn all(program: &Path) -> Transcript {
    let mut transcript = Transcript::new();
    let mut play = |name: String, case: &dyn Fn(&Scene) -> Vec<Entry>| {
        let dir = tempfile::Builder::new().prefix("mayfly-it-").tempdir_in("/tmp").unwrap();
        transcript.insert(name, case(&Scene::set(program, dir.path())));
    };
    for (name, case) in CASES {
        play((*name).to_owned(), case);
    }
    for (name, change) in REFUSED {
        play(format!("refused: {name}"), &|scene| refused(scene, *change));
    }
    transcript
}

fn command_line(scene: &Scene) -> Vec<Entry> {
    let kernel = scene.kernel("kernel", POWER_OFF);
    let none = scene.file("none");
    let socket = format!("path={}", scene.file("none/api.sock"));
    let monitor = format!("path={}", scene.file("none/events"));
    let guest = ["--cpus", "boot=1", "--memory", "size=64M", "--serial", "tty", "--console", "off"];
    let all: &[&[&str]] = &[
        &["--version"],
        &["-V"],
        &[],
        &["--nonsense"],
        &["--kernel"],
        &["--api-socket", &socket],
        &["--event-monitor", "nonsense"],
        &["--event-monitor", &monitor],
        &[&["--kernel", &none], &guest[..]].concat(),
        &[&["--kernel", &kernel], &guest[..]].concat(),
        &[&["--kernel", &kernel], &["--cpus", "boot=many"], &guest[2..]].concat(),
        &[&["--kernel", &kernel], &["--memory", "size=much"], &guest[4..]].concat(),
    ];
    all.iter().map(|args| said_by(&scene.binary, &scene.dir, Host::Usual, args)).collect()
}

fn all_requests(stage: &mut Stage) {
    for (method, name) in REQUESTS {
        stage.ask(method, name, None);
    }
}

fn before(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.get("vmm.ping");
    all_requests(&mut stage);
    stage.put("vmm.shutdown");
    stage.end(None)
}

fn malformed(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    for (method, path) in [
        ("GET", "vm.nothing"),
        ("PUT", "vm.nothing"),
        ("GET", "/"),
        ("GET", "/api/v1/"),
        ("GET", "/api/v2/vmm.ping"),
        ("PUT", "vmm.ping"),
        ("GET", "vmm.shutdown"),
        ("PUT", "vm.info"),
        ("GET", "vm.boot"),
        ("GET", "vm.create"),
        ("PATCH", "vm.boot"),
        ("PUT", "vm.create"),
    ] {
        stage.ask(method, path, None);
    }
    for name in ["vm.boot", "vm.shutdown", "vm.delete", "vm.power-button"] {
        stage.ask("PUT", name, Some("{}"));
    }
    for body in [
        "nothing",
        "null",
        r#"{"cpus":{}}"#,
        r#"{"cpus":{"boot_vcpus":-1,"max_vcpus":1}}"#,
        r#"{"memory":{"size":"1"}}"#,
        r#"{"disks":{}}"#,
        r#"{"disks":[{"image_type":"Floppy"}]}"#,
        r#"{"console":{"mode":"Loud"}}"#,
        r#"{"serial":{}}"#,
        r#"{"net":[{"offload_csum":"no"}]}"#,
        r#"{"payload":1}"#,
    ] {
        stage.ask("PUT", "vm.create", Some(body));
    }
    stage.state().put("vmm.shutdown");
    stage.end(None)
}

fn created(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    let machine = scene.machine(DEAF);
    stage.create(&machine).create(&machine).get("vm.info");
    for (method, name) in REQUESTS.iter().filter(|(_, name)| *name != "vm.boot") {
        stage.ask(method, name, None);
    }
    stage.get("vm.info").create(&machine).put("vmm.shutdown");
    stage.end(None)
}

/// What is not described has defaults, and what is not known is ignored.
fn least(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    let kernel = scene.kernel("kernel", DEAF);
    stage.create(&json!({"payload": {"kernel": kernel}, "console": {"mode": "Off"}, "disks": [{}], "net": [{}], "later": {"version": 99}}));
    stage
        .get("vm.info")
        .put("vm.delete")
        .create(&json!({"console": {"mode": "Off"}}))
        .get("vm.info")
        .put("vmm.shutdown");
    stage.end(None)
}

fn no_serial_line(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    let mut machine = scene.machine(DEAF);
    machine["serial"]["file"] = json!(scene.file("none/console.log"));
    stage.create(&machine).state().put("vm.boot").create(&scene.machine(DEAF));
    stage.put("vm.delete").create(&scene.machine(DEAF)).put("vm.boot").state().put("vmm.shutdown");
    stage.end(None)
}

fn booted(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    let machine = scene.machine(DEAF);
    stage.create(&machine).put("vm.boot").get("vm.info").get("vmm.ping").put("vm.boot").create(&machine);
    stage
        .put("vm.power-button")
        .put("vm.resume")
        .put("vm.shutdown")
        .get("vm.info")
        .put("vm.shutdown")
        .put("vm.power-button");
    // The same vm again.
    stage.put("vm.boot").get("vm.info").put("vmm.shutdown");
    stage.end(None)
}

fn paused(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.create(&scene.machine(DEAF)).put("vm.boot").put("vm.pause").state().put("vm.pause").put("vm.power-button");
    stage.put("vm.boot").put("vm.resume").state().put("vm.resume").put("vm.pause").put("vmm.shutdown");
    stage.end(None)
}

fn rebooted(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.create(&scene.machine(DEAF)).put("vm.boot").put("vm.reboot").state().put("vmm.shutdown");
    stage.end(None)
}

fn deleted_running(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.create(&scene.machine(DEAF)).put("vm.boot").put("vm.delete").state().put("vm.delete").put("vmm.shutdown");
    stage.end(None)
}

fn powers_off(scene: &Scene) -> Vec<Entry> {
    scene.order(&json!({}));
    let mut stage = scene.stage();
    stage.create(&scene.machine(POWER_OFF)).put("vm.boot").event("vmm shutdown");
    stage.end(None)
}

/// It does so for ever.
fn resets(scene: &Scene) -> Vec<Entry> {
    scene.order(&json!({}));
    let mut stage = scene.stage();
    stage.create(&scene.machine(RESET)).put("vm.boot").event("vm rebooted").signal("KILL");
    stage.end(Some("vm rebooted"))
}

fn term_before(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.signal("TERM");
    stage.end(None)
}

fn term_running(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.create(&scene.machine(DEAF)).put("vm.boot").signal("TERM");
    stage.end(None)
}

fn int_running(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.create(&scene.machine(DEAF)).put("vm.boot").signal("INT");
    stage.end(None)
}

fn killed(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    stage.create(&scene.machine(DEAF)).put("vm.boot").signal("KILL");
    let mut entries = stage.end(None);
    let mut stage = scene.stage();
    stage.state().create(&scene.machine(DEAF)).put("vm.boot").put("vmm.shutdown");
    entries.extend(stage.end(None));
    entries
}

fn two(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage();
    let socket = format!("path={}", scene.file("api.sock"));
    let second = said_by(&scene.binary, &scene.dir, Host::Usual, &["--api-socket", &socket]);
    // The first one is still there.
    stage.state().put("vmm.shutdown");
    let mut entries = vec![second];
    entries.extend(stage.end(None));
    entries
}

fn one_disk(scene: &Scene) -> Vec<Entry> {
    let mut first = scene.stage();
    first.create(&scene.machine(DEAF)).put("vm.boot");
    let dir = scene.dir.join("second");
    std::fs::create_dir(&dir).unwrap();
    let mut second = Stage::start(&scene.binary, &dir, Host::Usual);
    let mut machine = scene.machine(DEAF);
    machine["serial"]["file"] = json!(dir.join("console.log"));
    second.create(&machine).put("vm.boot").state();
    first.put("vmm.shutdown");
    let mut entries = first.end(None);
    // Free again.
    second.put("vm.boot").put("vm.shutdown").put("vm.boot").put("vmm.shutdown");
    entries.extend(second.end(None));
    super::stage::masked_entries(entries, &scene.dir)
}

fn no_kvm(scene: &Scene) -> Vec<Entry> {
    scene.order(&json!({"no_hypervisor": true}));
    let socket = format!("path={}", scene.file("api.sock"));
    vec![said_by(&scene.binary, &scene.dir, Host::WithoutKvm, &["--api-socket", &socket])]
}

fn no_tun(scene: &Scene) -> Vec<Entry> {
    let mut stage = scene.stage_at(Host::WithoutTun);
    stage.create(&scene.machine(DEAF)).put("vm.boot").put("vmm.shutdown");
    stage.end(None)
}

fn refused(scene: &Scene, change: Change) -> Vec<Entry> {
    let mut stage = scene.stage();
    let mut machine = scene.machine(DEAF);
    change(scene, &mut machine);
    stage.create(&machine).put("vm.boot").state().put("vm.boot").put("vm.power-button").put("vm.shutdown");
    stage.put("vm.delete").state().put("vmm.shutdown");
    stage.end(None)
}
