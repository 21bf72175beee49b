//! Pulling: an image from a registry becomes a template of the catalog.
//!
//! The reference is resolved to a digest once, and all that follows is about that digest. Each piece of the disk is planned
//! (here already, all zeros, or to be fetched), several are under way at a time, and each is verified before it counts. What
//! was verified survives a crash; nothing can be seen of a template until all of it is there.
//!
//! ```text
//! pull        who pulls what, once for all who ask for it
//!   demand    images that somebody waits for
//!   fault     who is at fault when it fails
//!   job       one pull, from the plan to the catalog
//!   plan      where each piece of the disk comes from
//!   layer     one layer, verified, to its place
//!     sparse  writing with holes
//!     disk    the disk, new or begun as a clone of the last version's
//!   journal   what is verified and on disk
//!   progress  how far it is
//! ```

mod board;
mod demand;
mod disk;
mod fault;
mod job;
mod journal;
mod layer;
mod plan;
mod sparse;
mod spec;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

pub use self::board::{ProgressBoard, ProgressUpdate};
use self::job::PullTask;
use super::{
    Catalog, NewTemplate,
    manifest::Origin,
    progress::{Meter, PullProgress},
    push::{self, Pusher},
};
use crate::{
    domain::{Budgets, BudgetsPatch, Handover, Template},
    registry::{
        self, RegistryClient, RegistryError,
        credentials::CredentialSource,
        oci::{
            self, Digest, Image, Reference,
            manifest::{self, Document},
            manifest_error::ManifestError,
        },
        pace::TransferPace,
    },
};

/// What is pulled, and what the template is to be. What is `None` and not a file is taken from the VM's configuration in the
/// image, else it has its usual value.
#[derive(Clone, Debug)]
pub struct PullRequest {
    pub image: Reference,
    /// May be the name of a template that was pulled from the same repository, and then points at the new one. `None`: the
    /// template can be had by its digest and by its image only.
    pub name: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub handover: Option<Handover>,
    pub user: Option<String>,
    pub ssh_key: Option<PathBuf>,
    pub ssh_password: Option<PathBuf>,
    /// Before what the image says, which comes before what is usual.
    pub budgets: BudgetsPatch,
    pub usual: Budgets,
    /// Any template of the image will do, with the settings above or others; they count when it has to be pulled.
    pub whatever_settings: bool,
    /// Nobody waits for it: it keeps to the limits of the background. When somebody else pulls the same meanwhile, it hurries.
    pub background: bool,
}

impl PullRequest {
    /// With usual values.
    pub fn new(image: Reference, name: impl Into<String>) -> PullRequest {
        PullRequest {
            image,
            name: Some(name.into()),
            cpus: None,
            memory_mib: None,
            handover: None,
            user: None,
            ssh_key: None,
            ssh_password: None,
            budgets: BudgetsPatch::default(),
            usual: Budgets::default(),
            whatever_settings: false,
            background: false,
        }
    }

    /// The image as it is, under no name.
    fn of_image(image: Reference, usual: Budgets) -> PullRequest {
        PullRequest { name: None, usual, whatever_settings: true, ..PullRequest::new(image, "") }
    }

    /// The template that is asked for, when the image says this of itself. Without its files.
    fn template(&self, settings: Option<&oci::Settings>) -> NewTemplate {
        let asked = NewTemplate {
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            handover: self.handover,
            user: self.user.clone(),
            ssh_key: self.ssh_key.clone(),
            ssh_password: self.ssh_password.clone(),
            budgets: settings.map_or(self.budgets.clone(), |s| self.budgets.or(&s.budgets)).on(&self.usual),
            name: self.name.clone(),
            ..NewTemplate::of_disk("", PathBuf::new())
        };
        match settings {
            Some(settings) => settings.under(asked),
            None => asked,
        }
    }

    /// The same question for the catalog, which knows what images here said.
    fn wanted(&self) -> impl Fn(Option<&oci::Settings>) -> NewTemplate + Send + 'static {
        let request = self.clone();
        move |settings| request.template(settings)
    }
}

