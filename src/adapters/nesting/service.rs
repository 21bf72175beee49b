//! What the methods do.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tonic::Status;

use super::{
    messages::{CreateRequest, CreateResponse, ListResponse, VirtualMachine},
    section::NestingSection,
    vms::{NestedVm, NestedVms},
};
use crate::{
    client::{self, ServiceOptions},
    domain::{State, endpoint::Endpoint},
};

/// Clients compare code and text of these two.
const NOT_INITIALIZED: &str = "not initialized";
const ALREADY_INITIALIZED: &str = "already initialized";

/// Since the start of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientInit {
    Never,
    Done,
    ShutDown,
}

pub(super) struct Nesting {
    section: NestingSection,
    service: ServiceOptions,
    init: Mutex<ClientInit>,
    /// Those of slots in which a vm is being replaced.
    slots: Mutex<HashMap<i32, Arc<tokio::sync::Mutex<()>>>>,
}

impl Nesting {
    pub fn new(section: NestingSection, service: ServiceOptions) -> Self {
        Self { section, service, init: Mutex::new(ClientInit::Never), slots: Mutex::default() }
    }

    pub fn init(&self) -> Result<(), Status> {
        let mut init = self.init.lock();
        if *init == ClientInit::Done {
            return Err(Status::failed_precondition(ALREADY_INITIALIZED));
        }
        *init = ClientInit::Done;
        Ok(())
    }

    /// Leaves the vms as they are.
    pub fn shutdown(&self) -> Result<(), Status> {
        let mut init = self.init.lock();
        match *init {
            ClientInit::Never => Err(Status::failed_precondition(NOT_INITIALIZED)),
            ClientInit::ShutDown => Err(Status::failed_precondition(ALREADY_INITIALIZED)),
            ClientInit::Done => {
                *init = ClientInit::ShutDown;
                Ok(())
            }
        }
    }

    fn vms(&self) -> Result<NestedVms, Status> {
        if *self.init.lock() != ClientInit::Done {
            return Err(Status::failed_precondition(NOT_INITIALIZED));
        }
        NestedVms::new(&self.service).map_err(unknown)
    }

    pub async fn create(self: Arc<Self>, asked: CreateRequest) -> Result<CreateResponse, Status> {
        let vms = Arc::new(self.vms()?);
        if !self.section.templates.contains(&asked.name) {
            let allowed = self.section.templates.join(", ");
            return Err(Status::unknown(format!(
                "image: {:.100?} is not allowed on this host, only {allowed}; `nesting.templates` of Mayfly's configuration lists them",
                asked.name
            )));
        }
        // In a task: a request that is on its way makes a vm, whatever becomes of the client.
        let (nesting, of_task) = (self.clone(), vms.clone());
        let creation = tokio::spawn(async move {
            let (vm, stomped) = match asked.slot {
                Some(slot) => nesting.replace(slot, &asked.name, &of_task).await?,
                None => (of_task.create(&asked.name, None, &nesting.section).await.map_err(unknown)?, None),
            };
            let unclaimed = UnclaimedVm { vms: of_task, id: Some(vm.id.clone()) };
            Ok::<_, Status>((vm, stomped, unclaimed))
        });
        let (vm, stomped, unclaimed) = creation.await.map_err(|error| Status::unknown(error.to_string()))??;
        let vm = until_addressed(vm, &vms).await?;
        unclaimed.claim();
        Ok(CreateResponse { vm: Some(shown(&vm)), stomped_vm_id: stomped })
    }

    /// Ends the vms of the slot and creates the next one. One call at a time for each slot: the later one ends the vm of the
    /// earlier one.
    async fn replace(&self, slot: i32, template: &str, vms: &NestedVms) -> Result<(NestedVm, Option<String>), Status> {
        let lock = self.slots.lock().entry(slot).or_default().clone();
        let replaced = {
            let _guard = lock.lock().await;
            self.replace_alone(slot, template, vms).await
        };
        drop(lock);
        self.slots.lock().retain(|_, lock| Arc::strong_count(lock) > 1);
        replaced
    }

