//! The double of `tart` keeps the contract that the driver rests on. What is held against it here are exit codes, texts, files
//! and locks of the real program; a driver that passes with the double is only as good as these.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Flock, FlockType, Pid, Signal, fcntl_getlk, kill_process},
};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A `TART_HOME` of its own.
struct Tart {
    home: tempfile::TempDir,
}

impl Tart {
    fn new(control: Value) -> Tart {
        let tart = Tart { home: tempfile::tempdir().unwrap() };
        tart.control(control);
        tart
    }

    fn control(&self, control: Value) {
        fs::write(self.path("double.json"), control.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn vm(&self, name: &str) -> PathBuf {
        self.path("vms").join(name)
    }

    fn make(&self, name: &str, os: &str, mac: &str) {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let mut config = json!({
            "version": 1, "os": os, "arch": arch, "cpuCountMin": 2, "cpuCount": 2,
            "memorySizeMin": 1024 * MIB, "memorySize": 1024 * MIB, "macAddress": mac,
        });
        if os == "darwin" {
            config["ecid"] = "ZWNpZA==".into();
            config["hardwareModel"] = "aHc=".into();
        }
        fs::create_dir_all(self.vm(name)).unwrap();
        fs::write(self.vm(name).join("config.json"), config.to_string()).unwrap();
        File::create(self.vm(name).join("disk.img")).unwrap().set_len(3_500_000_000).unwrap();
        fs::write(self.vm(name).join("nvram.bin"), "nvram").unwrap();
    }

    fn config(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.vm(name).join("config.json")).unwrap()).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        // The test runs in target/<profile>/deps.
        let this = std::env::current_exe().unwrap();
        let double = this.parent().unwrap().parent().unwrap().join("examples/tart-double");
        assert!(double.exists(), "{} is missing: cargo build --example tart-double", double.display());
        let mut command = Command::new(double);
        command.args(args).env("TART_HOME", self.home.path()).stdin(Stdio::null());
        command
    }

