//! What every driver must do, as one list of cases. Each case leaves nothing behind, and the next one checks that.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use mayfly::{
    domain::{InstanceName, VmId, event::GoneCause},
    drivers::{Driver, InstanceSpec, Observation},
};

/// A driver with what its guests need, and with what only the outside can do to them.
pub trait Rig: Sync {
    fn driver(&self) -> Arc<dyn Driver>;

    /// Another driver object on the same hypervisor, as after a restart of Mayfly.
    fn restarted(&self) -> Arc<dyn Driver>;

    /// A guest that powers down when asked to, as soon as it is up.
    fn spec(&self, id: VmId) -> InstanceSpec;

    /// A guest that never does.
    fn deaf(&self, id: VmId) -> InstanceSpec;

    /// Waits until a guest of `spec` would hear the power button.
    fn up(&self, name: &InstanceName) -> impl Future<Output = ()> + Send;

    /// Asks the guest itself to power down, where the driver's `stop` cannot ask it.
    fn ask(&self, _name: &InstanceName) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// How long such a guest may take to power down.
    fn grace(&self) -> Duration;

    /// Makes a running guest power itself off. `false`: this rig cannot.
    fn power_off(&self, name: &InstanceName) -> impl Future<Output = bool> + Send;

    /// Runs a stranger's guest while the returned value lives.
    fn foreign(&self) -> impl Future<Output = (String, Box<dyn std::any::Any + Send>)> + Send;
}

/// Longer than anything but a guest's boot takes.
const SOON: Duration = Duration::from_secs(20);

/// Runs cases and counts them.
macro_rules! cases {
    ($rig:ident: $($name:ident)+) => {
        [$({
            let began = Instant::now();
            let id = VmId::mint();
            $name($rig, id).await;
            let name = id.instance();
            let driver = $rig.driver();
            assert_eq!(
                driver.inspect(&name).await.unwrap(),
                Observation::Absent,
                concat!(stringify!($name), " leaves nothing")
            );
            assert!(!shows(&*driver, &name).await, concat!(stringify!($name), " leaves nothing in the list"));
            eprintln!("conformance: {} {:?}", stringify!($name), began.elapsed());
        }),+].len()
    };
}

/// Runs every case; says how many there were.
pub async fn all(rig: &impl Rig) -> usize {
    as_far_as_booted(rig).await + cases!(rig: stop_lets_the_guest_power_down the_guests_own_end_is_reported)
}

/// The cases in which a guest need do nothing after it was booted.
pub async fn as_far_as_booted(rig: &impl Rig) -> usize {
    cases!(rig:
        says_what_it_can_do
        nothing_is_absent
        ending_what_is_absent_is_success
        create_twice_gives_one_stopped_instance
        start_twice_gives_one_running_instance
        start_without_create_fails
        an_instance_that_ended_is_not_started_again
        a_running_instance_survives_create
        stop_escalates_when_the_guest_is_deaf
        destroy_takes_a_running_instance
        destroy_takes_a_stopped_instance
        the_end_is_reported_with_its_cause
        the_end_is_reported_to_a_second_listener
        a_restart_finds_what_runs
        the_list_shows_own_and_foreign_instances
    )
}

async fn shows(driver: &dyn Driver, name: &InstanceName) -> bool {
    driver.list().await.unwrap().iter().any(|l| l.name == name.as_str())
}

async fn is_running(driver: &dyn Driver, name: &InstanceName) -> bool {
    matches!(driver.inspect(name).await.unwrap(), Observation::Running { .. })
}

async fn running(driver: &dyn Driver, spec: &InstanceSpec) {
    driver.create(spec).await.unwrap();
    driver.start(spec).await.unwrap();
    assert!(is_running(driver, &spec.name).await, "a started instance runs");
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} took longer than {SOON:?}"),
    }
}

async fn says_what_it_can_do(rig: &impl Rig, id: VmId) {
    let driver = rig.driver();
    let spec = rig.spec(id);
    assert!(driver.capabilities().guests.contains(&spec.os));
    let probe = driver.probe(false).await.unwrap();
    assert_eq!(probe.arch, spec.arch);
    assert_eq!(driver.probe(false).await.unwrap(), probe, "a probe is remembered");
}

async fn nothing_is_absent(rig: &impl Rig, id: VmId) {
    let driver = rig.driver();
    assert_eq!(driver.inspect(&id.instance()).await.unwrap(), Observation::Absent);
    assert_eq!(soon("ended", driver.ended(&id.instance())).await.unwrap(), GoneCause::Unknown);
}

async fn ending_what_is_absent_is_success(rig: &impl Rig, id: VmId) {
    let driver = rig.driver();
    driver.stop(&id.instance(), Duration::ZERO).await.unwrap();
    soon("stop", driver.stop(&id.instance(), Duration::from_secs(60))).await.unwrap();
    driver.destroy(&id.instance()).await.unwrap();
}

async fn create_twice_gives_one_stopped_instance(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.spec(id));
    for _ in 0..2 {
        driver.create(&spec).await.unwrap();
        assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    }
    assert_eq!(driver.list().await.unwrap().iter().filter(|l| l.name == spec.name.as_str()).count(), 1);
    driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped, "stop removes nothing");
    driver.destroy(&spec.name).await.unwrap();
}

async fn start_twice_gives_one_running_instance(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    let before = driver.inspect(&spec.name).await.unwrap();
    driver.start(&spec).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), before, "it is the same guest");
    assert_eq!(driver.list().await.unwrap().iter().filter(|l| l.name == spec.name.as_str()).count(), 1);
    driver.destroy(&spec.name).await.unwrap();
}

async fn start_without_create_fails(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.spec(id));
    assert!(driver.start(&spec).await.is_err());
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Absent);
}