    async fn replace_alone(
        &self,
        slot: i32,
        template: &str,
        vms: &NestedVms,
    ) -> Result<(NestedVm, Option<String>), Status> {
        let clearing = |error: client::Error| Status::unknown(format!("clearing slot: {}", error.into_sentence()));
        let before = vms.list(Some(slot)).await.map_err(clearing)?;
        for vm in &before {
            vms.delete(&vm.id).await.map_err(clearing)?;
            tracing::info!(vm.id = %vm.id, slot, "nesting: ended the vm of the slot for the next one");
        }
        let vm = vms.create(template, Some(slot), &self.section).await.map_err(unknown)?;
        Ok((vm, before.into_iter().next().map(|vm| vm.id)))
    }

    /// A vm that has ended by itself is deleted already.
    pub async fn delete(&self, id: &str) -> Result<(), Status> {
        let vms = self.vms()?;
        let vm = vms.get(id).await.map_err(unknown)?.filter(NestedVm::is_ours);
        let vm = vm.ok_or_else(|| Status::unknown(format!("nesting has no vm {id:.100?}")))?;
        vms.delete(&vm.id).await.map_err(unknown)
    }

    pub async fn list(&self) -> Result<ListResponse, Status> {
        let vms = self.vms()?.list(None).await.map_err(unknown)?;
        Ok(ListResponse { vms: vms.iter().map(shown).collect() })
    }
}

fn shown(vm: &NestedVm) -> VirtualMachine {
    VirtualMachine { id: vm.id.clone(), name: vm.template.clone(), addr: vm.address().unwrap_or_default().to_owned() }
}

fn unknown(error: client::Error) -> Status {
    Status::unknown(error.into_sentence())
}

/// Waits in the queue, for the boot and for the address. The budgets of the vm limit it.
async fn until_addressed(mut vm: NestedVm, vms: &NestedVms) -> Result<NestedVm, Status> {
    loop {
        if vm.life.has_ended() {
            return Err(Status::unknown(format!("the vm {} has ended ({})", vm.name, vm.life.end())));
        }
        if let Some(Endpoint::Socket { .. }) = vm.ssh {
            return Err(Status::unknown(format!(
                "the guest of the vm {} has no address that a runner could use, only a socket of this host: nesting needs templates \
                 of the driver `tart`",
                vm.name
            )));
        }
        if vm.life.is_in(State::Running) && vm.address().is_some() {
            return Ok(vm);
        }
        if vm.life.is_in(State::Running) {
            vm = with_address(&vm, vms).await?;
            continue;
        }
        vm = vms.changed(&vm).await.map_err(unknown)?;
    }
}

/// Of a running guest whose address was not needed so far: a login over SSH finds it.
async fn with_address(vm: &NestedVm, vms: &NestedVms) -> Result<NestedVm, Status> {
    vms.log_in(vm).await.map_err(unknown)?;
    let found = vms.get(&vm.id).await.map_err(unknown)?.ok_or_else(|| Status::unknown("the vm is gone"))?;
    if found.ssh.is_none() && !found.life.has_ended() {
        return Err(Status::unknown(format!(
            "the address of the guest of the vm {} is not known: nesting needs a template with `ssh_key` or `ssh_password`",
            vm.name
        )));
    }
    Ok(found)
}

/// A vm whose client has not learned of it: it is ended if the call fails or its client goes away.
struct UnclaimedVm {
    vms: Arc<NestedVms>,
    id: Option<String>,
}

impl UnclaimedVm {
    fn claim(mut self) {
        self.id = None;
    }
}

impl Drop for UnclaimedVm {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let vms = self.vms.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = vms.delete(&id).await {
                    tracing::warn!(vm.id = %id, "nesting: a vm without a client goes on: {}", error.into_sentence());
                }
            });
        }
    }
}
