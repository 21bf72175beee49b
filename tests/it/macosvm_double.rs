//! The double of `macosvm` keeps the contract that the driver rests on: the options with their accidents, exit statuses, texts,
//! files and signals of the real program. A driver that passes with the double is only as good as these.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::macosvm::{MODEL, double, identity};

/// A directory with a VM in it, and the double beside it.
struct Desk {
    dir: tempfile::TempDir,
    program: PathBuf,
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    signal: Option<i32>,
    out: String,
    err: String,
}

struct Running(Option<Child>);

impl Running {
    fn pid(&self) -> i32 {
        self.0.as_ref().unwrap().id() as i32
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    fn wait(mut self) -> Said {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said {
            code: output.status.code(),
            signal: output.status.signal(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Said {
    /// What was logged, in order, without the time stamps and the name of the program.
    fn log(&self) -> Vec<&str> {
        self.err.lines().filter_map(|line| line.split_once("] ")).map(|(_, text)| text).collect()
    }

    #[track_caller]
    fn ends(&self, code: Option<i32>, signal: Option<i32>, says: &str) {
        assert_eq!((self.code, self.signal), (code, signal), "{self:?}");
        assert!(self.err.contains(says) || self.out.contains(says), "{says}: {self:?}");
    }
}

impl Desk {
    fn new(control: Value) -> Desk {
        let dir = tempfile::tempdir().unwrap();
        let program = double(dir.path());
        let desk = Desk { dir, program };
        fs::write(desk.path("double.json"), control.to_string()).unwrap();
        fs::write(desk.path("disk.img"), vec![0; 4096]).unwrap();
        fs::write(desk.path("aux.img"), "aux").unwrap();
        desk.vm(|_| {});
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `vm.json`.
    fn vm(&self, change: impl FnOnce(&mut Value)) {
        let mut vm = json!({
            "version": 1, "os": "macos", "hardwareModel": MODEL, "machineId": identity(1), "cpus": 2, "ram": 1_u64 << 30,
            "storage": [{"type": "disk", "file": self.path("disk.img")}, {"type": "aux", "file": self.path("aux.img")}],
            "networks": [{"type": "nat", "mac": "02:0a:00:00:00:01"}], "serial": false,
            "displays": [{"width": 800, "height": 600, "dpi": 72}],
        });
        change(&mut vm);
        fs::write(self.path("vm.json"), vm.to_string()).unwrap();
    }

    fn start(&self, args: &[&str]) -> Running {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        Running(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn run(&self, args: &[&str]) -> Said {
        self.start(args).wait()
    }

    /// Runs until the guest has its lease, which is after everything else.
    fn boot(&self, args: &[&str]) -> Running {
        let leases = || fs::read_to_string(self.path("dhcpd_leases")).unwrap_or_default().matches('{').count();
        let before = leases();
        let running = self.start(args);
        let began = Instant::now();
        while leases() == before {
            assert!(began.elapsed() < Duration::from_secs(20), "no lease");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    fn shut_down(&self, running: &Running) {
        fs::write(self.path("double").join(format!("off-{}", running.pid())), "").unwrap();
    }

    fn clones(&self) -> usize {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("-clone-")).count()
    }
}

#[test]
fn a_run_says_what_it_does_and_ends_with_zero() {
    let desk = Desk::new(json!({}));
    let running = desk.boot(&["--pid-file", "pid", "vm.json"]);
    assert_eq!(fs::read_to_string(desk.path("pid")).unwrap(), format!("{}\n", running.pid()));
    let leases = fs::read_to_string(desk.path("dhcpd_leases")).unwrap();
    assert!(leases.contains("\thw_address=1,2:a:0:0:0:1\n"), "without leading zeros: {leases}");
    desk.shut_down(&running);
    let said = running.wait();
    said.ends(Some(0), None, "");
    let (disk, aux) = (desk.path("disk.img"), desk.path("aux.img"));
    assert_eq!(
        said.log(),
        [
            "Creating instance ...",
            " + NAT network",
            " + network: ether 02:0a:00:00:00:01",
            " + display: 800 x 600 @ 72",
            &format!(" + disk image file://{} (read-write)", disk.display()),
            &format!(" + existing aux storage {}", aux.display()),
            " + 2 CPUs",
            " + 1073741824 RAM",
            "validateWithError = OK",
            " init OK",
            "Starting instance...",
            " - start done",
            "starting macOS in normal mode",
            "start completed err=nil",
            "VM <VZVirtualMachine: 0x600003d0c000> guest stopped",
        ]
    );
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[0], "INFO: add NAT network with MAC address 02:0a:00:00:00:01");
    assert_eq!(lines[1], format!("INFO: add storage '{}' type 'disk' read-write ", disk.display()));
    assert_eq!(lines[3..], ["INFO: CPUs: 2", "INFO: RAM 1073741824"]);
    assert!(!desk.path("pid").exists(), "removed at a normal exit");
}

#[test]
fn status_zero_is_any_end_and_any_bad_configuration() {
    let desk = Desk::new(json!({"rules": [{"id": "1", "times": 1, "then": {"crash_after_ms": 20}}]}));
    desk.run(&["vm.json"]).ends(Some(0), None, "didStopWithError: Error Domain=VZErrorDomain Code=1 ");
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 6] = [
        ("Exception in VM init: Number of CPUs not specified", |vm| drop(vm["cpus"].take())),
        ("Exception in VM init: RAM size not specified", |vm| drop(vm["ram"].take())),
        ("Exception in VM init: Unsupported os", |vm| vm["os"] = json!("windows")),
        ("Exception in VM init: Error Domain=VZErrorDomain Code=2 ", |vm| vm["storage"][0]["file"] = json!("/none")),
        ("“com.apple.vm.networking” entitlement", |vm| vm["networks"][0]["type"] = json!("bridge")),
        ("no attachment", |vm| vm["networks"][0]["type"] = json!("token ring")),
    ];
    for (says, change) in changes {
        desk.vm(change);
        let said = desk.run(&["vm.json"]);
        said.ends(Some(0), None, says);
        assert!(!said.err.contains("start completed"), "{said:?}");
    }
    // What cannot be parsed counts as empty.
    fs::write(desk.path("vm.json"), "{\"cpus\": 2,").unwrap();
    desk.run(&["vm.json"]).ends(Some(0), None, "Number of CPUs not specified");
}

#[test]
fn a_refused_start_is_an_abort() {
    let desk = Desk::new(json!({"foreign_kernel_slots": 1}));
    let first = desk.boot(&["vm.json"]);
    let said = desk.run(&["vm.json"]);
    said.ends(None, Some(6), "Failed to lock auxiliary storage.");
    fs::write(desk.path("other.img"), "aux").unwrap();
    desk.vm(|vm| vm["storage"][1]["file"] = json!("other.img"));
    let said = desk.run(&["vm.json"]);
    said.ends(None, Some(6), "start completed err=Error Domain=VZErrorDomain Code=6 \"The maximum supported number");
    assert!(said.err.contains("*** Terminating app due to uncaught exception 'VMStartError', reason: "), "{said:?}");
    assert_eq!(said.out, "", "what was printed is lost");
    // Linux guests do not count.
    desk.vm(|vm| {
        vm["os"] = json!("linux");
        vm["storage"][1]["file"] = json!("other.img");
    });
    let linux = desk.boot(&["vm.json"]);
    linux.signal(Signal::KILL);
    drop(first);
}

#[test]
fn signals_end_it_without_a_message() {
    let desk = Desk::new(json!({}));
    // Others may be ignored, which a program inherits.
    for signal in [Signal::TERM, Signal::KILL] {
        let running = desk.boot(&["--pid-file", "pid", "vm.json"]);
        running.signal(signal);
        let said = running.wait();
        said.ends(None, Some(signal.as_raw()), "start completed err=nil");
        assert!(!said.err.contains("stopped") && said.out.is_empty(), "{said:?}");
        assert!(desk.path("pid").exists(), "a signal leaves it");
    }
}

#[test]
fn ephemeral_clones_are_removed_at_some_ends_only() {
    let desk = Desk::new(json!({}));
    for (signal, left) in [(Signal::TERM, 0), (Signal::INT, 0), (Signal::KILL, 2)] {
        let running = desk.boot(&["--ephemeral", "vm.json"]);
        assert_eq!(desk.clones(), 2);
        running.signal(signal);
        let said = running.wait();
        said.ends(None, Some(signal.as_raw()), "start completed err=nil");
        assert_eq!(desk.clones(), left, "{signal:?}");
        assert_eq!(said.out.contains("INFO: removing ephemeral"), left == 0, "{said:?}");
    }
}

#[test]
fn the_accidents_of_the_command_line() {
    let desk = Desk::new(json!({"rules": [{"id": "1", "then": {"power_off_after_ms": 1}}]}));
    desk.run(&["vm.json", "other.json"]).ends(Some(1), None, "ERROR: configuration path can only be specified once");
    desk.run(&["none.json"]).ends(Some(1), None, "ERROR: ");
    // An unknown option is ignored, and its value is the configuration.
    desk.run(&["--colour", "vm.json"]).ends(Some(0), None, "guest stopped");
    desk.run(&["--colour", "red", "vm.json"]).ends(Some(1), None, "only be specified once");
    // Values that are examined again as short options.
    desk.run(&["--vol", "/cache", "vm.json"]).ends(Some(1), None, "ERROR: invalid number of CPUs");
    desk.run(&["--vol", "/runner", "vm.json"]).ends(Some(1), None, "ERROR: invalid size qualifier");
    desk.run(&["--vol", "/home/x", "vm.json"]).ends(Some(0), None, "Usage: macosvm");
    desk.run(&["--vol", "/Users/x", "vm.json"]).ends(Some(0), None, "guest stopped");
    // Options add to the description.
    let said = desk.run(&["-c4", "-r", "2g", "--mac", "02:00:00:00:00:07", "vm.json"]);
    assert!(said.log().contains(&" + 4 CPUs") && said.log().contains(&" + 2147483648 RAM"), "{said:?}");
    assert!(said.log().contains(&" + network: ether 02:00:00:00:00:07"), "{said:?}");
    desk.run(&["-r", "1m", "vm.json"]).ends(Some(1), None, "ERROR: invalid RAM size");
    let said = desk.run(&["--version"]);
    said.ends(Some(0), None, "macosvm 0.2-3\n");
    assert!(said.out.contains("Capabilities: macOS guest, vol, vol:automount, net:unix:mtu, usb\n"), "{said:?}");
    // A version that does not know the option takes its value for the configuration.
    fs::write(desk.path("double.json"), json!({"version": "0.2-2"}).to_string()).unwrap();
    desk.run(&["--pid-file", "pid", "vm.json"]).ends(Some(1), None, "only be specified once");
}

#[test]
fn what_is_missing_is_made_up() {
    let desk = Desk::new(json!({"rules": [{"id": "1", "then": {"power_off_after_ms": 1}}]}));
    fs::remove_file(desk.path("aux.img")).unwrap();
    desk.vm(|vm| {
        for key in ["hardwareModel", "networks", "displays", "serial"] {
            vm.as_object_mut().unwrap().remove(key);
        }
        vm["storage"][0]["file"] = json!("disk.img");
        vm["storage"].as_array_mut().unwrap().push(json!({"type": "tape", "file": "/none"}));
    });
    let said = desk.run(&["vm.json"]);
    said.ends(Some(0), None, "WARNING: no hardware information found, using arm64 macOS 12.0.0 specs");
    assert!(desk.path("aux.img").exists(), "an auxiliary storage is created");
    assert!(said.log().contains(&" + display: 2560 x 1600 @ 200"), "{said:?}");
    assert!(said.out.contains("INFO: add NAT network (random MAC address)"), "{said:?}");
    // The guest's serial line is the program's own output, unless it is told otherwise.
    assert!(said.out.starts_with("guest: hello\r\n"), "{said:?}");
    assert!(!desk.run(&["--no-serial", "vm.json"]).out.contains("guest: hello"));
}

#[test]
fn a_mistake_in_a_test_is_not_a_behaviour() {
    for control in [json!({"versoin": "1"}), json!({"rules": [{"id": "1", "then": {"crash": 1}}]})] {
        let desk = Desk::new(control);
        desk.run(&["vm.json"]).ends(Some(70), None, "macosvm-double: ");
    }
    Desk::new(json!({})).run(&["--restore", "x.ipsw", "vm.json"]).ends(Some(70), None, "--restore is not simulated");
}
