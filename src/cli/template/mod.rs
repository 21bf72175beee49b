//! `mayfly template …`

use clap::Subcommand;
use serde_json::json;

mod add;
mod export;
mod import;
mod lint;
mod login;
mod names;
mod prune;
mod pull;
mod push;
mod ready;
mod set;
mod settings;
mod verify;
mod watch;

use super::{
    Global,
    client::ApiClient,
    exit,
    failure::CommandFailure,
    listing::{self, ListFormat, Listable},
    output::{self, Colour},
    responses::{LoginResponse, PullResponse, TemplateResponse, WatchResponse},
    table::{Cell, Column},
    text,
};

#[derive(Subcommand)]
pub(super) enum TemplateCommand {
    #[command(flatten)]
    Request(CatalogCommand),
    /// Check a template for what would make its vms fail
    ///
    /// Reads the template's files on this machine: the size and state of the disk, and in a Linux guest's file system
    /// the SSH server, the user of the jobs, programs, GitHub's runner, and secrets that were left in the image. The
    /// disk is not mounted or changed. What cannot be read, such as the disk of a macOS guest, is listed as not
    /// checked. Each finding says what to do. The exit code is 1 if there is an error.
    Lint(lint::Lint),
}

/// What the service does.
#[derive(Subcommand)]
pub(super) enum CatalogCommand {
    /// Register a template from files on the service's machine
    ///
    /// The files are copied; they may be deleted afterwards. Options given here override those of the --from file.
    Add(Box<add::Add>),
    /// Pull a template from a registry
    ///
    /// The image is in Tart's format, or one that `template push` made. Every byte is verified. The service pulls;
    /// this command only follows the pull, and ending it does not end the pull. An interrupted pull continues where
    /// it stopped. An image that is on the host is not pulled again.
    Pull(Box<pull::PullArgs>),
    /// List pulls, newest first
    Pulls(ListFormat),
    /// Cancel a pull
    PullCancel {
        id: String,
        /// Also remove the downloaded data, unless another pull needs it
        #[arg(long)]
        discard: bool,
    },
    /// Make a template follow a tag
    ///
    /// The service checks the tag regularly. When the tag has moved, the new version is pulled in the background,
    /// and the template's name moves to it.
    Watch(Box<watch::WatchArgs>),
    /// Stop following a tag
    Unwatch { name: String },
    /// Push a template to a registry
    ///
    /// A template of the driver tart is pushed in Tart's format, so Tart can pull it too; templates of other
    /// drivers are pushed in Mayfly's format. Keys and passwords are never part of the image. Content that the
    /// registry has is not uploaded again, so a repeated push continues where the last one stopped.
    Push(push::Push),
    /// Log in to a registry, for pulling and pushing
    ///
    /// The service tests the login at the registry, and stores it only if the registry accepts it, in a file that
    /// only its own user can read. Amazon ECR needs no login if the host has a role or a profile.
    Login(login::LoginArgs),
    /// Delete the login to a registry
    Logout {
        /// The registry, as host or host:port in image references
        host: String,
    },
    /// List the logins to registries
    Logins(ListFormat),
    /// Import a template from another program's layout
    ///
    /// Imports a Tart VM, a template bundle of shoes-vz, a vm.json of macosvm, or a disk image. Settings that a
    /// template cannot hold are listed. The source is not changed.
    Import(Box<import::Import>),
    /// Export a template into another program's layout
    ///
    /// Nothing is overwritten: PATH must not exist.
    Export(export::Export),
    /// List templates
    #[command(visible_alias = "ls")]
    List(ListFormat),
    /// Show one template
    Show { name: String },
    /// Change the settings that a template sets itself
    ///
    /// Counts for vms that are created from now on. Settings that a template does not set itself are the defaults of
    /// the service at that time.
    Set(set::SetTemplate),
    /// Point a name at a version, for example to make an alias of another name
    ///
    /// The name moves in one step: a new vm gets either the old or the new version, and running vms keep theirs.
    Point(names::Point),
    /// Point a name at its previous version again
    ///
    /// A second rollback undoes the first.
    Rollback(names::Rollback),
    /// Keep a version from being pruned
    Pin(names::PinArgs),
    /// Allow a pinned version to be pruned again
    Unpin {
        /// Name or digest
        version: String,
    },
    /// Remove the versions that no name, vm or pin needs
    ///
    /// Removes those first that were unused for the longest time. The newest previous version of each name is kept
    /// for a rollback.
    Prune(prune::Prune),
    /// Read every byte of templates and compare it with their digests
    ///
    /// Nothing is repaired: a damaged template is marked, and no vm is made from it until it is pulled or
    /// registered again. The exit code is 1 if something is damaged.
    Verify(verify::Verify),
    /// Delete a template that no vm needs
    #[command(visible_alias = "rm")]
    Delete { name: String },
}

pub(super) fn run(command: TemplateCommand, global: &Global) -> Result<u8, CommandFailure> {
    match command {
        TemplateCommand::Request(command) => {
            super::talk(global, async |client| request(command, client, global.json).await)
        }
        TemplateCommand::Lint(args) => super::block_on(lint::run(args, global)),
    }
}

