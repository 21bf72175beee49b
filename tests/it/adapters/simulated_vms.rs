//! A service whose vms really go through their lives, with the fake driver and guests that report what real ones would.

use std::{sync::Arc, time::Duration};

use mayfly::{
    app::Setup,
    domain::{InstanceName, endpoint::Endpoint},
    drivers::{
        fake::{Behaviour, Fake, FakeWorld},
        registry::DriverRegistry,
    },
    http,
    platform::data_dir::DataDir,
    reconcile::{self, Reconciler},
    service::guests::GuestEvent,
};

use crate::api::{Api, api_of};

/// When a guest's address is known.
#[derive(Clone, Copy, PartialEq)]
pub enum Address {
    /// Before the guest reports.
    Early,
    /// To the hypervisor only after the vm runs, as with a guest that was provisioned through its agent.
    Late,
}

/// With two slots, and this SSH port in every guest.
pub async fn service_with_vms(ssh: Endpoint, address: Address) -> Api {
    let world = FakeWorld::new();
    if address == Address::Early {
        world.behave(Behaviour { ssh: Some(ssh.clone()), ..Behaviour::default() });
    }
    let drivers = DriverRegistry::default().with(Arc::new(Fake::new(world.clone())));
    let mut capacity = None;
    let change = |setup: &mut Setup| {
        setup.drivers = drivers;
        capacity = Some(setup.capacity);
    };
    let api = api_of(http::Settings::default(), change).await;
    let (services, of_guests) = (api.services.clone(), world.clone());
    world.on_boot(move |guest| {
        let (services, world, ssh) = (services.clone(), of_guests.clone(), ssh.clone());
        tokio::spawn(async move {
            let id = InstanceName::parse(guest.spec.name.as_str()).expect("a vm of this service");
            if address == Address::Early {
                let mut generation = 0;
                loop {
                    let Ok(vm) = services.vms.wait(id, generation, Duration::from_secs(5)).await else { return };
                    if vm.ssh.is_some() {
                        break;
                    }
                    generation = vm.generation;
                }
            }
            for report in
                [GuestEvent::GuestReady {}, GuestEvent::GuestConfigured { attempt: Some(1), separate_users: None }]
            {
                // A guest that is ended meanwhile is refused.
                let _ = services.guests.report(id, report).await;
            }
            world.set_ssh(&guest.spec.name, Some(ssh));
        });
    });
    let settings = reconcile::Settings {
        guest_urls: [(Fake::NAME.to_owned(), "http://10.0.2.100".to_owned())].into(),
        ..reconcile::Settings::new(capacity.unwrap(), &DataDir::new(api.dir.path()))
    };
    tokio::spawn(Reconciler::new(&api.parts, &settings).run(api.shutdown.clone()));
    api
}

/// Waits for the end of a vm.
pub async fn ended(api: &Api, id: &str) {
    let mut generation = 0;
    loop {
        let path = format!("/vms/{id}?wait_generation={generation}&timeout_seconds=20");
        let vm = api.get(&path, &api.admin).await.ok(200);
        if vm["state"] == "deleted" {
            return;
        }
        assert_ne!(vm["generation"].as_i64(), Some(generation), "it does not end: {vm:#}");
        generation = vm["generation"].as_i64().unwrap();
    }
}
