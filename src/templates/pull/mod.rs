//! Pulls images from registries into the catalog.
//!
//! The reference is resolved to a digest once, and everything else uses that digest. The source of each chunk is
//! planned (already here, all zeros, or fetched), several chunks are processed at a time, and each is verified before
//! it counts. Verified chunks survive a crash; the template is visible only when it is complete.
//!
//! ```text
//! pull        runs one pull per image, for all callers that need it
//!   demand    images that vms wait for
//!   fault     maps failures to error codes
//!   job       one pull, from the plan to the catalog
//!   plan      the source of each chunk of the disk
//!   layer     fetches, verifies and writes one layer
//!     sparse  writing with holes
//!     disk    the disk file, new or a clone of the last version's
//!   journal   the layers that are verified and on disk
//!   progress  progress of a pull
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
    collections::{BTreeSet, HashMap},
    io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
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
    domain::{BudgetsPatch, Handover, NetworkMode, Template, ready_check::ReadyCheck},
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

/// How long to wait for the writers of an ended pull, each of which finishes the piece that it writes.
const RELEASE_TRIES: usize = 100;
const RELEASE_INTERVAL: Duration = Duration::from_millis(100);

/// The image, and the settings of the template. `None`, except for files: taken from the VM's configuration in the
/// image, else the default.
#[derive(Clone, Debug)]
pub struct PullRequest {
    pub image: Reference,
    /// May be the name of a template that was pulled from the same repository, and then moves to the new one. `None`:
    /// the template is available only by its digest and its image.
    pub name: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub handover: Option<Handover>,
    pub user: Option<String>,
    /// Not among the image's settings: the publisher of an image does not decide what guests reach on this host.
    pub network: Option<NetworkMode>,
    /// Not among the image's settings either.
    pub ready: Option<ReadyCheck>,
    pub ssh_key: Option<PathBuf>,
    pub ssh_password: Option<PathBuf>,
    /// These precede those of the image's settings.
    pub budgets: BudgetsPatch,
    /// Any template of the image is sufficient; the settings above count only if it has to be pulled.
    pub whatever_settings: bool,
    /// Whether the rate limit of background pulls applies. It is lifted when a foreground pull of the same image joins.
    pub background: bool,
}

impl PullRequest {
    /// With default settings.
    pub fn new(image: Reference, name: impl Into<String>) -> PullRequest {
        PullRequest {
            image,
            name: Some(name.into()),
            cpus: None,
            memory_mib: None,
            handover: None,
            user: None,
            network: None,
            ready: None,
            ssh_key: None,
            ssh_password: None,
            budgets: BudgetsPatch::default(),
            whatever_settings: false,
            background: false,
        }
    }

    /// The image without changes, under no name.
    fn of_image(image: Reference) -> PullRequest {
        PullRequest { name: None, whatever_settings: true, ..PullRequest::new(image, "") }
    }

    /// The requested template, from the image's own settings. Without its files.
    fn template(&self, settings: Option<&oci::ImageSettings>) -> NewTemplate {
        let asked = NewTemplate {
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            handover: self.handover,
            user: self.user.clone(),
            network: self.network,
            ready: self.ready.clone(),
            ssh_key: self.ssh_key.clone(),
            ssh_password: self.ssh_password.clone(),
            // Whether failed vms hold slots is decided here, and not by the publisher of an image.
            budgets: settings.map_or(self.budgets.clone(), |s| {
                self.budgets.or(&BudgetsPatch { keep_on_failure_seconds: None, ..s.budgets.clone() })
            }),
            name: self.name.clone(),
            ..NewTemplate::of_disk("", PathBuf::new())
        };
        match settings {
            Some(settings) => settings.under(asked),
            None => asked,
        }
    }

    /// The same function for the catalog, which stores the settings of its images.
    fn wanted(&self) -> impl Fn(Option<&oci::ImageSettings>) -> NewTemplate + Send + 'static {
        let request = self.clone();
        move |settings| request.template(settings)
    }
}

/// Why an image did not become a template. Nothing of it is visible; verified data is kept for the next pull.
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
    /// It did not arrive.
    #[error("{image} cannot be pulled: layer {layer}{place}: {error}{after}", place = place(*offset), after = after(*received))]
    Layer { image: Box<Reference>, layer: usize, offset: Option<u64>, error: Box<RegistryError>, received: u64 },
    /// This host cannot write it.
    #[error("{image} cannot be pulled: layer {layer}{place}: {what}", place = place(*offset))]
    Disk { image: Box<Reference>, layer: usize, offset: Option<u64>, what: String },
    /// It does not match its manifest, even after repeated downloads: retrying does not help.
    #[error("{image} cannot be pulled: layer {layer}{place}: {what}", place = place(*offset))]
    Content { image: Box<Reference>, layer: usize, offset: Option<u64>, what: String },
    /// There is no space for it, and none can be freed.
    #[error("{image} cannot be pulled: {}", error.detail)]
    Space { image: Box<Reference>, error: Box<crate::domain::Error> },
    #[error("the image cannot be put together: {0}")]
    Storage(#[from] io::Error),
    /// An internal error, independent of the image.
    #[error("the pull ended without a result")]
    Lost,
}

impl PullError {
    /// The image whose verified data was kept.
    pub fn image(&self) -> Option<Digest> {
        match self {
            PullError::Settings { image, .. }
            | PullError::Layer { image, .. }
            | PullError::Disk { image, .. }
            | PullError::Content { image, .. }
            | PullError::Space { image, .. } => image.digest(),
            PullError::Template(_)
            | PullError::Registry(_)
            | PullError::Manifest { .. }
            | PullError::Storage(_)
            | PullError::Lost => None,
        }
    }
}