    fn tart(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().unwrap())
    }

    fn list(&self) -> Vec<Value> {
        let said = self.tart(&["list", "--format", "json"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        serde_json::from_str(&said.out).unwrap()
    }

    fn state(&self, name: &str) -> String {
        let row = self.list().into_iter().find(|r| r["Name"] == name).expect("a row");
        assert_eq!(row["Running"], row["State"] == "running");
        row["State"].as_str().unwrap().to_owned()
    }

    /// The process that holds the VM's lock, as the kernel tells it.
    fn holder(&self, name: &str) -> Option<i32> {
        let file = File::options().read(true).write(true).open(self.vm(name).join("config.json")).ok()?;
        fcntl_getlk(&file, &Flock::from(FlockType::ReadLock)).unwrap()?.pid.map(|p| p.as_raw_nonzero().get())
    }

    fn run(&self, args: &[&str]) -> Running {
        let child =
            self.command(&[&["run"], args].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running(Some(child))
    }

    /// Runs until the VM can be asked for: its lock is held and its socket there, so signals are heard as well.
    fn boot(&self, args: &[&str]) -> Running {
        // What an earlier run left, before this one can have made its own.
        let _ = fs::remove_file(self.vm(args[0]).join("control.sock"));
        let running = self.run(args);
        eventually("the VM runs", || {
            self.holder(args[0]) == Some(running.pid()) && self.vm(args[0]).join("control.sock").exists()
        });
        running
    }

    fn leases(&self, blocks: &[(&str, &str, i64)]) {
        let text: String = blocks
            .iter()
            .map(|(ip, hw, expires_in)| {
                let lease = jiff::Timestamp::now().as_second() + expires_in;
                format!(
                    "{{\n\tname=x\n\tip_address={ip}\n\thw_address={hw}\n\tidentifier={hw}\n\tlease=0x{lease:x}\n}}\n"
                )
            })
            .collect();
        fs::write(self.path("dhcpd_leases"), text).unwrap();
    }
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    signal: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Said {
        Said {
            code: output.status.code(),
            signal: output.status.signal(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn is(&self, code: i32, out: &str, err: &str) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (Some(code), out, err));
    }
}

struct Running(Option<Child>);

impl Running {
    fn pid(&self) -> i32 {
        self.0.as_ref().unwrap().id() as i32
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    fn lives(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    fn wait(mut self) -> Said {
        Said::of(self.0.take().unwrap().wait_with_output().unwrap())
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

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const MAC: &str = "0a:0b:0c:00:10:1f";

#[test]
fn wrong_usage_is_reported_as_in_swift() {
    let t = Tart::new(json!({"version": "2.33.0"}));
    t.make("a", "linux", MAC);
    t.tart(&["--version"]).is(0, "2.33.0\n", "");
    for args in [&[][..], &["--help"], &["run", "--help"], &["help", "stop"]] {
        let said = t.tart(args);
        assert!(said.code == Some(0) && said.out.starts_with("USAGE: tart") && said.err.is_empty(), "{said:?}");
    }
    let own = |usage: &str, see: &str, text: &str| {
        format!("Error: {text}\nUsage: {usage}\n  See '{see} --help' for more information.\n")
    };
    let stop = |text: &str| own("tart stop <name> [--timeout <timeout>]", "tart stop", text);
    t.tart(&["stop"]).is(64, "", &stop("Missing expected argument '<name>'"));
    t.tart(&["stop", "a", "--force"]).is(64, "", &stop("Unknown option '--force'"));
    t.tart(&["stop", "a", "b"]).is(64, "", &stop("Unexpected argument 'b'"));
    t.tart(&["stop", "a", "--timeout"]).is(64, "", &stop("Missing value for '--timeout <timeout>'"));
    t.tart(&["stop", "a", "-t", "x"]).is(64, "", &stop("The value 'x' is invalid for '--timeout <timeout>'"));
    // What is found after parsing is told with the usage of the bare program.
    let bare = |text: &str| own("tart <subcommand>", "tart", text);
    for (args, text) in [
        (&["clone", "a", "x/y"][..], "<new-name> should be a local name"),
        (&["clone", "a", "b", "--concurrency=0"], "network concurrency cannot be less than 1"),
        (&["create", "b"], "Please specify either a --from-ipsw or --linux option!"),
        (&["prune"], "at least one pruning criteria must be specified"),
        (&["list", "--source", "x"], "'x' is not a valid <source>"),
        (&["rename", "x", "y"], "failed to rename a non-existent local VM: x"),
        (&["rename", "a", "a"], "failed to rename VM a, target VM a already exists, delete it first!"),
        (&["run", "a", "--suspendable"], "You can only suspend macOS VMs"),
        (&["run", "a", "--vnc", "--vnc-experimental"], "--vnc and --vnc-experimental are mutually exclusive"),
        (
            &["run", "a", "--net-softnet-allow=10.0.0.0/8", "--net-bridged", "en0"],
            "--net-bridged, --net-softnet and --net-host are mutually exclusive",
        ),
        (
            &["run", "a", "--dir", "/tmp", "--dir", "x:/tmp"],
            "invalid --dir syntax: for multiple directory shares each one of them should be named",
        ),
    ] {
        t.tart(args).is(64, "", &bare(text));
    }
    assert_eq!(t.tart(&["run", "a", "--provisioning-opts", "x=y"]).code, Some(64), "a flag of 2.35");
    assert_eq!(t.tart(&["push", "a", "x/y:z"]).code, Some(70), "the double refuses with a code of its own");
    t.control(json!({"limits": 3}));
    assert_eq!(t.tart(&["list"]).code, Some(70), "an unknown key");
    t.control(json!({"rules": [{"then": {"crash": 3}}]}));
    assert_eq!(t.tart(&["list"]).code, Some(70), "an unknown effect");
}

#[test]
fn a_vm_runs_while_its_lock_is_held() {
    let t = Tart::new(json!({}));
    t.make("a", "linux", MAC);
    t.tart(&["run", "no"]).is(1, "", "Error: the specified VM \"no\" does not exist\n");
    for command in ["stop", "suspend", "delete", "get", "ip", "set"] {
        t.tart(&[command, "no"]).is(2, "", "the specified VM \"no\" does not exist\n");
    }
    t.tart(&["stop", "a"]).is(2, "", "VM \"a\" is not running\n");
    t.tart(&["suspend", "a"]).is(2, "", "VM \"VM \"a\" is not running\" is not running\n");

    let mut run = t.boot(&["a", "--no-graphics", "--no-audio", "--no-clipboard", "--root-disk-opts=sync=none"]);
    assert_eq!(t.state("a"), "running");
    t.tart(&["run", "a"]).is(2, "", "VM \"a\" is already running!\n");
    t.tart(&["delete", "a"]).is(1, "", "VM \"a\" is running\n");
    // None of these has the right to drop the lock, and none of them did.
    for args in [&["get", "a"][..], &["ip", "a"], &["set", "a", "--cpu", "3"], &["list"]] {
        assert_eq!(t.tart(args).code, Some(0));
    }
    assert_eq!(t.config("a")["cpuCount"], 3, "written under the running VM");
    assert_eq!(t.holder("a"), Some(run.pid()));
    assert!(run.lives());
    t.tart(&["stop", "a"]).is(0, "", "");
    run.wait().is(0, "Stopping VM...\n", "");
    assert_eq!(t.state("a"), "stopped");
    assert!(t.vm("a").join("control.sock").exists(), "a stale one stays");
    t.tart(&["delete", "a", "no", "b"]).is(2, "", "the specified VM \"no\" does not exist\n");
    assert!(!t.vm("a").exists());

    // Without a config.json there is nothing to lock: it "does not exist", and stays.
    t.make("b", "linux", MAC);
    fs::remove_file(t.vm("b").join("config.json")).unwrap();
    assert_eq!(t.tart(&["delete", "b"]).code, Some(2));
    assert!(t.vm("b").exists());
    let missing = "VM is missing some of its files (config.json, disk.img or nvram.bin)\n";
    t.tart(&["get", "b"]).is(1, "", missing);
    t.tart(&["run", "b"]).is(1, "", &format!("Error: {missing}"));
    assert_eq!(t.list(), Vec::<Value>::new(), "passed over in silence");
}

#[test]
fn signals_end_it_in_different_ways() {
    let t = Tart::new(json!({}));
    t.make("linux", "linux", MAC);
    t.make("mac", "darwin", "0a:0b:0c:00:10:20");
    let end = |name: &str, args: &[&str], signal: Signal| {
        let run = t.boot(&[&[name], args].concat());
        run.signal(signal);
        run.wait()
    };
    for signal in [Signal::TERM, Signal::HUP, Signal::QUIT, Signal::KILL] {
        let said = end("linux", &[], signal);
        assert_eq!((said.signal, said.out.as_str()), (Some(signal.as_raw()), ""));
        assert_eq!(t.state("linux"), "stopped");
    }
    end("linux", &[], Signal::INT).is(0, "Stopping VM...\n", "");
    end("linux", &[], Signal::USR2).is(
        0,
        "Requesting guest OS to stop...\nguest has stopped the virtual machine\n",
        "",
    );
    let said = end("mac", &[], Signal::USR1);
    assert!(said.code == Some(1) && said.out.starts_with("Failed to suspend the VM: "), "{said:?}");

    // A macOS guest shows a dialog, and nobody is there to answer.
    let mut run = t.boot(&["mac"]);
    run.signal(Signal::USR2);
    std::thread::sleep(Duration::from_millis(200));
    assert!(run.lives());
    run.signal(Signal::INT);
    run.wait().is(0, "Requesting guest OS to stop...\nStopping VM...\n", "");

    // Saved, restored, saved again, thrown away.
    let said = end("mac", &["--suspendable"], Signal::USR1);
    assert!(said.code == Some(0) && said.out.contains("snapshot created successfully!"), "{said:?}");
    assert_eq!(t.state("mac"), "suspended");
    let said = end("mac", &["--suspendable"], Signal::USR1);
    assert!(said.out.starts_with("restoring VM state from a snapshot...\nresuming VM...\n"), "{said:?}");
    t.tart(&["stop", "mac"]).is(0, "", "");
    assert_eq!(t.state("mac"), "stopped");
}

#[test]
fn a_sigint_may_be_lost_and_a_guest_may_crash_with_exit_0() {
    let t = Tart::new(json!({}));
    t.make("a", "linux", MAC);
    let rule = |then: Value| t.control(json!({"rules": [{"then": then}]}));

    rule(json!({"lost_sigints": 1}));
    let mut run = t.boot(&["a"]);
    run.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(200));
    assert!(run.lives(), "nobody heard the first");
    run.signal(Signal::INT);
    run.wait().is(0, "Stopping VM...\n", "");

    rule(json!({"sigint_window_ms": 10_000}));
    let begun = Instant::now();
    let run = t.boot(&["a"]);
    while begun.elapsed() < Duration::from_millis(500) {
        run.signal(Signal::INT);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(t.holder("a"), Some(run.pid()), "none of them was heard");
    // `stop` waits, and kills in the end.
    rule(json!({}));
    let begun = Instant::now();
    assert_eq!(t.tart(&["stop", "a", "-t", "0"]).code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(run.wait().signal, Some(9));

    rule(json!({"stop_takes_ms": 30_000}));
    let run = t.boot(&["a"]);
    assert_eq!(t.tart(&["stop", "a", "-t", "1"]).code, Some(0));
    let said = run.wait();
    assert_eq!((said.signal, said.out.as_str()), (Some(9), "Stopping VM...\n"));

    rule(json!({"crash_after_ms": 50, "crash_text": "Error Domain=VZErrorDomain Code=1"}));
    let line = "guest has stopped the virtual machine due to error: Error Domain=VZErrorDomain Code=1\n";
    t.tart(&["run", "a"]).is(0, line, "");
    rule(json!({"power_off_after_ms": 50}));
    t.tart(&["run", "a"]).is(0, "guest has stopped the virtual machine\n", "");
    rule(json!({"network_lost_after_ms": 50}));
    let said = t.tart(&["run", "a"]);
    assert!(said.code == Some(0) && said.out.contains(" has been disconnected with error: "), "{said:?}");
    rule(json!({"start_fails": {"stderr": "Error Domain=VZErrorDomain Code=-9\n", "exit": 1}}));
    t.tart(&["run", "a"]).is(1, "", "Error Domain=VZErrorDomain Code=-9\n");
}

#[test]
fn the_kernel_counts_macos_guests_only() {
    let t = Tart::new(json!({}));
    for (i, name) in ["m1", "m2", "m3", "m4"].iter().enumerate() {
        t.make(name, "darwin", &format!("0a:00:00:00:00:0{i}"));
    }
    t.make("linux", "linux", MAC);
    let text = |names: &str| format!("The number of VMs exceeds the system limit{names}\n");
    let linux = t.boot(&["linux"]);
    let (one, two) = (t.boot(&["m1"]), t.boot(&["m2"]));
    t.tart(&["run", "m3"]).is(1, "", &text(" (other running VMs: linux, m1, m2)"));
    one.signal(Signal::KILL);
    one.wait();
    let three = t.boot(&["m3"]);
    for run in [linux, two, three] {
        run.signal(Signal::INT);
        run.wait();
    }
    // Held by others, or leaked: nobody to name.
    t.control(json!({"foreign_kernel_slots": 2}));
    t.tart(&["run", "m1"]).is(1, "", &text(""));
    t.control(json!({"leak_slots": true}));
    for name in ["m1", "m2"] {
        let run = t.boot(&[name]);
        run.signal(Signal::KILL);
        run.wait();
    }
    t.tart(&["run", "m1"]).is(1, "", &text(""));
    assert_eq!(t.holder("m1"), None);
    fs::remove_dir_all(t.path("double/leaked")).unwrap();
    t.control(json!({}));
    drop(t.boot(&["m1"]));
    t.control(json!({"rules": [{"vm": "m*", "times": 1, "then": {"limit": {"names": ["x", "y"]}}}]}));
    t.tart(&["run", "m4"]).is(1, "", &text(" (other running VMs: x, y)"));

    // Four at once, and the kernel takes them one by one.
    t.control(json!({}));
    let mut runs = ["m1", "m2", "m3", "m4"].map(|name| t.run(&[name]));
    eventually("two are refused", || runs.iter_mut().filter_map(|r| (!r.lives()).then_some(())).count() >= 2);
    assert_eq!(["m1", "m2", "m3", "m4"].iter().filter(|n| t.holder(n).is_some()).count(), 2);
    let ended = runs.into_iter().filter_map(|mut run| (!run.lives()).then(|| run.wait())).collect::<Vec<_>>();
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert!(ended.iter().all(|s| s.err.starts_with("The number of VMs exceeds the system limit")), "{ended:?}");
}

#[test]
fn the_start_takes_the_lock_of_the_home_first() {
    let t = Tart::new(json!({}));
    t.make("a", "linux", MAC);
    let home = File::open(t.home.path()).unwrap();
    flock(&home, FlockOperation::LockExclusive).unwrap();
    let mut run = t.run(&["a"]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(run.lives() && t.holder("a").is_none(), "it waits");
    drop(home);
    eventually("the VM runs", || t.holder("a") == Some(run.pid()));

    // The MAC of a VM that runs is not given out twice, so it may change under whoever read it before the start.
    t.make("b", "linux", MAC);
    let twin = t.boot(&["b"]);
    twin.signal(Signal::INT);
    twin.wait().is(
        0,
        "There is already a running VM with the same MAC address!\nResetting VM to assign a new MAC address...\nStopping VM...\n",
        "",
    );
    assert_ne!(t.config("b")["macAddress"], MAC);
    assert_eq!(t.config("a")["macAddress"], MAC);
    assert_eq!(t.holder("a"), Some(run.pid()));
}

#[test]
fn the_list_has_the_shape_of_its_version() {
    let t = Tart::new(json!({}));
    t.tart(&["list", "--format", "json"]).is(0, "[\n\n]\n", "");
    t.make("b", "linux", MAC);
    t.make("a", "darwin", "0a:00:00:00:00:01");
    let image = t.path(&format!("cache/OCIs/localhost%3A5000/acme/macos/sha256:{}", "0".repeat(64)));
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::rename(t.vm("b"), &image).unwrap();
    std::os::unix::fs::symlink(&image, image.with_file_name("latest")).unwrap();
    t.make("b", "linux", MAC);

    let digest = format!("localhost:5000/acme/macos@sha256:{}", "0".repeat(64));
    let names: Vec<Value> = t.list().into_iter().map(|r| r["Name"].clone()).collect();
    assert_eq!(names, ["a", "b", "localhost:5000/acme/macos:latest", &digest]);
    let said = t.tart(&["list", "--format", "json", "--source", "oci"]);
    assert!(said.out.contains("localhost:5000\\/acme\\/macos:latest\"") && said.out.contains(" : "), "{}", said.out);
    assert_eq!(t.tart(&["list", "-q", "--source", "local", "--format", "json"]).out, "a\nb\n");
    t.tart(&["fqn", "localhost:5000/acme/macos"]).is(0, &format!("{digest}\n"), "");

    let row = t.list().remove(0);
    let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["Accessed", "Disk", "Name", "Running", "Size", "Source", "State"]);
    assert_eq!((&row["Disk"], &row["Source"]), (&json!(3), &json!("local")));
    row["Accessed"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    t.control(json!({"version": "2.30.4"}));
    let old = t.list().remove(0);
    assert!(old["SizeOnDisk"].is_u64() && old.get("Accessed").is_none(), "{old}");

    let got: Value = serde_json::from_str(&t.tart(&["get", "a", "--format", "json"]).out).unwrap();
    assert_eq!(
        got,
        json!({
            "OS": "darwin", "CPU": 2, "Memory": 1024, "Disk": 3, "DiskFormat": "raw", "Size": "0.000",
            "Display": "1024x768", "Running": false, "State": "stopped",
        })
    );
}

#[test]
fn set_ignores_locks_and_drops_unknown_keys() {
    let t = Tart::new(json!({}));
    t.make("mac", "darwin", MAC);
    t.make("linux", "linux", "0a:00:00:00:00:01");
    t.tart(&["set", "mac", "--display", "1920x1080px", "--display-refit"]).is(0, "", "");
    assert_eq!(t.config("mac")["display"], json!({"width": 1920, "height": 1080, "unit": "px"}));
    assert_eq!(t.config("mac")["displayRefit"], true);
    t.tart(&["set", "mac", "--display", "0x0", "--random-mac", "--random-serial"]).is(0, "", "");
    let config = t.config("mac");
    assert_eq!(config["display"], json!({"width": 1920, "height": 1080}), "the unit is always overwritten");
    assert_eq!(config.get("displayRefit"), None);
    assert!(config["macAddress"] != MAC && config["ecid"] != "ZWNpZA==", "{config}");
    for args in [["set", "mac", "--cpu", "1"], ["set", "mac", "--memory", "512"]] {
        let said = t.tart(&args);
        assert!(said.code == Some(1) && said.err.starts_with("Error: LessThanMinimalResourcesError: "), "{said:?}");
    }
    t.tart(&["set", "linux", "--cpu", "1", "--memory", "512", "--disk-size", "4"]).is(0, "", "");
    assert_eq!(
        (t.config("linux")["cpuCount"].clone(), t.config("linux")["memorySize"].clone()),
        (json!(1), json!(512 * MIB))
    );
    assert_eq!(fs::metadata(t.vm("linux").join("disk.img")).unwrap().len(), 4_000_000_000);
    t.tart(&["set", "linux", "--disk-size", "4"]).is(0, "", "");
    let said = t.tart(&["set", "linux", "--disk-size", "3"]);
    assert!(said.code == Some(1) && said.err.starts_with("new disk size of "), "{said:?}");
    // Unknown keys do not survive a rewrite.
    let mut config = t.config("linux");
    config["mine"] = json!(1);
    fs::write(t.vm("linux").join("config.json"), config.to_string()).unwrap();
    t.tart(&["set", "linux", "--cpu", "2"]).is(0, "", "");
    assert_eq!(t.config("linux").get("mine"), None);
}

#[test]
fn images_of_registries_are_found_in_the_cache_and_not_fetched() {
    let t = Tart::new(json!({}));
    t.make("local", "linux", MAC);
    t.tart(&["pull", "local"]).is(0, "\"local\" is a local image, nothing to pull here!\n", "");
    t.tart(&["pull", "a--b/c"]).is(1, "", "failed to parse remote name: a--b/c\n");
    assert_eq!(t.tart(&["clone", "localhost/acme/macos:1", "x"]).code, Some(70));
    let place = t.path("cache/OCIs/localhost/acme/macos");
    let image = place.join(format!("sha256:{}", "1".repeat(64)));
    fs::create_dir_all(&place).unwrap();
    fs::rename(t.vm("local"), &image).unwrap();
    std::os::unix::fs::symlink(&image, place.join("1")).unwrap();
    t.tart(&["clone", "localhost/acme/macos:1", "x"]).is(0, "", "");
    assert_eq!(t.config("x")["macAddress"], MAC, "the first clone has the image's MAC");
    t.tart(&["clone", "localhost/acme/macos:1", "y"]).is(0, "", "");
    assert_ne!(t.config("y")["macAddress"], MAC);
    // Without its tag the digest is garbage, unless somebody asked for it by name.
    fs::write(image.join(".explicitly-pulled"), "").unwrap();
    t.tart(&["prune", "--gc"]).is(0, "", "");
    assert!(image.exists());
    fs::remove_file(image.join(".explicitly-pulled")).unwrap();
    t.tart(&["delete", "localhost/acme/macos:1"]).is(0, "", "");
    assert!(!image.exists());
    let run = t.boot(&["x"]);
    t.tart(&["prune", "--entries", "vms", "--space-budget", "0"]).is(0, "", "");
    assert!(t.vm("x").exists() && !t.vm("y").exists(), "what runs is spared");
    drop(run);
}

#[test]
fn a_clone_overwrites_even_what_runs() {
    let t = Tart::new(json!({}));
    t.make("src", "darwin", MAC);
    t.make("dst", "linux", "0a:00:00:00:00:01");
    fs::write(t.vm("src").join("state.vzvmsave"), "").unwrap();
    let mut run = t.boot(&["dst"]);
    t.tart(&["clone", "src", "dst"]).is(0, "", "");
    assert!(run.lives(), "it runs on, without a name");
    assert_eq!((t.state("dst"), t.config("dst")["os"].as_str()), ("suspended".to_owned(), Some("darwin")));
    assert_eq!(t.config("dst")["macAddress"], MAC, "of a suspended VM the MAC is kept");
    run.signal(Signal::INT);
    run.wait();

    fs::remove_file(t.vm("src").join("state.vzvmsave")).unwrap();
    t.tart(&["clone", "src", "new"]).is(0, "", "");
    assert_ne!(t.config("new")["macAddress"], MAC, "a template among the VMs owns its MAC");
    assert_eq!(t.config("new")["ecid"], t.config("src")["ecid"]);
    assert_eq!(fs::metadata(t.vm("new").join("disk.img")).unwrap().len(), 3_500_000_000);
    t.tart(&["clone", "no", "x"]).is(2, "", "the specified VM \"no\" does not exist\n");
    // One that cannot be read breaks all of them.
    fs::write(t.vm("dst").join("config.json"), "{").unwrap();
    let said = t.tart(&["clone", "src", "y"]);
    assert!(said.code == Some(1) && said.err.starts_with("Error: ") && !t.vm("y").exists(), "{said:?}");
}

#[test]
fn every_command_but_clone_and_pull_collects_garbage() {
    let t = Tart::new(json!({}));
    t.make("a", "linux", MAC);
    let (held, left) = (t.path("tmp/HELD"), t.path("tmp/left"));
    let both = || {
        fs::create_dir_all(&held).unwrap();
        fs::create_dir_all(left.join("deep")).unwrap();
    };
    both();
    let lock = File::open(&held).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    t.tart(&["clone", "a", "b"]).is(0, "", "");
    assert!(left.exists());
    t.tart(&["stop", "a"]);
    assert!(held.exists() && !left.exists());
    drop(lock);
    t.tart(&["list"]);
    assert!(!held.exists());
    fs::create_dir(t.path("foreign")).unwrap();
    t.tart(&["list"]);
    assert!(t.path("foreign").exists());
}

#[test]
fn an_address_comes_from_the_leases_stale_ones_included() {
    let t = Tart::new(json!({"lease": {"after_ms": 300}}));
    t.make("a", "linux", MAC);
    let begun = Instant::now();
    t.tart(&["ip", "a"]).is(1, "", "no IP address found, is your VM running?\n");
    assert!(begun.elapsed() >= Duration::from_secs(1), "the shortest failure takes a second");
    // It need not run to have an address. Octets lose their leading zeros; the newest unexpired one wins.
    let hw = "1,a:b:c:0:10:1f";
    t.leases(&[
        ("127.64.0.1", hw, 50),
        ("127.64.0.2", hw, 100),
        ("127.64.0.3", hw, -5),
        ("127.64.0.4", "1,a:b:c:0:10:1e", 900),
    ]);
    t.tart(&["ip", "a"]).is(0, "127.64.0.2\n", "");
    fs::write(t.path("dhcpd_leases"), "{\nrubbish\n}\n").unwrap();
    let said = t.tart(&["ip", "a", "--wait", "5"]);
    assert!(said.code == Some(1) && said.err.starts_with("Error: "), "{said:?}");
    fs::remove_file(t.path("dhcpd_leases")).unwrap();

    let run = t.boot(&["a"]);
    let ip = t.tart(&["ip", "a", "--wait", "10"]).out;
    assert!(ip.starts_with("127.") && ip.ends_with('\n'), "{ip}");
    run.signal(Signal::INT);
    run.wait();
    t.tart(&["ip", "a"]).is(0, &ip, "");
    t.control(json!({"lease": {"stale": [{"ip": "127.64.9.9", "expires_in_seconds": 999_999}]}}));
    let _run = t.boot(&["a"]);
    t.tart(&["ip", "a"]).is(0, "127.64.9.9\n", "");

    t.make("duid", "linux", "0a:00:00:00:00:01");
    t.make("twin", "linux", "0a:00:00:00:00:02");
    t.make("none", "linux", "0a:00:00:00:00:03");
    t.control(json!({"rules": [
        {"vm": "duid", "then": {"lease": {"duid": true}}},
        {"vm": "twin", "then": {"lease": {"ip": "127.64.9.9"}}},
        {"vm": "none", "then": {"lease": {"none": true}}},
    ]}));
    let _runs = ["duid", "twin", "none"].map(|name| t.boot(&[name]));
    t.tart(&["ip", "duid"]).is(1, "", "no IP address found\n");
    assert!(fs::read_to_string(t.path("dhcpd_leases")).unwrap().contains("hw_address=ff,"));
    t.tart(&["ip", "twin"]).is(0, "127.64.9.9\n", "");
    t.tart(&["ip", "none"]).is(1, "", "no IP address found\n");

    let table = t.path("arp");
    fs::write(&table, "? (192.168.64.5) at a:0:0:0:0:3 on bridge100 ifscope [bridge]\n").unwrap();
    t.control(json!({"arp_file": table}));
    t.tart(&["ip", "none", "--resolver", "arp"]).is(0, "192.168.64.5\n", "");
}

#[test]
fn rules_bend_commands_and_are_counted() {
    let t = Tart::new(json!({"rules": [
        {"id": "hang", "command": "list", "times": 1, "then": {"hang_ms": 2000}},
        {"command": "delete", "vm": "a*b", "times": 2, "then": {"says_running": true}},
        {"command": "get", "times": 1, "then": {"garbage": {"stdout": "{\"OS\": ", "stdout_base64": "/w==", "exit": 0}}},
        {"command": "rename", "then": {"garbage": {"stderr": "lost\n", "exit": 1, "after": true}}},
    ]}));
    t.make("a-b", "linux", MAC);
    t.make("c", "linux", MAC);
    let begun = Instant::now();
    t.list();
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let begun = Instant::now();
    t.list();
    assert!(begun.elapsed() < Duration::from_secs(2), "once is once");
    let output = t.command(&["get", "c", "--format", "json"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"{\"OS\": \xff"[..]));
    assert_eq!(t.tart(&["delete", "c"]).code, Some(0), "another name");
    // Two uses, whoever comes at the same time.
    let children: Vec<Child> =
        (0..4).map(|_| t.command(&["delete", "a-b"]).stderr(Stdio::piped()).spawn().unwrap()).collect();
    let said: Vec<Said> = children.into_iter().map(|c| Said::of(c.wait_with_output().unwrap())).collect();
    let running = said.iter().filter(|s| s.err == "VM \"a-b\" is running\n").count();
    assert!(running >= 2 && !t.vm("a-b").exists(), "{said:?}");
    t.make("old", "linux", MAC);
    t.tart(&["rename", "old", "new"]).is(1, "", "lost\n");
    assert!(t.vm("new").exists(), "done, and the answer lost");
}

#[test]
fn exec_goes_through_the_socket() {
    let t = Tart::new(json!({"agent_patience_ms": 300}));
    t.make("a", "linux", MAC);
    t.tart(&["exec", "a", "true"]).is(2, "", "VM \"a\" is not running\n");
    let run = t.boot(&["a"]);
    let begun = Instant::now();
    let said = t.tart(&["exec", "a", "true"]);
    assert!(said.code == Some(1) && said.err.ends_with(", is the Tart Guest Agent running?\n"), "{said:?}");
    assert!(said.err.starts_with("Failed to connect to the VM using its control socket: "), "{said:?}");
    assert!(begun.elapsed() >= Duration::from_millis(300), "it tries for as long as it has patience");
    run.signal(Signal::INT);
    run.wait();

    t.control(json!({"agent": "host"}));
    let run = t.boot(&["a"]);
    t.tart(&["exec", "a", "echo", "--", "-i"]).is(0, "-- -i\n", "");
    t.tart(&["exec", "a", "sh", "-c", "echo out; echo err >&2; exit 7"]).is(7, "out\n", "err\n");
    t.tart(&["exec", "a", "sh", "-c", "kill -9 $$"]).is(255, "", "");
    t.tart(&["exec", "a", "cat"]).is(0, "", "");
    let said = t.tart(&["exec", "a", "/no/such/program"]);
    assert!(said.code == Some(1) && said.err.starts_with("Error: "), "{said:?}");
    assert_eq!(t.tart(&["exec", "-x", "a", "true"]).code, Some(64));
    assert!(t.tart(&["ip", "a", "--resolver", "agent"]).out.starts_with("127."));
    let many: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let mut child =
        t.command(&["exec", "-i", "a", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let to_send = many.clone();
    let feeder = std::thread::spawn(move || stdin.write_all(&to_send));
    assert_eq!(child.wait_with_output().unwrap().stdout, many);
    feeder.join().unwrap().unwrap();

    // The command ends with its stream, and so does all of its group; what has a session of its own does not.
    let mark = t.path("mark");
    let script = format!(
        "(sleep 1; echo >{0}.dead) & \
         setsid sh -c 'echo on; exec >/dev/null 2>&1; sleep 1; echo >{0}' </dev/null & wait; sleep 600",
        mark.display()
    );
    let mut child = t.command(&["exec", "a", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    read_line(child.stdout.take().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the detached one has ended its work", || mark.exists());
    assert!(!t.path("mark.dead").exists());
    run.signal(Signal::INT);
    assert_eq!(run.wait().code, Some(0));
}

fn read_line(from: impl std::io::Read) -> String {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(from), &mut line).unwrap();
    line
}

/// A real Linux guest in place of a Mac's: it is reached by its lease, finds the host at the NAT's gateway, dies with its owner.
#[test]
fn a_real_guest_lives_and_dies_with_its_owner() {
    let image = crate::support::image();
    let file = |name: &str| image.join(name).to_str().unwrap().to_owned();
    let description: Value = serde_json::from_slice(&fs::read(image.join("template.json")).unwrap()).unwrap();
    let t = Tart::new(json!({"agent_patience_ms": 60_000, "guest": {"qemu": {
        "kernel": file("vmlinuz"), "initramfs": file("initramfs.img"), "cmdline": description["cmdline"],
        "user": "runner", "key": file("id_ed25519"), "memory_mib": 192, "cpus": 1, "ssh_port": 2222,
    }}}));
    t.make("a", "linux", MAC);
    let disk = t.vm("a").join("disk.img");
    let convert = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw", &file("disk.qcow2")])
        .arg(&disk)
        .status()
        .unwrap();
    assert!(convert.success());
    let run = t.boot(&["a"]);
    t.tart(&["exec", "a", "id", "-un"]).is(0, "runner\n", "");
    t.tart(&["exec", "a", "sh", "-c", "echo $0 \"$1\" >&2; exit 9", "it's", "two words"]).is(9, "", "it's two words\n");
    let mut cat = t.command(&["exec", "-i", "a", "sh", "-c", "cat; echo end"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through\nend\n");

    // From the host by the lease, and from the guest at the address that Apple's network gives the host.
    let ip = t.tart(&["ip", "a"]).out.trim().to_owned();
    let banner = read_line(std::net::TcpStream::connect((ip.as_str(), 2222)).unwrap());
    assert!(banner.starts_with("SSH-2.0-"), "{banner}");
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://192.168.64.1:{}/", host.local_addr().unwrap().port());
    let answered = std::thread::spawn(move || {
        let (mut from, _) = host.accept().unwrap();
        let request = read_line(&from);
        from.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhere\n").unwrap();
        request
    });
    t.tart(&["exec", "a", "curl", "-sS", "--max-time", "20", &url]).is(0, "here\n", "");
    assert!(answered.join().unwrap().starts_with("GET / "));

    assert_eq!(hypervisors(&disk), 1);
    run.signal(Signal::USR2);
    run.wait().is(0, "Requesting guest OS to stop...\nguest has stopped the virtual machine\n", "");
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let run = t.boot(&["a"]);
        assert_eq!(hypervisors(&disk), 1);
        run.signal(signal);
        run.wait();
        eventually("the hypervisor is gone", || hypervisors(&disk) == 0);
    }
}

/// Processes that have this file open or on their command line.
fn hypervisors(disk: &Path) -> usize {
    let disk = disk.to_str().unwrap();
    let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    commands.filter(|c| String::from_utf8_lossy(c).contains(disk) && c.starts_with(b"qemu-system")).count()
}
