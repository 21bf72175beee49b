//! Checks a template for what would make its vms fail later: in its files on the host, and in its guest's file system, which is
//! read without mounting it and without root.
//!
//! ```text
//! subject    the files and settings of a template, wherever it is
//! guest      the guest's file system
//! accounts   the guest's users and groups
//! disk, machine                               checks of the files on the host
//! access, programs, runner, shell, secrets    checks of the guest's file system
//! apple      what cannot be checked in a macOS guest, and how to look at it by hand
//! ```

mod access;
mod accounts;
mod apple;
mod disk;
mod guest;
mod machine;
mod programs;
mod runner;
mod secrets;
mod shell;
mod subject;

use std::path::Path;

use serde::Serialize;

pub use self::subject::LintSubject;
use self::{accounts::Accounts, guest::GuestTree};
use super::{
    layouts::{Tools, qemu_img},
    read_budget::{CancelOnDrop, StopFlag},
};
use crate::{
    domain::{Error, GuestOs, Result, template::DiskFormat},
    platform::files::SpaceGuard,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LintLevel {
    /// Vms of it fail, or share a secret or an identity.
    Error,
    Warning,
    /// It could not be looked at.
    NotChecked,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LintFinding {
    pub level: LintLevel,
    /// Stable name of the check.
    pub check: &'static str,
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// Collects findings.
#[derive(Debug, Default)]
struct Findings(Vec<LintFinding>);

impl Findings {
    fn error(&mut self, check: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.add(LintLevel::Error, check, what, next);
    }

    fn warning(&mut self, check: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.add(LintLevel::Warning, check, what, next);
    }

    fn not_checked(&mut self, check: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.add(LintLevel::NotChecked, check, what, next);
    }

    fn add(&mut self, level: LintLevel, check: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.0.push(LintFinding { level, check, what: what.into(), next: next.into() });
    }
}

/// What the checks need to know besides the template.
#[derive(Clone, Debug)]
pub struct LintOptions {
    /// Older runners are refused by GitHub.
    pub runner_minimum: String,
    /// Programs of this host.
    pub tools: Tools,
}

/// Checks a template; errors first. `scratch` is a directory for a raw copy of a qcow2 disk, which the caller removes.
pub async fn lint(subject: LintSubject, options: LintOptions, scratch: &Path) -> Result<Vec<LintFinding>> {
    let mut findings = Findings::default();
    let sound = disk::check(&subject, &mut findings);
    machine::check(&subject, &mut findings);
    if subject.os == GuestOs::Macos {
        apple::not_checked(&subject, &mut findings);
    } else if sound {
        let raw = match subject.disk_format {
            DiskFormat::Qcow2 => {
                let raw = scratch.join("disk.raw");
                let space = SpaceGuard::new(scratch.to_owned(), 0);
                let from = (subject.disk.as_path(), DiskFormat::Qcow2);
                qemu_img::convert(&options.tools, &space, from, (&raw, DiskFormat::Raw)).await?;
                raw
            }
            DiskFormat::Raw | DiskFormat::Asif => subject.disk.clone(),
        };
        let stop = StopFlag::default();
        let _cancel = CancelOnDrop(stop.clone());
        let look = move || {
            guest(&subject, &options, &raw, &stop, &mut findings);
            findings
        };
        findings = tokio::task::spawn_blocking(look).await.map_err(Error::internal)?;
    }
    let mut found = findings.0;
    found.sort_by_key(|finding| (finding.level, finding.check));
    Ok(found)
}

/// The checks of a Linux guest's file system.
fn guest(subject: &LintSubject, options: &LintOptions, raw: &Path, stop: &StopFlag, findings: &mut Findings) {
    let tree = match GuestTree::open(raw, stop) {
        Ok(tree) => tree,
        Err(why) => {
            let next = "boot a vm of it and look by hand, as docs/make-golden-image.md describes";
            findings.not_checked("guest.files", format!("the guest's files cannot be read here: the disk {why}"), next);
            return;
        }
    };
    disk::check_space(subject, &tree, findings);
    let accounts = Accounts::read(&tree);
    let user = access::check(subject, &tree, &accounts, findings);
    programs::check(subject, &tree, findings);
    runner::check(options, &tree, user, findings);
    shell::check(&tree, user, findings);
    secrets::check(subject, &tree, &accounts, findings);
    // A file that cannot be read may be any of those that were looked for.
    for why in tree.unreadable() {
        findings.not_checked(
            "guest.files",
            why,
            "check the file system with e2fsck, or boot a vm of it and look by hand",
        );
    }
}
