//! What guests are given to register their runners with.

use std::collections::HashMap;

use mayfly::{
    domain::{InstanceName, VmId, source_runner::runner_name},
    store::Vault,
};
use tokio::sync::watch;

use super::{Host, PATIENCE, Served, Serving};

/// What the guest of each vm's newest boot was given.
#[derive(Clone)]
pub struct Given(watch::Sender<HashMap<VmId, String>>);

impl Given {
    /// Notes it at each boot from now on.
    pub fn to_guests_of(host: &Host) -> Given {
        let given = watch::Sender::default();
        let (serving, noted, key) = (host.serving.clone(), given.clone(), host.at("secret.key"));
        host.world.on_boot(move |guest| {
            let (serving, noted, key) = (serving.clone(), noted.clone(), key.clone());
            tokio::spawn(async move {
                let id = InstanceName::parse(guest.spec.name.as_str()).unwrap();
                if let Some(registration) = registration(&serving, id, &Vault::open(&key).unwrap()).await {
                    noted.send_modify(|given: &mut HashMap<_, _>| drop(given.insert(id, registration)));
                }
            });
        });
        Given(given)
    }

    /// Once the vm's guest has booted.
    pub async fn to(&self, id: VmId) -> String {
        let mut given = self.0.subscribe();
        let given = tokio::time::timeout(PATIENCE, given.wait_for(|given| given.contains_key(&id)));
        given.await.expect("the guest does not boot").unwrap()[&id].clone()
    }
}

/// Read from where the bundle reads it, so that it is the one that is kept. `None`: the caller brought it.
pub async fn registration(serving: &Serving, id: VmId, vault: &Vault) -> Option<String> {
    let mut serving = serving.subscribe();
    let Served { reader, .. } = serving.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let vm = reader.vm(id).await.unwrap().unwrap();
    vm.spec.managed()?;
    let name = runner_name(&vm.spec.name, id, vm.attempt);
    let row = reader.runner(&name).await.unwrap().expect("there is a row before there is a guest");
    Some(String::from_utf8(vault.unseal(id, &row.sealed.unwrap()).unwrap()).unwrap())
}
