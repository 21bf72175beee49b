//! A hypervisor in memory, for tests and for trying the service without a hypervisor.
//!
//! The driver has no state. Its instances are in a shared [`FakeWorld`] that outlives it, as a hypervisor outlives
//! Mayfly: a test restarts Mayfly with a new driver on the same world. By default, guests boot at once and run until
//! they are stopped. A test can make the world slow, failing, full, hanging, or crash the caller in the middle of a
//! verb.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Capabilities, Driver, DriverError, DriverProbe, ErrorKind, InstanceSpec, Listed, Observation, Result};
use crate::domain::{Arch, Code, GuestOs, InstanceName, event::GoneCause};

mod world;

pub use world::{Behaviour, Crash, FakeSnapshot, FakeWorld, Guest, Verb};

pub struct Fake {
    name: &'static str,
    world: Arc<FakeWorld>,
}

impl Fake {
    pub const NAME: &str = "fake";

    pub fn new(world: Arc<FakeWorld>) -> Self {
        Self::named(Self::NAME, world)
    }

    /// Replaces another driver, for templates that name that one.
    pub fn named(name: &'static str, world: Arc<FakeWorld>) -> Self {
        Self { name, world }
    }

    pub fn world(&self) -> &Arc<FakeWorld> {
        &self.world
    }
}

/// The end of a call that "crashes": Mayfly never learns its result.
async fn perhaps_die(world: &FakeWorld, crash: Option<Crash>) {
    if crash.is_some() {
        world.note_crash();
        std::future::pending::<()>().await;
    }
}

#[async_trait]
impl Driver for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guests: vec![GuestOs::Linux, GuestOs::Macos],
            graceful_stop: true,
            console: false,
            seed: true,
            agent: false,
            network: self.world.network(),
        }
    }

    async fn probe(&self, _fresh: bool) -> Result<DriverProbe> {
        let crash = self.world.enter(Verb::Probe).await?;
        perhaps_die(&self.world, crash).await;
        Ok(DriverProbe {
            version: "fake".to_owned(),
            arch: Arch::of_this_host().unwrap_or(Arch::X86_64),
            accelerator: "none".to_owned(),
            note: Some("guests of this driver exist in memory only".to_owned()),
            unconfined: None,
        })
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<()> {
        let crash = self.world.enter(Verb::Create).await?;
        if crash != Some(Crash::Before) {
            self.world.create(spec, crash == Some(Crash::Halfway));
        }
        self.world.leave(Verb::Create).await;
        perhaps_die(&self.world, crash).await;
        Ok(())
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<()> {
        let crash = self.world.enter(Verb::Start).await?;
        if crash != Some(Crash::Before)
            && let Some((guest, program)) = self.world.start(spec, &self.world)?
        {
            program(guest);
        }
        self.world.leave(Verb::Start).await;
        perhaps_die(&self.world, crash).await;
        Ok(())
    }

    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        let crash = self.world.enter(Verb::Stop).await?;
        if crash != Some(Crash::Before) {
            self.world.stop(name, grace).await;
        }
        self.world.leave(Verb::Stop).await;
        perhaps_die(&self.world, crash).await;
        Ok(())
    }

    async fn destroy(&self, name: &InstanceName) -> Result<()> {
        let crash = self.world.enter(Verb::Destroy).await?;
        if crash != Some(Crash::Before) {
            self.world.destroy(name, crash == Some(Crash::Halfway));
        }
        self.world.leave(Verb::Destroy).await;
        perhaps_die(&self.world, crash).await;
        Ok(())
    }

    async fn inspect(&self, name: &InstanceName) -> Result<Observation> {
        let crash = self.world.enter(Verb::Inspect).await?;
        perhaps_die(&self.world, crash).await;
        let observed = self.world.observe(name);
        self.world.leave(Verb::Inspect).await;
        Ok(observed)
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause> {
        let crash = self.world.enter(Verb::Ended).await?;
        perhaps_die(&self.world, crash).await;
        Ok(self.world.ended(name).await)
    }

    async fn resume(&self, name: &InstanceName) -> Result<()> {
        self.world.resume(name)
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let crash = self.world.enter(Verb::List).await?;
        perhaps_die(&self.world, crash).await;
        let listed = self.world.list();
        self.world.leave(Verb::List).await;
        Ok(listed)
    }

    fn console_log(&self, _name: &InstanceName) -> Option<PathBuf> {
        None
    }
}

fn refused(kind: ErrorKind, code: Code, summary: impl Into<String>) -> DriverError {
    DriverError::new(kind, code, summary)
}