/// Why an image did not become a template. Nothing of it can be seen; what was verified is kept for the next pull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Template(#[from] crate::domain::Error),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{image} cannot be pulled: {error}")]
    Manifest { image: Box<Reference>, error: ManifestError },
    #[error("{image} cannot be pulled: its configuration {what}")]
    Settings { image: Box<Reference>, what: String },
    #[error("{image} cannot be pulled: layer {layer}{place}: {what}", place = place(*offset))]
    Layer { image: Box<Reference>, layer: usize, offset: Option<u64>, what: String },
    /// However often it is fetched, it is not what the manifest says: there is nothing to wait for.
    #[error("{image} cannot be pulled: layer {layer}{place}: {what}", place = place(*offset))]
    Content { image: Box<Reference>, layer: usize, offset: Option<u64>, what: String },
    /// There is no room for it, and none can be made.
    #[error("{image} cannot be pulled: {}", error.detail)]
    Space { image: Box<Reference>, error: Box<crate::domain::Error> },
    #[error("the image cannot be put together: {0}")]
    Storage(#[from] io::Error),
    /// Of the process, and not of the image.
    #[error("the pull ended without a result")]
    Lost,
}

fn place(offset: Option<u64>) -> String {
    offset.map(|at| format!(" (the disk from byte {at} on)")).unwrap_or_default()
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub registry: registry::RegistryOptions,
    /// Layers that are under way at the same time. Beyond four there is nothing to gain.
    pub concurrency: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { registry: registry::RegistryOptions::default(), concurrency: 4 }
    }
}

/// Pulls images into one catalog. Of those who pull the same image at the same time, one does the work; it ends when nobody
/// waits for it any more.
#[derive(Clone)]
pub struct Puller {
    shared: Arc<PullerState>,
}

struct PullerState {
    catalog: Catalog,
    settings: Settings,
    credentials: Arc<dyn CredentialSource>,
    running: Mutex<HashMap<Digest, Weak<Running>>>,
    waiting: demand::PullDemand,
}

type PullOutcome = Option<Result<(), Arc<PullError>>>;