/// Its guest may have done what it was made for, and would do it again.
async fn an_instance_that_ended_is_not_started_again(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    for driver in [driver.clone(), rig.restarted()] {
        driver.start(&spec).await.unwrap();
        assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
        soon("ended", driver.ended(&spec.name)).await.unwrap();
    }
    // A fresh clone is another matter.
    driver.create(&spec).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    driver.start(&spec).await.unwrap();
    assert!(is_running(&*driver, &spec.name).await);
    driver.destroy(&spec.name).await.unwrap();
}

async fn a_running_instance_survives_create(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    driver.create(&spec).await.unwrap();
    assert!(is_running(&*driver, &spec.name).await);
    driver.destroy(&spec.name).await.unwrap();
}

async fn stop_escalates_when_the_guest_is_deaf(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    let grace = Duration::from_millis(700);
    let began = Instant::now();
    soon("stop", driver.stop(&spec.name, grace)).await.unwrap();
    assert!(began.elapsed() >= grace, "it was given its grace");
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    driver.destroy(&spec.name).await.unwrap();
}

async fn stop_lets_the_guest_power_down(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.spec(id));
    running(&*driver, &spec).await;
    rig.up(&spec.name).await;
    let listener = tokio::spawn({
        let (driver, name) = (driver.clone(), spec.name.clone());
        async move { driver.ended(&name).await }
    });
    let began = Instant::now();
    rig.ask(&spec.name).await;
    driver.stop(&spec.name, rig.grace()).await.unwrap();
    assert!(began.elapsed() < rig.grace(), "the guest obeyed");
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    let cause = soon("ended", listener).await.unwrap().unwrap();
    // Whoever began to listen only after the end is not told a reason by every driver.
    assert!(matches!(cause, GoneCause::GuestPowerOff | GoneCause::Unknown), "{cause:?}");
    driver.destroy(&spec.name).await.unwrap();
}

async fn destroy_takes_a_running_instance(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    soon("destroy", driver.destroy(&spec.name)).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Absent);
    driver.destroy(&spec.name).await.unwrap();
}

async fn destroy_takes_a_stopped_instance(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.spec(id));
    driver.create(&spec).await.unwrap();
    driver.destroy(&spec.name).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Absent);
}

async fn the_end_is_reported_with_its_cause(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    let name = spec.name.clone();
    let (cause, stopped) = soon("ended", async {
        let end = async {
            // Long enough for the listener to be there.
            tokio::time::sleep(Duration::from_millis(500)).await;
            driver.stop(&name, Duration::ZERO).await
        };
        tokio::join!(driver.ended(&name), end)
    })
    .await;
    stopped.unwrap();
    assert_eq!(cause.unwrap(), GoneCause::HostStop);
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped, "ended means ended");
    driver.destroy(&spec.name).await.unwrap();
}

async fn the_end_is_reported_to_a_second_listener(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    // The first one is dropped while it listens, as when its task is replaced. Then there are two.
    let dropped = tokio::time::timeout(Duration::from_millis(200), driver.ended(&spec.name)).await;
    assert!(dropped.is_err(), "a running instance has not ended");
    let listen = || {
        let (driver, name) = (rig.restarted(), spec.name.clone());
        tokio::spawn(async move { driver.ended(&name).await })
    };
    let (first, second) = (listen(), listen());
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Not destroyed yet, because a listener that was slow to start reads the cause from the instance's files.
    driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    let first = soon("ended", first).await.unwrap().unwrap();
    let second = soon("ended", second).await.unwrap().unwrap();
    assert!([first, second].contains(&GoneCause::HostStop), "{first:?} {second:?}");
    driver.destroy(&spec.name).await.unwrap();
}

async fn the_guests_own_end_is_reported(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.spec(id));
    running(&*driver, &spec).await;
    rig.up(&spec.name).await;
    let listener = tokio::spawn({
        let (driver, name) = (driver.clone(), spec.name.clone());
        async move { driver.ended(&name).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    if rig.power_off(&spec.name).await {
        let cause = soon("ended", listener).await.unwrap().unwrap();
        assert_eq!(cause, GoneCause::GuestPowerOff);
        assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    } else {
        listener.abort();
    }
    driver.destroy(&spec.name).await.unwrap();
}

async fn a_restart_finds_what_runs(rig: &impl Rig, id: VmId) {
    let spec = rig.deaf(id);
    running(&*rig.driver(), &spec).await;
    let driver = rig.restarted();
    assert!(is_running(&*driver, &spec.name).await);
    driver.start(&spec).await.unwrap();
    let listed = driver.list().await.unwrap();
    let ours = listed.iter().find(|l| l.name == spec.name.as_str()).unwrap();
    assert!(ours.ours && ours.running);
    driver.destroy(&spec.name).await.unwrap();
    assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Absent);
}

async fn the_list_shows_own_and_foreign_instances(rig: &impl Rig, id: VmId) {
    let (driver, spec) = (rig.driver(), rig.deaf(id));
    running(&*driver, &spec).await;
    let (stranger, guard) = rig.foreign().await;
    let list = driver.list().await.unwrap();
    let ours = list.iter().find(|l| l.name == spec.name.as_str()).unwrap();
    assert_eq!((ours.ours, ours.running, ours.os), (true, true, spec.os));
    assert_eq!((ours.cpus, ours.memory_mib), (spec.cpus, spec.memory_mib));
    let foreign = list.iter().find(|l| l.name == stranger).expect("the stranger is shown");
    assert_eq!((foreign.ours, foreign.running), (false, true));
    assert!(foreign.cpus > 0 && foreign.memory_mib > 0);
    drop(guard);
    driver.destroy(&spec.name).await.unwrap();
}
