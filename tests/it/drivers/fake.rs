//! The fake keeps the contract, and breaks it on demand only.

use std::{sync::Arc, time::Duration};

use mayfly::{
    domain::{
        Arch, Code, GuestOs, InstanceName, VmId,
        event::GoneCause,
        template::{DiskFormat, TemplateFiles},
    },
    drivers::{
        Driver, ErrorKind, GuestNetwork, InstanceSpec, Observation,
        fake::{Behaviour, Crash, Fake, FakeWorld, Verb},
    },
};

use super::conformance::{self, Rig};

struct FakeRig(Arc<FakeWorld>);

fn spec(id: VmId) -> InstanceSpec {
    InstanceSpec {
        name: id.instance(),
        os: GuestOs::Linux,
        arch: Arch::of_this_host().unwrap_or(Arch::X86_64),
        cpus: 2,
        memory_mib: 512,
        disk_format: DiskFormat::Raw,
        files: TemplateFiles { disk: "/none".into(), ..TemplateFiles::default() },
        cmdline: None,
        seed: None,
        network: GuestNetwork {
            policy: mayfly::domain::NetworkPolicy { mode: mayfly::domain::NetworkMode::Isolated, allow: Vec::new() },
            guest_api: "/none".into(),
        },
    }
}

impl Rig for FakeRig {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(Fake::new(self.0.clone()))
    }

    fn restarted(&self) -> Arc<dyn Driver> {
        self.driver()
    }

    fn spec(&self, id: VmId) -> InstanceSpec {
        self.0.behave(Behaviour::default());
        spec(id)
    }

    fn deaf(&self, id: VmId) -> InstanceSpec {
        self.0.behave(Behaviour { obeys_power_down: false, ..Behaviour::default() });
        spec(id)
    }

    async fn up(&self, _name: &InstanceName) {}

    fn grace(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn power_off(&self, name: &InstanceName) -> bool {
        self.0.end(name, GoneCause::GuestPowerOff)
    }

    async fn foreign(&self) -> (String, Box<dyn std::any::Any + Send>) {
        self.0.add_foreign("stranger", GuestOs::Macos, 4, 8192);
        ("stranger".to_owned(), Box::new(()))
    }
}

#[tokio::test]
async fn fake_conforms() {
    let rig = FakeRig(FakeWorld::new());
    assert_eq!(conformance::all(&rig).await, 17);
    let violations = rig.0.violations();
    assert_eq!(violations.len(), 1, "only the case that means to: {violations:?}");
}

#[tokio::test]
async fn the_script_is_followed() {
    let world = FakeWorld::new();
    let driver = Fake::new(world.clone());
    let [a, b] = [(); 2].map(|()| spec(VmId::mint()));

    world.fail_next(Verb::Create, 2, ErrorKind::Retry, Code::CloneFailed, "no luck");
    for _ in 0..2 {
        let error = driver.create(&a).await.unwrap_err();
        assert_eq!((error.kind, error.code, error.summary.as_str()), (ErrorKind::Retry, Code::CloneFailed, "no luck"));
    }
    driver.create(&a).await.unwrap();
    driver.create(&b).await.unwrap();

    world.limit(GuestOs::Linux, Some(1));
    driver.start(&a).await.unwrap();
    let error = driver.start(&b).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostLimit));
    world.limit(GuestOs::Linux, None);
    driver.start(&b).await.unwrap();
    driver.start(&b).await.unwrap();
    let snapshot = world.snapshot();
    assert_eq!((snapshot.starts, snapshot.running(), snapshot.calls(Verb::Start)), (2, 2, 4));
    assert_eq!((world.peak(), world.peak_of(GuestOs::Linux), world.peak_of(GuestOs::Macos)), (2, 2, 0));

    world.hang(Verb::List, true);
    let list = tokio::spawn({
        let world = world.clone();
        async move { Fake::new(world).list().await }
    });
    world.until(|s| s.calls(Verb::List) == 1).await;
    assert!(!list.is_finished());
    world.hang(Verb::List, false);
    assert_eq!(list.await.unwrap().unwrap().len(), 2);
}

#[tokio::test]
async fn a_crash_leaves_what_was_done_by_then() {
    let world = FakeWorld::new();
    let spec = spec(VmId::mint());
    for (n, (verb, crash, left)) in [
        (Verb::Create, Crash::Before, Observation::Absent),
        (Verb::Create, Crash::Halfway, Observation::Broken { detail: "only a part of it is there".to_owned() }),
        (Verb::Create, Crash::After, Observation::Stopped),
        (Verb::Start, Crash::After, Observation::Running { ssh: None, agent: None, ssh_unseen: None }),
        (Verb::Stop, Crash::After, Observation::Stopped),
        (Verb::Destroy, Crash::After, Observation::Absent),
    ]
    .into_iter()
    .enumerate()
    {
        world.crash_next(verb, crash);
        let (driver, spec) = (Fake::new(world.clone()), spec.clone());
        let call = tokio::spawn(async move {
            match verb {
                Verb::Create => driver.create(&spec).await,
                Verb::Start => driver.start(&spec).await,
                Verb::Stop => driver.stop(&spec.name, Duration::ZERO).await,
                _ => driver.destroy(&spec.name).await,
            }
        });
        world.until(|s| s.crashes == n + 1).await;
        call.abort();
        let found = world.snapshot().instances.into_values().next();
        assert_eq!(found.unwrap_or(Observation::Absent), left, "{verb:?} {crash:?}");
    }
}

#[tokio::test]
async fn a_program_plays_the_guest() {
    let world = FakeWorld::new();
    world.on_boot(|guest| {
        tokio::spawn(async move { guest.power_off() });
    });
    let (driver, spec) = (Fake::new(world.clone()), spec(VmId::mint()));
    driver.create(&spec).await.unwrap();
    driver.start(&spec).await.unwrap();
    world.until(|s| s.starts == 1 && s.running() == 0).await;
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
}