/// A pull under way. Dropped by the last who waits for it.
struct Running {
    outcome: watch::Receiver<PullOutcome>,
    progress: watch::Receiver<PullProgress>,
    task: AbortHandle,
    pace: TransferPace,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Puller {
    pub fn new(catalog: Catalog, settings: Settings, credentials: Arc<dyn CredentialSource>) -> Puller {
        Puller {
            shared: Arc::new(PullerState {
                catalog,
                settings,
                credentials,
                running: Mutex::default(),
                waiting: demand::PullDemand::default(),
            }),
        }
    }

    /// Who pushes from the same catalog, as the same to registries.
    pub fn pusher(&self) -> Pusher {
        let PullerState { catalog, settings, credentials, .. } = &*self.shared;
        let settings = push::Settings {
            registry: settings.registry.clone(),
            concurrency: settings.concurrency,
            ..push::Settings::default()
        };
        Pusher::new(catalog.clone(), settings, credentials.clone())
    }

    /// Pulls an image, unless it is here, and gives it its name. Dropping the future ends the pull, unless others wait for it,
    /// too; the next one goes on where it stopped.
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Template, Arc<PullError>> {
        let origin = |digest: Digest| origin(&request.image, digest);
        let failed = |e: crate::domain::Error| Arc::new(PullError::from(e));
        let catalog = &self.shared.catalog;
        let nothing_yet = Digest::of(b"");
        catalog
            .may_pull(origin(request.image.digest().unwrap_or(nothing_yet)), request.name.clone())
            .await
            .map_err(failed)?;
        // What a digest names does not change, so there is nothing to ask the registry for.
        if let Some(digest) = request.image.digest()
            && let Some(template) = self.find(request, origin(digest)).await.map_err(failed)?
        {
            return Ok(template);
        }
        let settings = &self.shared.settings.registry;
        let client = RegistryClient::new(&request.image, settings, self.shared.credentials.clone());
        let mut client = client.map_err(|e| Arc::new(e.into()))?;
        if request.background {
            client = client.in_background(settings.limits.clone());
        }
        let client = Arc::new(client);
        let (digest, image) = resolve(&client, &request.image).await.map_err(Arc::new)?;
        loop {
            if let Some(template) = self.find(request, origin(digest)).await.map_err(failed)? {
                return Ok(template);
            }
            let (running, ours) = self.join(digest, || PullTask {
                shared: self.shared.clone(),
                // Whoever asked first may have gone, and others wait on: each of those who are left gives it a name of their own.
                request: PullRequest { name: None, ..request.clone() },
                reference: request.image.pinned(digest),
                digest,
                origin: origin(digest),
                image: image.clone(),
                client: client.clone(),
            });
            if !request.background {
                running.pace.hurry();
            }
            running.wait(progress).await?;
            drop(running);
            // Another one's pull may have made a template with other settings: all its pieces are here now.
            if ours {
                let found = self.find(request, origin(digest)).await.map_err(failed)?;
                return found.ok_or_else(|| Arc::new(PullError::Lost));
            }
        }
    }

    /// The template that the request is after, if it is here, under the request's name from now on.
    async fn find(&self, request: &PullRequest, origin: Origin) -> crate::domain::Result<Option<Template>> {
        let catalog = &self.shared.catalog;
        match request.whatever_settings {
            true => catalog.of_image(origin).await,
            false => catalog.find_pulled(origin, request.wanted()).await,
        }
    }

    /// Whether this can be pulled at all, as far as that can be said without asking the registry.
    pub async fn check(&self, request: &PullRequest) -> Result<(), PullError> {
        RegistryClient::new(&request.image, &self.shared.settings.registry, self.shared.credentials.clone())?;
        let digest = request.image.digest().unwrap_or(Digest::of(b""));
        Ok(self.shared.catalog.may_pull(origin(&request.image, digest), request.name.clone()).await?)
    }

    /// What the reference stands for at the moment, by its registry's word.
    pub async fn resolve(&self, image: &Reference) -> Result<Digest, PullError> {
        let client = RegistryClient::new(image, &self.shared.settings.registry, self.shared.credentials.clone())?;
        Ok(client.manifest(image).await?.digest)
    }

    /// Removes what was fetched of an image and not published. `false`: somebody pulls it.
    pub async fn discard(&self, image: Digest) -> Result<bool, PullError> {
        let Some(staging) = self.shared.catalog.staging(image).await? else { return Ok(false) };
        self.shared.catalog.discard_staging(Arc::new(staging)).await?;
        Ok(true)
    }

    /// The pull of this digest that is under way, or a new one. Says whether it is new.
    fn join(&self, digest: Digest, job: impl FnOnce() -> PullTask) -> (Arc<Running>, bool) {
        let mut all = self.shared.running.lock();
        all.retain(|_, running| running.strong_count() > 0);
        // One that has ended tells what was, and not what is to be done now.
        if let Some(running) = all.get(&digest).and_then(Weak::upgrade)
            && running.outcome.borrow().is_none()
        {
            return (running, false);
        }
        let job = job();
        let pace = job.client.pace().clone();
        let (outcome_to, outcome) = watch::channel(None);
        let (progress_to, progress) = watch::channel(PullProgress { image: Some(digest), ..PullProgress::default() });
        let task = tokio::spawn(async move {
            let outcome = job.run(Meter::new(progress_to)).await.map_err(Arc::new);
            outcome_to.send_replace(Some(outcome));
        });
        let running = Arc::new(Running { outcome, progress, task: task.abort_handle(), pace });
        all.insert(digest, Arc::downgrade(&running));
        (running, true)
    }
}

fn origin(image: &Reference, digest: Digest) -> Origin {
    Origin { repository: format!("{}/{}", image.registry(), image.repository()), digest: digest.to_string() }
}

impl Running {
    async fn wait(&self, to: &watch::Sender<PullProgress>) -> Result<(), Arc<PullError>> {
        let (mut outcome, mut progress) = (self.outcome.clone(), self.progress.clone());
        let forward = async {
            loop {
                let now = progress.borrow_and_update().clone();
                to.send_replace(now);
                if progress.changed().await.is_err() {
                    // No more will come of it, but the outcome.
                    std::future::pending::<()>().await;
                }
            }
        };
        let ended = async {
            match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Arc::new(PullError::Lost))),
                Err(_) => Err(Arc::new(PullError::Lost)),
            }
        };
        let outcome = tokio::select! {
            outcome = ended => outcome,
            () = forward => Err(Arc::new(PullError::Lost)),
        };
        to.send_replace(self.progress.borrow().clone());
        outcome
    }
}

/// The image behind a reference; of a list, the one for this host.
async fn resolve(client: &RegistryClient, reference: &Reference) -> Result<(Digest, Image), PullError> {
    let failed = |error| PullError::Manifest { image: Box::new(reference.clone()), error };
    let raw = client.manifest(reference).await?;
    let list = match manifest::parse(&raw.bytes, raw.content_type.as_deref()).map_err(failed)? {
        Document::Image(image) => return Ok((raw.digest, image)),
        Document::Index(list) => list,
    };
    let digest = list.choose(oci::index::architecture(std::env::consts::ARCH)).map_err(failed)?;
    let raw = client.manifest(&reference.pinned(digest)).await?;
    match manifest::parse(&raw.bytes, raw.content_type.as_deref()).map_err(failed)? {
        Document::Image(image) => Ok((raw.digest, image)),
        Document::Index(_) => Err(failed(ManifestError::Foreign("a list within a list".into()))),
    }
}
