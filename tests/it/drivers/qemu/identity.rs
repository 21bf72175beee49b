//! Which process is an instance's: by the lock, by whose it is and by when it started, and never by what it calls itself.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command},
};

use mayfly::drivers::qemu::AcceleratorChoice;
use rustix::process::{Signal, kill_process};

use super::*;

/// Of the host's users the one that owns nothing.
const NOBODY: u32 = 65534;
const WITHIN: Duration = Duration::from_secs(60);

/// A process that shows the arguments of another one, and waits.
struct LookAlike(Child);

impl LookAlike {
    fn of(args: &[String], uid: Option<u32>) -> Self {
        let mut command = Command::new("/bin/sh");
        command.arg0(&args[0]).args(["-c", "read line"]).args(&args[1..]).stdin(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let child = command.spawn().unwrap();
        // Until it is executed, it shows what this process does.
        while arguments(child.id()).first() != args.first() {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for LookAlike {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn arguments(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn emulating() -> QemuRig {
    let mut rig = QemuRig::new();
    rig.driver = Arc::new(Qemu::new(emulated(rig.dir.path())).unwrap());
    rig
}

fn emulated(dir: &Path) -> Settings {
    Settings { accelerator: AcceleratorChoice::Tcg, count_foreign: true, ..settings(dir) }
}

impl QemuRig {
    fn again(&self) -> Qemu {
        Qemu::new(emulated(self.dir.path())).unwrap()
    }

    fn instance_dir(&self, name: &InstanceName) -> PathBuf {
        self.dir.path().join("instances").join(name.as_str())
    }

    fn arguments(&self, name: &InstanceName) -> Vec<String> {
        arguments(self.pid(name).as_raw_nonzero().get().cast_unsigned())
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WITHIN, future).await.unwrap_or_else(|_| panic!("{what} takes longer than {WITHIN:?}"))
}

#[tokio::test]
async fn a_similar_process_of_another_user_is_foreign() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root can start a process of another user");
        return;
    }
    let rig = emulating();
    let spec = rig.started(X86_DEAF).await;
    let args = rig.arguments(&spec.name);
    let mut impostor = LookAlike::of(&args, Some(NOBODY));
    // Beside the real one, and of an instance that is nobody's.
    let stray = VmId::mint();
    let renamed = |text: &String| text.replace(&spec.name.vm_id().to_string(), &stray.to_string());
    let mut stranger = LookAlike::of(&args.iter().map(renamed).collect::<Vec<_>>(), Some(NOBODY));

    let list = rig.driver.list().await.unwrap();
    let of = |name: &InstanceName, ours| {
        list.iter().filter(|l| l.name == name.as_str() && l.ours == ours && l.running).count()
    };
    assert_eq!((of(&spec.name, true), of(&spec.name, false)), (1, 1), "{list:?}");
    assert_eq!((of(&stray.instance(), true), of(&stray.instance(), false)), (0, 1), "{list:?}");

    soon("stop", rig.driver.stop(&spec.name, Duration::ZERO)).await.unwrap();
    assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    soon("destroy", rig.driver.destroy(&spec.name)).await.unwrap();
    soon("destroy", rig.driver.destroy(&stray.instance())).await.unwrap();
    assert_eq!(rig.again().inspect(&spec.name).await.unwrap(), Observation::Absent);
    assert!(!rig.again().list().await.unwrap().iter().any(|l| l.ours));
    assert!(impostor.lives() && stranger.lives());
}

#[tokio::test]
async fn a_process_of_our_own_user_is_not_ended_for_its_arguments() {
    let rig = emulating();
    let spec = rig.started(X86_DEAF).await;
    let args = rig.arguments(&spec.name);
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    let mut impostor = LookAlike::of(&args, None);
    // It may be a QEMU on its way up; for a while that is waited for.
    soon("destroy", rig.driver.destroy(&spec.name)).await.unwrap();
    assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Absent);
    assert!(!rig.driver.list().await.unwrap().iter().any(|l| l.ours));
    assert!(impostor.lives());
}

#[tokio::test]
async fn an_instance_without_its_pid_file_is_found_by_its_start() {
    let rig = emulating();
    let spec = rig.started(X86_DEAF).await;
    let pid = rig.pid(&spec.name);
    std::fs::remove_file(rig.instance_dir(&spec.name).join("qemu.pid")).unwrap();
    assert!(matches!(rig.again().inspect(&spec.name).await.unwrap(), Observation::Running { .. }));
    // Also where an older version has noted nothing.
    std::fs::remove_file(rig.instance_dir(&spec.name).join("qemu.process")).unwrap();
    assert!(matches!(rig.again().inspect(&spec.name).await.unwrap(), Observation::Running { .. }));
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    let process = mayfly::drivers::process::Process::find(pid.as_raw_nonzero().get()).await.unwrap();
    assert!(process.is_none(), "{process:?}");
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn a_note_of_an_earlier_process_is_not_believed() {
    let rig = emulating();
    let spec = rig.bare(VmId::mint(), X86_DEAF);
    rig.driver.create(&spec).await.unwrap();
    // This very process, at another time.
    let note = format!("{{\"pid\":{},\"started\":\"an earlier boot:1\"}}", std::process::id());
    std::fs::write(rig.instance_dir(&spec.name).join("qemu.process"), note).unwrap();
    assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    rig.driver.destroy(&spec.name).await.unwrap();
}

/// As an older version has left it: it ended before it could make sure that its guest leaves word of its end.
#[tokio::test]
async fn a_guest_that_was_taken_over_leaves_word_of_its_end() {
    let rig = emulating();
    let spec = rig.started(&[X86_SLEEP, X86_SLEEP, X86_SLEEP, X86_POWER_OFF].concat()).await;
    let args: Vec<String> = rig.arguments(&spec.name).into_iter().filter(|arg| arg != "-S").collect();
    kill_process(rig.pid(&spec.name), Signal::KILL).unwrap();
    while rig.driver.inspect(&spec.name).await.unwrap() != Observation::Stopped {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(Command::new(&args[0]).args(&args[1..]).status().unwrap().success());
    let again = rig.again();
    assert_eq!(soon("ended", again.ended(&spec.name)).await.unwrap(), GoneCause::GuestPowerOff);
    again.destroy(&spec.name).await.unwrap();
}

/// A guest does not begin before its end will be on record, so there is no moment in which the service may not die.
#[tokio::test]
async fn no_guest_runs_before_its_end_will_be_on_record() {
    let rig = emulating();
    let spec = rig.started(X86_DEAF).await;
    let args = rig.arguments(&spec.name);
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    // The start, up to where the service would be killed.
    let mut started = Command::new(&args[0]).args(&args[1..]).spawn().unwrap();
    let socket = rig.instance_dir(&spec.name).join("qmp.sock");
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(started.try_wait().unwrap().is_none(), "QEMU refused to start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(rig.again().inspect(&spec.name).await.unwrap(), Observation::Running { .. }));
    let mut qmp = std::os::unix::net::UnixStream::connect(socket).unwrap();
    qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-status\"}{\"execute\":\"nothing\"}\n")
        .unwrap();
    qmp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut said = String::new();
    while !said.contains("CommandNotFound") {
        let mut bytes = [0; 4096];
        let n = qmp.read(&mut bytes).unwrap();
        said.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    drop(qmp);
    assert!(said.contains("\"prelaunch\""), "{said}");
    rig.again().start(&spec).await.unwrap();
    assert!(matches!(rig.again().inspect(&spec.name).await.unwrap(), Observation::Running { ssh: Some(_), .. }));
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    // The driver may have taken its status already.
    let _ = started.wait();
    assert_eq!(rig.driver.ended(&spec.name).await.unwrap(), GoneCause::HostStop);
    rig.driver.destroy(&spec.name).await.unwrap();
}