async fn request(command: CatalogCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    match command {
        CatalogCommand::Add(args) => add::run(*args, client, json).await?,
        CatalogCommand::Pull(args) => return pull::run(*args, client, json).await,
        CatalogCommand::Pulls(format) => {
            let items = client.list(&["pulls"], &[]).await?;
            let empty = "no pulls; `mayfly template pull` begins one";
            listing::print::<PullResponse>(client, &items, format, json, empty)?;
        }
        CatalogCommand::PullCancel { id, discard } => pull::cancel(&id, discard, client, json).await?,
        CatalogCommand::Watch(args) => watch::run(*args, client, json).await?,
        CatalogCommand::Unwatch { name } => watch::remove(&name, client, json).await?,
        CatalogCommand::Push(args) => push::run(args, client, json).await?,
        CatalogCommand::Login(args) => login::login(args, client, json).await?,
        CatalogCommand::Logout { host } => login::logout(&host, client, json).await?,
        CatalogCommand::Logins(format) => {
            let items = client.list(&["registries"], &[]).await?;
            let empty = "no logins; `mayfly template login` makes one";
            listing::print::<LoginResponse>(client, &items, format, json, empty)?;
        }
        CatalogCommand::Import(args) => import::run(*args, client, json).await?,
        CatalogCommand::Export(args) => export::run(args, client, json).await?,
        CatalogCommand::List(format) => {
            let items = client.list(&["templates"], &[]).await?;
            let empty = "no templates; `mayfly template add` registers one";
            listing::print::<TemplateResponse>(client, &items, format, json, empty)?;
        }
        CatalogCommand::Show { name } => show(&name, client, json).await?,
        CatalogCommand::Set(args) => set::run(args, client, json).await?,
        CatalogCommand::Point(args) => names::point(args, client, json).await?,
        CatalogCommand::Rollback(args) => names::roll_back(args, client, json).await?,
        CatalogCommand::Pin(args) => names::pin(args, client, json).await?,
        CatalogCommand::Prune(args) => prune::run(args, client, json).await?,
        CatalogCommand::Verify(args) => return verify::run(args, client, json).await,
        CatalogCommand::Unpin { version } => names::unpin(&version, client, json).await?,
        CatalogCommand::Delete { name } => delete(&name, client, json).await?,
    }
    Ok(exit::OK)
}

impl Listable for TemplateResponse {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME").gives_way(),
        Column::new("OS"),
        Column::new("ARCH"),
        Column::new("DRIVER").wide(),
        Column::new("NETWORK").wide(),
        Column::new("CPUS"),
        Column::new("MIB"),
        Column::new("SIZE"),
        Column::new("DIGEST"),
        Column::new("LAST USED").wide(),
        Column::new("AGE"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.digest.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        let name = match self.damage {
            Some(_) => Cell::painted(format!("{} (DAMAGED)", self.name), Some(Colour::Red)),
            None => self.name.clone().into(),
        };
        let ago = |at| format!("{} ago", text::age(at));
        vec![
            name,
            self.os.clone().into(),
            self.arch.clone().into(),
            self.driver.clone().into(),
            self.network.clone().unwrap_or_else(|| "-".to_owned()).into(),
            self.cpus.to_string().into(),
            self.memory_mib.to_string().into(),
            self.size_bytes.map(text::bytes).unwrap_or_default().into(),
            short_digest(&self.digest).into(),
            self.last_used_at.map_or_else(|| "never".to_owned(), ago).into(),
            self.created_at.map(text::age).unwrap_or_default().into(),
        ]
    }
}

/// Enough to distinguish versions; the JSON output has the whole digest.
fn short_digest(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

async fn show(name: &str, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let mut value = client.get(&["templates", name], &[]).await?;
    let watch = watch::of(name, client).await?;
    if json {
        if let (Some(template), Some(watch)) = (value.as_object_mut(), watch) {
            template.insert("watch".to_owned(), watch);
        }
        return output::json(&value);
    }
    let t: TemplateResponse = client.view(&value)?;
    let versions = names::lines(&t);
    let mut pairs = vec![
        ("name", t.name),
        ("digest", t.digest),
        ("guest", format!("{}, {}", t.os, t.arch)),
        ("driver", t.driver),
        ("size", format!("{} cores, {} MiB", t.cpus, t.memory_mib)),
    ];
    let disk: Vec<String> = [
        t.disk_format,
        t.disk_virtual_bytes.map(|n| format!("{} for the guest", text::bytes(n))),
        t.size_bytes.map(|n| format!("{} on the host", text::bytes(n))),
    ]
    .into_iter()
    .flatten()
    .collect();
    pairs.push(("disk", disk.join(", ")));
    if let Some(handover) = t.handover {
        pairs.push(("handover", handover));
    }
    if let Some(user) = t.user {
        pairs.push(("user", user));
    }
    if let Some(network) = t.network {
        pairs.push(("network", network));
    }
    if let Some(ready) = t.ready {
        pairs.push(("ready", ready::text(ready)));
    }
    let own: Vec<String> =
        t.own_budgets.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?))).collect();
    if !own.is_empty() {
        pairs.push(("own budgets", own.join(", ")));
    }
    if let Some(at) = t.created_at {
        pairs.push(("registered", format!("{} ({} ago)", text::time(at), text::age(at))));
    }
    pairs.extend(versions);
    if let Some(watch) = watch {
        pairs.extend(watch::fields(client.view::<WatchResponse>(&watch)?));
    }
    output::bytes(text::fields(&pairs).as_bytes())
}

async fn delete(name: &str, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let value = client.delete(&["templates", name], &[]).await?;
    if json {
        return output::json(&if value.is_null() { json!({ "name": name }) } else { value });
    }
    output::line(&format!("{name}  deleted"))
}
