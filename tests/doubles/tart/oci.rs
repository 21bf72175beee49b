//! Names of registries' images, and the cache of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{home::Home, vm::Vm};

pub struct Remote {
    pub host: String,
    pub namespace: String,
    pub reference: Reference,
}

pub enum Reference {
    Tag(String),
    Digest(String),
}

impl Remote {
    /// `HOST[:PORT]/NAMESPACE[:TAG|@sha256:HEX]`. What does not parse is a local name.
    pub fn parse(name: &str) -> Option<Remote> {
        let (host, rest) = name.split_once('/')?;
        let (bare, port) = host.split_once(':').unwrap_or((host, "0"));
        let label = |l: &str| runs(l, "-");
        if !bare.split('.').all(label) || port.parse::<u16>().is_err() {
            return None;
        }
        let (namespace, reference) = if let Some((namespace, digest)) = rest.split_once('@') {
            let hex = digest.strip_prefix("sha256:")?;
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            (namespace, Reference::Digest(digest.to_owned()))
        } else if let Some((namespace, tag)) = rest.split_once(':') {
            if !runs(tag, "._-") {
                return None;
            }
            (namespace, Reference::Tag(tag.to_owned()))
        } else {
            (rest, Reference::Tag("latest".to_owned()))
        };
        let component = |c: &str| runs(c.strip_suffix(['.', '-', '_']).unwrap_or(c), "._-");
        namespace.split('/').all(component).then(|| Remote {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            reference,
        })
    }

    pub fn path(&self, home: &Home) -> PathBuf {
        let dir = home.root.join("cache/OCIs").join(self.host.replace(':', "%3A")).join(&self.namespace);
        match &self.reference {
            Reference::Tag(name) | Reference::Digest(name) => dir.join(name),
        }
    }
}

/// Runs of letters and digits with single separators between them.
fn runs(text: &str, separators: &str) -> bool {
    text.split(|c| separators.contains(c)).all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Everything in the cache by the names that `list` prints: a tagged image is there twice.
pub fn cached(home: &Home) -> Vec<(String, Vm)> {
    let root = home.root.join("cache/OCIs");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<(String, Vm)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let link = entry.file_type().is_ok_and(|t| t.is_symlink());
        let vm = Vm::at(path.clone(), &entry.file_name().to_string_lossy());
        if vm.initialised() {
            let place = dir.strip_prefix(root).unwrap_or(dir).to_string_lossy().replace("%3A", ":");
            let separator = if link { ':' } else { '@' };
            found.push((format!("{place}{separator}{}", vm.name), vm));
        } else if path.is_dir() && !link {
            walk(root, &path, found);
        }
    }
}

/// After an OCI name was deleted, and on `prune --gc`: dangling links go, then digests that no link and no marker keeps.
pub fn collect_garbage(home: &Home) -> std::io::Result<()> {
    fn sweep(dir: &Path, links: &mut Vec<PathBuf>, digests: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_symlink() {
                match fs::canonicalize(&path) {
                    Ok(target) => links.push(target),
                    Err(_) => fs::remove_file(&path)?,
                }
            } else if path.is_dir() {
                if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("sha256:")) {
                    digests.push(path);
                } else {
                    sweep(&path, links, digests)?;
                }
            }
        }
        Ok(())
    }
    let root = home.root.join("cache/OCIs");
    if !root.exists() {
        return Ok(());
    }
    let (mut links, mut digests) = (Vec::new(), Vec::new());
    sweep(&root, &mut links, &mut digests)?;
    for digest in digests {
        let real = fs::canonicalize(&digest)?;
        let vm = Vm::at(digest.clone(), "");
        if vm.initialised() && !links.contains(&real) && !digest.join(".explicitly-pulled").exists() {
            fs::remove_dir_all(&digest)?;
        }
    }
    Ok(())
}