fn after(received: u64) -> String {
    if received == 0 { String::new() } else { format!(", after {received} of its bytes") }
}

fn place(offset: Option<u64>) -> String {
    offset.map(|at| format!(" (the disk from byte {at} on)")).unwrap_or_default()
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub registry: registry::RegistryOptions,
    /// Concurrent layers. More than four are not faster.
    pub concurrency: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { registry: registry::RegistryOptions::default(), concurrency: 4 }
    }
}

/// Pulls images into one catalog. Concurrent pulls of one image are carried out once; the pull ends when no caller
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

/// A pull under way. Dropped with its last waiting caller.
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

    /// A pusher of the same catalog, with the same credentials and options.
    pub fn pusher(&self) -> Pusher {
        let PullerState { catalog, settings, credentials, .. } = &*self.shared;
        let settings = push::Settings {
            registry: settings.registry.clone(),
            concurrency: settings.concurrency,
            ..push::Settings::default()
        };
        Pusher::new(catalog.clone(), settings, credentials.clone())
    }

    /// Pulls an image if necessary, and sets its name. Dropping the future ends the pull, unless others wait for it;
    /// the next one continues it.
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
        // The content of a digest does not change, so the registry need not be asked.
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
                // The first caller may be gone while others wait: each remaining one sets its own name.
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
            // A concurrent pull may have created a template with other settings: all its chunks are here now.
            if ours {
                let found = self.find(request, origin(digest)).await.map_err(failed)?;
                return found.ok_or_else(|| Arc::new(PullError::Lost));
            }
        }
    }

    /// The template that matches the request, if it exists, now under the request's name.
    async fn find(&self, request: &PullRequest, origin: Origin) -> crate::domain::Result<Option<Template>> {
        let catalog = &self.shared.catalog;
        match request.whatever_settings {
            true => catalog.of_image(origin).await,
            false => catalog.find_pulled(origin, request.wanted()).await,
        }
    }

    /// Whether this can be pulled, as far as that is known without asking the registry.
    pub async fn check(&self, request: &PullRequest) -> Result<(), PullError> {
        RegistryClient::new(&request.image, &self.shared.settings.registry, self.shared.credentials.clone())?;
        let digest = request.image.digest().unwrap_or(Digest::of(b""));
        Ok(self.shared.catalog.may_pull(origin(&request.image, digest), request.name.clone()).await?)
    }

    /// The current digest of the reference, from the registry.
    pub async fn resolve(&self, image: &Reference) -> Result<Digest, PullError> {
        let client = RegistryClient::new(image, &self.shared.settings.registry, self.shared.credentials.clone())?;
        Ok(client.manifest(image).await?.digest)
    }

    /// Removes the unpublished data of an image. `false`: a pull uses it.
    pub async fn discard(&self, image: Digest) -> Result<bool, PullError> {
        Ok(self.shared.catalog.remove_staging(image).await?)
    }

    /// The same for a pull that has just ended: its last writers may not have released the data yet. `false`: another
    /// pull uses it.
    pub async fn discard_released(&self, image: Digest) -> Result<bool, PullError> {
        for _ in 0..RELEASE_TRIES {
            if self.discard(image).await? {
                return Ok(true);
            }
            let busy = self.shared.running.lock().get(&image).and_then(Weak::upgrade);
            if busy.is_some_and(|running| running.outcome.borrow().is_none()) {
                return Ok(false);
            }
            tokio::time::sleep(RELEASE_INTERVAL).await;
        }
        Ok(false)
    }

    /// The pull of this digest that is under way, or a new one. Returns whether it is new.
    fn join(&self, digest: Digest, job: impl FnOnce() -> PullTask) -> (Arc<Running>, bool) {
        let mut all = self.shared.running.lock();
        all.retain(|_, running| running.strong_count() > 0);
        // An ended pull has only an old result.
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
                    // Only the result follows.
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

/// Lists that are read to find the image of one reference.
const MOST_LISTS: usize = 16;

/// The image of a reference; of an index, the one for this host. Its lists within lists are read if the image is not in it.
async fn resolve(client: &RegistryClient, reference: &Reference) -> Result<(Digest, Image), PullError> {
    let failed = |error| PullError::Manifest { image: Box::new(reference.clone()), error };
    let read = async |reference: &Reference| {
        let raw = client.manifest(reference).await?;
        let document = manifest::parse(&raw.bytes, raw.content_type.as_deref()).map_err(failed)?;
        Ok::<_, PullError>((raw.digest, document))
    };
    let architecture = oci::index::architecture(std::env::consts::ARCH);
    let mut list = match read(reference).await? {
        (digest, Document::Image(image)) => return Ok((digest, image)),
        (_, Document::Index(list)) => list,
    };
    let mut next = list.lists_for(architecture);
    let mut known: BTreeSet<Digest> = next.iter().copied().collect();
    while list.choose(architecture).is_err()
        && let Some(nested) = next.pop()
    {
        if known.len() > MOST_LISTS {
            return Err(failed(ManifestError::Nested { most: MOST_LISTS }));
        }
        // A list may claim that an image is a list.
        let (_, Document::Index(nested)) = read(&reference.pinned(nested)).await? else { continue };
        next.extend(nested.lists_for(architecture).into_iter().filter(|list| known.insert(*list)));
        list.entries.extend(nested.entries);
    }
    let digest = list.choose(architecture).map_err(failed)?;
    match read(&reference.pinned(digest)).await? {
        (digest, Document::Image(image)) => Ok((digest, image)),
        (_, Document::Index(_)) => Err(failed(ManifestError::Foreign("a list that is called an image".into()))),
    }
}
