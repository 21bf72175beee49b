//! What `benches/pull.py` needs done fast: images of realistic content in a registry, and what this machine can do at most.
//!
//! ```text
//! bench-pull make   --registry 127.0.0.1:PORT --gib N                  pushes the images, describes them on standard output
//! bench-pull limits --storage DIR --work DIR --images FILE              each part of a pull alone, on the same bytes
//! ```
//!
//! Everything is made from fixed seeds, so that two machines measure the same bytes. Content comes in 64 KiB blocks: one of five
//! is noise, as packed files are; the others are runs of literals and repetitions of the length that code and text have. All in
//! all it shrinks to about the half. A third of the disk is zeros, in whole chunks and in runs between the content.

#![allow(clippy::disallowed_methods, reason = "a measurement has a clock of its own")]
#![expect(clippy::print_stdout, reason = "the answer goes to standard output")]

mod content;
mod limits;
mod registry;

use std::{
    error::Error,
    fs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use self::{content::Content, registry::Registry};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const REPOSITORY: &str = "bench/pull";

/// As many chunks as the image has, whatever its size.
const CHUNKS: usize = 16;
/// Chunks that are all zeros.
const ZEROS: [usize; 3] = [7, 12, 13];
/// Chunks that are other ones in the update.
const CHANGED: [usize; 2] = [4, 10];
/// How much of a chunk of the sparse images is content: one part in this many.
const SPARSE: usize = 64;
/// The biggest of the sparse images, in chunks; the others are a half, a quarter and an eighth of it.
const SPARSE_CHUNKS: usize = 8 * CHUNKS;

#[derive(Serialize, Deserialize)]
struct Images {
    gib: u64,
    image: Described,
    update: Described,
    sparse: Vec<Described>,
}

#[derive(Serialize, Deserialize)]
struct Described {
    /// To be pulled: `/repository:tag`, after the registry's address.
    reference: String,
    disk_bytes: u64,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Chunk {
    digest: String,
    size: u64,
    content_digest: String,
    content_size: u64,
    zeros: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|a| a == name).ok_or_else(|| format!("{name} is missing"))?;
        arguments.get(at + 1).ok_or_else(|| format!("{name} has no value"))
    };
    match arguments.first().map(String::as_str) {
        Some("make") => {
            let images = make(option("--registry")?, option("--gib")?.parse()?)?;
            println!("{}", serde_json::to_string_pretty(&images)?);
        }
        Some("limits") => {
            let images: Images = serde_json::from_slice(&fs::read(option("--images")?)?)?;
            let (storage, work) = (PathBuf::from(option("--storage")?), PathBuf::from(option("--work")?));
            let limits = limits::measure(&images.image, &storage, &work)?;
            println!("{}", serde_json::to_string_pretty(&limits)?);
        }
        _ => return Err("bench-pull make|limits: see the top of benches/pull/main.rs".into()),
    }
    Ok(())
}

fn make(address: &str, gib: u64) -> Result<Images> {
    let chunk_bytes = (gib << 30) as usize / CHUNKS;
    if !chunk_bytes.is_multiple_of(content::BLOCK * SPARSE) {
        return Err("--gib must be a whole number, at least 1".into());
    }
    let registry = Registry::new(address, REPOSITORY)?;
    let first = (0..CHUNKS).map(|n| match ZEROS.contains(&n) {
        true => Content::zeros(chunk_bytes),
        false => Content::of_disk(n as u64, chunk_bytes),
    });
    let changed = CHANGED.iter().map(|&n| Content::of_disk(1000 + n as u64, chunk_bytes));
    let sparse = (0..SPARSE_CHUNKS).map(|n| Content::sparse(2000 + n as u64, chunk_bytes, chunk_bytes / SPARSE));
    let all: Vec<Content> = first.chain(changed).chain(sparse).collect();
    let chunks = push_all(&registry, &all)?;
    let (first, rest) = chunks.split_at(CHUNKS);
    let (changed, sparse) = rest.split_at(CHANGED.len());
    let mut second = first.to_vec();
    CHANGED.iter().zip(changed).for_each(|(&n, chunk)| second[n] = chunk.clone());
    let described = |tag: &str, chunks: &[Chunk]| -> Result<Described> {
        registry.push_image(tag, chunks)?;
        Ok(Described {
            reference: format!("/{REPOSITORY}:{tag}"),
            disk_bytes: chunks.iter().map(|c| c.content_size).sum(),
            chunks: chunks.to_vec(),
        })
    };
    let sizes = [CHUNKS, 2 * CHUNKS, 4 * CHUNKS, SPARSE_CHUNKS];
    Ok(Images {
        gib,
        image: described("first", first)?,
        update: described("second", &second)?,
        sparse: sizes.iter().map(|&n| described(&format!("sparse-{n}"), &sparse[..n])).collect::<Result<_>>()?,
    })
}

/// Several at a time, each in bounded memory: what is encoded goes on to the registry at once.
fn push_all(registry: &Registry, contents: &[Content]) -> Result<Vec<Chunk>> {
    let next = AtomicUsize::new(0);
    let pushed = Mutex::new(vec![None; contents.len()]);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(content) = contents.get(n) else { return Ok(()) };
                let chunk = registry.push_chunk(content)?;
                pushed.lock().unwrap_or_else(PoisonError::into_inner)[n] = Some(chunk);
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked")?)
    })?;
    let pushed = pushed.into_inner().unwrap_or_else(PoisonError::into_inner);
    pushed.into_iter().collect::<Option<_>>().ok_or_else(|| "a chunk was not pushed".into())
}
