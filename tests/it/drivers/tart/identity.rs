//! Which VM and which run is ours, and what is known when Tart's own list is not to be had.

use super::*;

/// Runs a VM as a human would.
fn by_hand(home: &Path, name: &str) -> Stranger {
    let child = std::process::Command::new(double())
        .args(["run", name, "--no-graphics"])
        .env("TART_HOME", home)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let stranger = Stranger(child);
    let config = home.join("vms").join(name).join("config.json");
    let began = Instant::now();
    while holder(&config) != Some(stranger.0.id()) {
        assert!(began.elapsed() < SOON, "{name} does not run");
        std::thread::sleep(Duration::from_millis(10));
    }
    stranger
}

impl TartRig {
    fn runs(&self, name: &InstanceName) -> PathBuf {
        self.dir.path().join("runs").join(name.as_str())
    }

    async fn own(&self) -> Vec<(String, bool)> {
        let listed = self.restarted().list().await.unwrap();
        listed.into_iter().filter(|l| l.ours).map(|l| (l.name, l.running)).collect()
    }
}

#[tokio::test]
async fn a_copy_in_another_home_is_not_ours() {
    let rig = TartRig::new();
    let spec = rig.created(rig.linux()).await;
    let home = rig.dir.path().join("another home");
    let copy = home.join("vms").join(spec.name.as_str());
    std::fs::create_dir_all(&copy).unwrap();
    for file in ["config.json", "disk.img", "nvram.bin"] {
        std::fs::copy(rig.vm(&spec.name).join(file), copy.join(file)).unwrap();
    }
    let mut theirs = by_hand(&home, spec.name.as_str());
    assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
    assert_eq!(rig.own().await, [(spec.name.to_string(), false)]);
    rig.driver.start(&spec).await.unwrap();
    rig.driver.stop(&spec.name, Duration::from_secs(5)).await.unwrap();
    rig.driver.destroy(&spec.name).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
    assert!(theirs.lives());
}

#[tokio::test]
async fn a_foreign_run_is_shown_and_not_ended() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    rig.driver.stop(&spec.name, Duration::from_secs(5)).await.unwrap();
    let mut theirs = by_hand(&rig.home(), spec.name.as_str());
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    let error = rig.driver.destroy(&spec.name).await.unwrap_err();
    assert!(error.summary.contains(&format!("process {}", theirs.0.id())), "{error}");
    assert!(error.summary.contains("was not started by Mayfly"), "{error}");
    assert_eq!(rig.own().await, [(spec.name.to_string(), true)], "it takes room");
    assert!(theirs.lives() && rig.vm(&spec.name).exists());
    drop(theirs);
    rig.driver.destroy(&spec.name).await.unwrap();
    assert_eq!(rig.own().await, []);
}

#[tokio::test]
async fn a_run_of_an_older_version_is_taken_over() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    // It noted nothing.
    for file in std::fs::read_dir(rig.runs(&spec.name)).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "process") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(matches!(rig.inspect(&spec.name).await, Observation::Running { .. }));
    rig.restarted().start(&spec).await.unwrap();
    // From now on it is known even without its lock's file.
    std::fs::remove_dir_all(rig.vm(&spec.name)).unwrap();
    assert_eq!(rig.own().await, [(spec.name.to_string(), true)]);
    rig.driver.destroy(&spec.name).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
    assert_eq!(rig.own().await, []);
}

#[tokio::test]
async fn one_broken_vm_hides_and_blocks_no_other() {
    let rig = TartRig::new();
    let sound = rig.started(rig.linux()).await;
    let break_it: [fn(&Path); 4] = [
        |config| std::fs::write(config, "{ \"version\": 1, \"os\": \"lin").unwrap(),
        |config| std::fs::write(config, "{ \"version\": 2 }").unwrap(),
        |config| std::fs::write(config, "").unwrap(),
        |config| {
            std::fs::remove_file(config).unwrap();
            std::fs::create_dir(config).unwrap();
        },
    ];
    for (n, break_it) in break_it.into_iter().enumerate() {
        let broken = rig.created(rig.linux()).await;
        break_it(&rig.vm(&broken.name).join("config.json"));
        // As a newer Tart does, which reads every VM's configuration.
        rig.rule(json!({ "id": n.to_string(), "command": "list", "then": { "garbage": { "stdout": "", "stderr": "Error: keyNotFound\n", "exit": 1 } } }));
        let mut own = rig.own().await;
        own.sort();
        let mut expected = [(sound.name.to_string(), true), (broken.name.to_string(), false)];
        expected.sort();
        assert_eq!(own, expected, "{n}");
        rig.driver.destroy(&broken.name).await.unwrap();
        assert_eq!(rig.inspect(&broken.name).await, Observation::Absent, "{n}");
        assert_eq!(rig.own().await, [(sound.name.to_string(), true)], "{n}");
    }
    assert!(matches!(rig.inspect(&sound.name).await, Observation::Running { .. }));
    rig.driver.destroy(&sound.name).await.unwrap();
}

#[tokio::test]
async fn a_late_delete_of_an_earlier_attempt_does_not_meet_the_next_one() {
    let rig = TartRig::new();
    let first = rig.created(rig.linux()).await;
    let late = |name: &InstanceName| {
        let mut command = std::process::Command::new(double());
        command.args(["delete", name.as_str()]).env("TART_HOME", rig.home()).stderr(std::process::Stdio::null());
        command.status().unwrap()
    };
    rig.driver.destroy(&first.name).await.unwrap();
    let second = InstanceSpec { name: first.name.vm_id().instance_of(2), ..rig.linux() };
    rig.driver.create(&second).await.unwrap();
    assert!(!late(&first.name).success());
    assert_eq!(rig.inspect(&second.name).await, Observation::Stopped);
    assert_eq!(rig.inspect(&first.name).await, Observation::Absent);
    rig.driver.destroy(&first.name).await.unwrap();
    rig.driver.start(&second).await.unwrap();
    assert_eq!(rig.own().await, [(second.name.to_string(), true)]);
    rig.driver.destroy(&second.name).await.unwrap();
}
