//! Hosts whose hardware acceleration is not what its probe showed. A stand-in simulates QEMU under KVM; under the emulator it is the
//! real one.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::Serve;

/// The shortest setting for how long a first guest may be silent: for guests that stay silent.
const FIRST_GUEST: Duration = Duration::from_secs(5);
/// The default of that setting: for guests that are to be heard of, which takes longer than the shortest on a busy machine.
const USUAL_FIRST_GUEST: Duration = Duration::from_secs(45);
/// From the end of a first guest's patience to the start of the next guest: stopping, removing, placing, cloning.
const NEXT_START: Duration = Duration::from_secs(15);

struct StandIn {
    dir: PathBuf,
}

impl StandIn {
    /// Puts the program into a directory of its own.
    fn new(data: &Path, plan: Value) -> StandIn {
        let dir = data.join("stand-in");
        std::fs::create_dir(&dir).unwrap();
        let stand_in = StandIn { dir };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doubles/qemu/stand-in.py");
        std::fs::copy(source, stand_in.program()).unwrap();
        std::fs::set_permissions(stand_in.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
        stand_in.plan(plan);
        stand_in
    }

    fn program(&self) -> PathBuf {
        self.dir.join(usual())
    }

    fn plan(&self, mut plan: Value) {
        plan["emulator"] = json!(usual());
        plan.as_object_mut().unwrap().entry("version").or_insert(json!("QEMU emulator version 7.2.0 (stand-in 1)"));
        std::fs::write(self.dir.join("stand-in.json"), plan.to_string()).unwrap();
    }

    /// How many guests were started under KVM.
    fn under_kvm(&self) -> usize {
        let log = std::fs::read_to_string(self.dir.join("stand-in.log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with("kvm ")).count()
    }
}

fn usual() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

async fn serve(accelerator: &str, first_guest: Duration, plan: Value) -> (Serve, StandIn) {
    let mut stand_in = None;
    let serve = Serve::prepared(|data| {
        let here = stand_in.insert(StandIn::new(data, plan));
        let setting = |key: &str, value: &str| (format!("MAYFLY_DRIVERS__QEMU__{key}"), value.to_owned());
        vec![
            setting("BINARY", here.program().to_str().unwrap()),
            setting("ACCELERATOR", accelerator),
            setting("FIRST_GUEST_SECONDS", &first_guest.as_secs().to_string()),
        ]
    })
    .await;
    (serve, stand_in.unwrap())
}

/// What `auto` looks at before it asks QEMU. Where there is no such device, it never comes to what is tested here.
fn has_kvm() -> bool {
    let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !opens {
        eprintln!("not tested, because there is no /dev/kvm that can be opened here");
    }
    opens
}

/// The driver as the host shows it, once its probe is over.
async fn accelerator_of(serve: &Serve) -> Value {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let host = serve.get("/host").await;
        let shown = host["drivers"].as_array().unwrap().iter().find(|d| d["name"] == "qemu" && d["usable"] == true);
        if let Some(driver) = shown {
            return driver.clone();
        }
        assert!(Instant::now() < patience, "no probe: {host:#}\n{}", serve.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const JOB: &str = "echo done; exit 3";

async fn created(serve: &Serve) -> String {
    let job = json!({"kind": "command", "command": JOB});
    serve.create(json!({"template": "micro", "runner": job})).await["id"].as_str().unwrap().to_owned()
}

/// The faults of a vm's events of this kind, by their codes.
async fn faults(serve: &Serve, id: &str, kind: &str) -> Vec<String> {
    let events = serve.get(&format!("/vms/{id}/events")).await;
    let of_kind = events["items"].as_array().unwrap().iter().filter(|e| e["type"] == kind);
    of_kind.map(|e| e["fault"]["code"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The attempt under the accelerator was the host's fault, once, and counted as none of the vm's.
async fn assert_blamed_on_the_host(serve: &Serve, id: &str) {
    assert_eq!(faults(serve, id, "host_refused").await, ["host.accelerator_failed"]);
    let failed = faults(serve, id, "attempt_failed").await;
    assert!(!failed.contains(&"host.accelerator_failed".to_owned()), "{failed:?}");
}

async fn done(serve: &Serve, id: &str) -> Value {
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!((&end["outcome"]["result"], &end["job"]["exit_code"]), (&json!("completed"), &json!(3)), "{end:#}");
    end
}

/// When each of a vm's guests was started.
fn boots(vm: &Value) -> Vec<jiff::Timestamp> {
    let entries = vm["timeline"].as_array().unwrap().iter().filter(|e| e["state"] == "booting");
    entries.map(|e| e["at"].as_str().unwrap().parse().unwrap()).collect()
}

/// Guests hang under an accelerator that passed its probe: both first vms run their jobs all the same, the next start of the
/// service does not try it again, and one with another QEMU does.
#[tokio::test(flavor = "multi_thread")]
async fn an_accelerator_under_which_guests_hang_is_set_aside_until_something_changes() {
    if !has_kvm() {
        return;
    }
    let (mut serve, stand_in) = serve("auto", FIRST_GUEST, json!({"kvm": "hangs"})).await;
    serve.template("micro", "seed", json!({})).await;
    assert_eq!(accelerator_of(&serve).await["accelerator"], "kvm");
    let began = Instant::now();
    let ids = [created(&serve).await, created(&serve).await];
    for id in &ids {
        let end = done(&serve, id).await;
        assert_blamed_on_the_host(&serve, id).await;
        // How long the emulator takes from here on depends on the machine.
        let starts = boots(&end);
        let took = Duration::try_from(starts[1].duration_since(starts[0])).unwrap();
        assert!(took < FIRST_GUEST + NEXT_START, "{took:?}: {end:#}");
    }
    eprintln!("two jobs were done after {:?}", began.elapsed());
    assert_eq!(stand_in.under_kvm(), 2);
    let driver = accelerator_of(&serve).await;
    let note = driver["note"].as_str().unwrap();
    assert_eq!(driver["accelerator"], "tcg");
    assert!(note.starts_with("kvm was disabled at ") && note.contains("did not call for 5 s"), "{note}");

    // A service that starts again knows.
    serve.stop();
    serve.spawn().await;
    let driver = accelerator_of(&serve).await;
    assert_eq!((&driver["accelerator"], driver["note"].as_str()), (&json!("tcg"), Some(note)));
    done(&serve, &created(&serve).await).await;
    assert_eq!(stand_in.under_kvm(), 2);

    // Another QEMU, under which guests run: the accelerator is tried, and trusted from then on.
    serve.stop();
    let version = "QEMU emulator version 7.2.0 (stand-in 2)";
    stand_in.plan(json!({"kvm": "works", "version": version}));
    serve.set("MAYFLY_DRIVERS__QEMU__FIRST_GUEST_SECONDS", &USUAL_FIRST_GUEST.as_secs().to_string());
    serve.spawn().await;
    let driver = accelerator_of(&serve).await;
    assert_eq!((&driver["accelerator"], &driver["note"]), (&json!("kvm"), &Value::Null));
    done(&serve, &created(&serve).await).await;
    assert!(stand_in.under_kvm() >= 3, "it is tried");
    let known: Value =
        serde_json::from_slice(&std::fs::read(serve.dir.join("qemu-accelerator.json")).unwrap()).unwrap();
    assert_eq!(known["verdict"], "proven", "{known:#}");
    serve.assert_nothing_left().await;
}

/// The hypervisor gives its first guest up after a while, as a software KVM does that meets an instruction it does not know.
#[tokio::test(flavor = "multi_thread")]
async fn an_accelerator_that_breaks_under_its_first_guest_is_set_aside_at_once() {
    if !has_kvm() {
        return;
    }
    let (serve, stand_in) = serve("auto", USUAL_FIRST_GUEST, json!({"kvm": "breaks"})).await;
    serve.template("micro", "seed", json!({})).await;
    let id = created(&serve).await;
    done(&serve, &id).await;
    assert_blamed_on_the_host(&serve, &id).await;
    assert_eq!(stand_in.under_kvm(), 1);
    let note = accelerator_of(&serve).await["note"].clone();
    assert!(note.as_str().unwrap().contains("KVM internal error. Suberror: 1"), "{note}");
    let log = serve.log_of(&id, "hypervisor").await;
    assert!(log.contains("the hypervisor of attempt 1 wrote") && log.contains("emulation failure"), "{log}");
    serve.assert_nothing_left().await;
}

/// Each way in which QEMU stops a guest and lives on: under a configured accelerator nothing is tried instead, and the vm's
/// record says what happened.
#[tokio::test(flavor = "multi_thread")]
async fn every_stop_has_its_own_cause() {
    let (serve, stand_in) = serve("kvm", USUAL_FIRST_GUEST, json!({"kvm": "hangs"})).await;
    serve.template("micro", "seed", json!({})).await;
    for (plan, code) in [
        (json!({"kvm": "breaks"}), "hypervisor.failed"),
        (json!({"kvm": "stops", "state": "guest-panicked", "event": "GUEST_PANICKED"}), "guest.panicked"),
        (json!({"kvm": "stops", "state": "watchdog", "event": "WATCHDOG"}), "guest.watchdog"),
        (json!({"kvm": "stops", "state": "paused", "event": "RESUME"}), "instance.paused"),
    ] {
        stand_in.plan(plan.clone());
        let began = Instant::now();
        let job = json!({"kind": "command", "command": JOB});
        let request = json!({"template": "micro", "runner": job, "budgets": {"max_attempts": 1}});
        let vm = serve.create(request).await;
        let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
        assert_eq!(
            (&end["outcome"]["code"], &end["outcome"]["result"]),
            (&json!(code), &json!("failed")),
            "{plan}: {end:#}"
        );
        eprintln!("{code}: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(20), "{plan}: {:?}", began.elapsed());
    }
    serve.assert_nothing_left().await;
}
