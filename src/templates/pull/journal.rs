//! The journal of a pull: one line for each layer that is verified and on disk. A line is written after the layer's
//! bytes are on disk, so it is always true. After a crash it is read, so that the disk need not be hashed again.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::Path,
};

use parking_lot::Mutex;

use crate::registry::oci::Digest;

const HEADER: &str = "mayfly pull 1";

/// An image has some hundred layers; this many bytes hold many thousands.
const LONGEST: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// Opens or creates a journal. `expected`: the digest of each layer's content. A line with another digest is of
    /// another image or damaged, and is ignored.
    pub fn open(path: &Path, expected: &[Digest]) -> io::Result<(Journal, BTreeSet<usize>)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut text = Vec::new();
        (&file).take(LONGEST).read_to_end(&mut text)?;
        // Text after the last line end was cut off by a crash.
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&text[..whole]).into_owned();
        let mut lines = text.lines();
        let mut done = BTreeSet::new();
        if lines.next() == Some(HEADER) {
            file.set_len(whole as u64)?;
            for line in lines {
                let Some((layer, digest)) = line.split_once(' ') else { continue };
                let (Ok(layer), Ok(digest)) = (layer.parse::<usize>(), digest.parse::<Digest>()) else { continue };
                if expected.get(layer) == Some(&digest) {
                    done.insert(layer);
                }
            }
        } else {
            begin(&mut file)?;
        }
        Ok((Journal { file: Mutex::new(file) }, done))
    }

    /// Empties the journal, because the disk that it describes is gone. Must happen before a new disk exists, to
    /// which the lines would be applied.
    pub fn restart(&self) -> io::Result<()> {
        begin(&mut self.file.lock())
    }

    /// Records a layer whose bytes are on disk.
    pub fn note(&self, layer: usize, content: Digest) -> io::Result<()> {
        let mut file = self.file.lock();
        let before = file.metadata()?.len();
        // One write, so that lines of two layers do not mix.
        let noted = file.write_all(format!("{layer} {content}\n").as_bytes()).and_then(|()| file.sync_data());
        if noted.is_err() {
            // An incomplete line would corrupt the next one.
            let _ = file.set_len(before);
        }
        noted
    }
}

fn begin(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{HEADER}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests() -> Vec<Digest> {
        [b"a", b"b", b"c"].map(|content| Digest::of(content)).to_vec()
    }

    #[test]
    fn what_was_noted_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, done) = Journal::open(&path, &digests()).unwrap();
        assert!(done.is_empty());
        journal.note(2, digests()[2]).unwrap();
        journal.note(0, digests()[0]).unwrap();
        let (journal, done) = Journal::open(&path, &digests()).unwrap();
        assert_eq!(done, BTreeSet::from([0, 2]));
        journal.note(1, digests()[1]).unwrap();
        assert_eq!(Journal::open(&path, &digests()).unwrap().1, BTreeSet::from([0, 1, 2]));
        assert!(Journal::open(&path, &[]).unwrap().1.is_empty());
        journal.restart().unwrap();
        journal.note(1, digests()[1]).unwrap();
        assert_eq!(Journal::open(&path, &digests()).unwrap().1, BTreeSet::from([1]));
    }

    #[test]
    fn a_line_that_was_cut_off_anywhere_does_not_count_and_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = Journal::open(&path, &digests()).unwrap();
        journal.note(0, digests()[0]).unwrap();
        journal.note(1, digests()[1]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let second = whole.len() - format!("1 {}\n", digests()[1]).len();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (journal, done) = Journal::open(&path, &digests()).unwrap();
            assert_eq!(done, if cut >= second { BTreeSet::from([0]) } else { BTreeSet::new() }, "cut at {cut}");
            journal.note(2, digests()[2]).unwrap();
            assert!(Journal::open(&path, &digests()).unwrap().1.contains(&2), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_of_another_image_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let good = format!("1 {}", digests()[1]);
        for bad in ["", "1", "1 ", "x y", "-1 sha256:00", &good[..40], &format!("7 {}", digests()[1]), "\u{0}"] {
            std::fs::write(&path, format!("{HEADER}\n{bad}\n0 {}\n", digests()[1])).unwrap();
            assert!(Journal::open(&path, &digests()).unwrap().1.is_empty(), "{bad:?}");
        }
        std::fs::write(&path, format!("something else\n{good}\n")).unwrap();
        assert!(Journal::open(&path, &digests()).unwrap().1.is_empty());
    }
}
