//! What this machine can do at most, each part alone: nothing that a pull has to do can be faster than the slowest of these.
//!
//! Each part has all cores, and data that is in memory already. A part's wall time is what its threads took together, divided by
//! their number: as if the work were spread evenly, whatever the number of chunks.

use std::{
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::Read as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use mayfly::registry::oci::{Digest, lz4::Decoder};
use serde_json::{Value, json};

use super::{Chunk, Described, Result};

/// Zeros are left out in units of this, as a pull leaves them out.
const UNIT: usize = 16 << 10;
const PIECE: usize = 1 << 20;

#[derive(Default)]
struct Times {
    compressed: Duration,
    decode: Duration,
    plain: Duration,
    write: Duration,
    written: u64,
}

pub fn measure(image: &Described, storage: &Path, work: &Path) -> Result<Value> {
    let threads = std::thread::available_parallelism()?.get();
    // Chunks of zeros are known by their digest: nobody has to do anything about them.
    let chunks: Vec<(u64, &Chunk)> = image
        .chunks
        .iter()
        .scan(0, |at, chunk| {
            let offset = *at;
            *at += chunk.content_size;
            Some((offset, chunk))
        })
        .filter(|(_, chunk)| !chunk.zeros)
        .collect();
    let path = work.join("limits");
    let file = File::create_new(&path)?;
    file.set_len(image.disk_bytes)?;
    let how = direct(&path);
    let times = Mutex::new(Times::default());
    let buffers: Mutex<Vec<(Vec<u8>, Vec<u8>)>> = Mutex::default();
    let run = |offset: u64, chunk: &Chunk| -> Result<()> {
        let (mut blob, mut plain) = buffers.lock().map_err(|_| "poisoned")?.pop().unwrap_or_default();
        read(chunk, storage, &mut blob)?;
        let mut mine = one(chunk, &blob, &mut plain)?;
        (mine.write, mine.written) = write(how.as_ref().unwrap_or(&file), &file, offset, &plain)?;
        times.lock().map_err(|_| "poisoned")?.add(&mine);
        buffers.lock().map_err(|_| "poisoned")?.push((blob, plain));
        Ok(())
    };
    let run = &run;
    for batch in chunks.chunks(threads) {
        std::thread::scope(|scope| {
            let running: Vec<_> = batch.iter().map(|&(at, chunk)| scope.spawn(move || run(at, chunk))).collect();
            running.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked")?)
        })?;
    }
    // The other way to write, on one chunk: what there is to choose between.
    let (_, plain) = buffers.into_inner().map_err(|_| "poisoned")?.pop().ok_or("nothing was measured")?;
    let other = work.join("buffered");
    let buffered = File::create_new(&other)?;
    buffered.set_len(plain.len() as u64)?;
    let (took, written) = write(&buffered, &buffered, 0, &plain)?;
    fs::remove_file(path)?;
    fs::remove_file(other)?;
    let times = times.into_inner().map_err(|_| "poisoned")?;
    let seconds = |d: Duration| d.as_secs_f64() / threads as f64;
    Ok(json!({
        "threads": threads,
        "compressed_bytes": chunks.iter().map(|(_, c)| c.size).sum::<u64>(),
        "plain_bytes": chunks.iter().map(|(_, c)| c.content_size).sum::<u64>(),
        "written_bytes": times.written,
        "seconds": {
            "SHA-256 of the compressed bytes": seconds(times.compressed),
            "LZ4 decoding": seconds(times.decode),
            "SHA-256 of the plain bytes": seconds(times.plain),
            "writing what is not zero": seconds(times.write),
        },
        "direct_io": how.is_some(),
        "buffered_bytes_per_second": written as f64 / took.as_secs_f64(),
    }))
}

impl Times {
    fn add(&mut self, other: &Times) {
        self.compressed += other.compressed;
        self.decode += other.decode;
        self.plain += other.plain;
        self.write += other.write;
        self.written += other.written;
    }
}

fn read(chunk: &Chunk, storage: &Path, to: &mut Vec<u8>) -> Result<()> {
    let hex = chunk.digest.strip_prefix("sha256:").ok_or("no digest")?;
    let path = storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
    to.clear();
    File::open(path)?.read_to_end(to)?;
    Ok(())
}

fn one(chunk: &Chunk, blob: &[u8], plain: &mut Vec<u8>) -> Result<Times> {
    let mut times = Times::default();
    let begun = Instant::now();
    let digest = Digest::of(blob);
    times.compressed = begun.elapsed();
    if digest.to_string() != chunk.digest {
        return Err("a blob is another one: remove the cache of this benchmark".into());
    }

    let begun = Instant::now();
    let mut decoder = Decoder::new(chunk.content_size);
    for piece in blob.chunks(PIECE) {
        decoder.push(piece, &mut |bytes| {
            black_box(bytes);
            Ok(())
        })?;
    }
    decoder.finish()?;
    times.decode = begun.elapsed();

    plain.clear();
    let mut decoder = Decoder::new(chunk.content_size);
    decoder.push(blob, &mut |bytes| {
        plain.extend_from_slice(bytes);
        Ok(())
    })?;
    decoder.finish()?;
    let begun = Instant::now();
    let digest = Digest::of(plain);
    times.plain = begun.elapsed();
    if digest.to_string() != chunk.content_digest {
        return Err("a chunk is another one: remove the cache of this benchmark".into());
    }
    Ok(times)
}

/// Past the page cache, where the file system can.
fn direct(path: &Path) -> Option<File> {
    #[cfg(target_os = "linux")]
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    #[cfg(not(target_os = "linux"))]
    let flags = 0;
    OpenOptions::new().write(true).custom_flags(flags).open(path).ok().filter(|_| flags != 0)
}

/// Writes and flushes; gives the time and the number of bytes.
fn write(to: &File, file: &File, offset: u64, plain: &[u8]) -> Result<(Duration, u64)> {
    let mut room = vec![0; PIECE + 4096];
    let start = room.as_ptr().align_offset(4096);
    let aligned = &mut room[start..start + PIECE];
    let mut took = Duration::ZERO;
    let mut written = 0;
    for (n, piece) in plain.chunks(PIECE).enumerate() {
        let aligned = &mut aligned[..piece.len()];
        aligned.copy_from_slice(piece);
        let mut at = 0;
        while at < piece.len() {
            let zeros = |at: usize| piece[at..(at + UNIT).min(piece.len())].iter().all(|&b| b == 0);
            let from = at;
            while at < piece.len() && !zeros(at) {
                at = (at + UNIT).min(piece.len());
            }
            let begun = Instant::now();
            to.write_all_at(&aligned[from..at], offset + (n * PIECE + from) as u64)?;
            took += begun.elapsed();
            written += (at - from) as u64;
            while at < piece.len() && zeros(at) {
                at = (at + UNIT).min(piece.len());
            }
        }
    }
    let begun = Instant::now();
    file.sync_data()?;
    Ok((took + begun.elapsed(), written))
}
