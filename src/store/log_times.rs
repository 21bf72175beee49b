//! Remembers when a log had which length, so that a reader can begin at a time. Logs hold a guest's bytes as they are, so the
//! times are in a file beside each log.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use jiff::{SignedDuration, Timestamp};

use crate::platform::files;

/// A time in milliseconds, and the log's length before what was written then.
const ENTRY: u64 = 16;
/// Entries a second apart at least; the same number follows a minute apart at least, and then none, so that no guest can make
/// the file grow without end.
const FINE: u64 = 4096;
const MOST: u64 = 2 * FINE;

/// How long after it an entry still stands for what is written. `None`: to the end.
fn stands_for(entry: u64) -> Option<SignedDuration> {
    match entry + 1 {
        MOST.. => None,
        FINE.. => Some(SignedDuration::from_mins(1)),
        _ => Some(SignedDuration::from_secs(1)),
    }
}

/// Notes that a log of this length is being written to.
pub fn note(path: &Path, at: Timestamp, length: u64) -> io::Result<()> {
    let mut file = files::private().read(true).write(true).create(true).truncate(false).open(path)?;
    // A process that died may have left a part of an entry.
    let entries = file.metadata()?.len() / ENTRY;
    if let Some(last) = entries.checked_sub(1) {
        let (since, _) = read(&mut file, last)?;
        if stands_for(last).is_none_or(|lasts| at.duration_since(since) < lasts && at >= since) {
            return Ok(());
        }
    }
    file.seek(SeekFrom::Start(entries * ENTRY))?;
    let mut entry = [0; ENTRY as usize];
    entry[..8].copy_from_slice(&at.as_millisecond().to_be_bytes());
    entry[8..].copy_from_slice(&length.to_be_bytes());
    file.write_all(&entry)
}

fn read(file: &mut File, entry: u64) -> io::Result<(Timestamp, u64)> {
    let (mut at, mut length) = ([0; 8], [0; 8]);
    file.seek(SeekFrom::Start(entry * ENTRY))?;
    file.read_exact(&mut at)?;
    file.read_exact(&mut length)?;
    let at = Timestamp::from_millisecond(i64::from_be_bytes(at)).map_err(io::Error::other)?;
    Ok((at, u64::from_be_bytes(length)))
}

/// The byte at which what was written since then begins; up to a second, in very long logs a minute, more may be included.
/// `u64::MAX`: nothing was.
pub fn offset(path: &Path, since: Timestamp) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let entries = file.metadata()?.len() / ENTRY;
    let mut begins = 0;
    for entry in 0..entries {
        let (at, length) = read(&mut file, entry)?;
        if at > since {
            // What the entries before stand for was written earlier.
            return Ok(if begins == u64::MAX { length } else { begins });
        }
        let lasts = stands_for(entry);
        begins = if lasts.is_some_and(|lasts| since.duration_since(at) >= lasts) { u64::MAX } else { length };
    }
    Ok(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + millis).unwrap()
    }

    #[test]
    fn a_time_leads_to_what_was_written_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.times");
        assert_eq!(offset(&path, at(0)).unwrap(), 0, "a log without times is shown from its beginning");
        // 500 ms after an entry, a write belongs to it.
        for (millis, length) in [(0, 0), (500, 10), (2_000, 20), (3_600_000, 30)] {
            note(&path, at(millis), length).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * ENTRY);
        for (since, begins) in [
            (-1, 0),
            (0, 0),
            (999, 0),
            (1_000, 20),
            (2_000, 20),
            (2_999, 20),
            (3_000, 30),
            (3_600_000, 30),
            (3_601_000, u64::MAX),
        ] {
            assert_eq!(offset(&path, at(since)).unwrap(), begins, "{since}");
        }
        // A torn entry is written over.
        File::options().append(true).open(&path).unwrap().write_all(&[1, 2, 3]).unwrap();
        note(&path, at(7_200_000), 40).unwrap();
        assert_eq!(offset(&path, at(7_100_000)).unwrap(), 40);
    }

    #[test]
    fn its_size_is_limited_and_nothing_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.times");
        let mut last = 0;
        for n in 0..i64::try_from(FINE).unwrap() + 10 {
            last = n * 1000;
            note(&path, at(last), n.cast_unsigned()).unwrap();
        }
        let len = std::fs::metadata(&path).unwrap().len();
        assert_eq!(len, FINE * ENTRY, "a minute apart from here on");
        assert_eq!(offset(&path, at(last)).unwrap(), FINE - 1);
        let mut entries = Vec::new();
        for n in 0..MOST {
            entries.extend(at(i64::try_from(n).unwrap() * 60_000).as_millisecond().to_be_bytes());
            entries.extend(n.to_be_bytes());
        }
        std::fs::write(&path, &entries).unwrap();
        note(&path, at(i64::MAX >> 20), 1 << 20).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), MOST * ENTRY);
        assert_eq!(offset(&path, at(i64::MAX >> 20)).unwrap(), MOST - 1);
    }
}
