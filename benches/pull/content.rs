//! Bytes as they are on disks, from a seed, at the speed of memory.

use std::io::{self, Read};

/// What is made at a time. As large as the codec's blocks, so that no match is lost at a boundary.
pub const BLOCK: usize = 64 << 10;

/// Of a chunk of the disk.
#[derive(Clone)]
pub struct Content {
    seed: u64,
    pub size: usize,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Zeros,
    /// Content with runs of zeros in between.
    Disk,
    /// Content at the beginning, and zeros.
    Sparse {
        content: usize,
    },
}

impl Content {
    pub fn zeros(size: usize) -> Content {
        Content { seed: 0, size, kind: Kind::Zeros }
    }

    pub fn of_disk(seed: u64, size: usize) -> Content {
        Content { seed, size, kind: Kind::Disk }
    }

    pub fn sparse(seed: u64, size: usize, content: usize) -> Content {
        Content { seed, size, kind: Kind::Sparse { content } }
    }

    pub fn is_zeros(&self) -> bool {
        matches!(self.kind, Kind::Zeros)
    }

    pub fn bytes(&self) -> Bytes {
        Bytes {
            random: Random(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            kind: self.kind.clone(),
            made: 0,
            left: self.size,
            run: 0,
            in_zeros: true,
            block: vec![0; BLOCK],
            at: BLOCK,
        }
    }
}

pub struct Bytes {
    random: Random,
    kind: Kind,
    made: usize,
    /// Not given out yet.
    left: usize,
    /// Blocks until content becomes zeros, or zeros content.
    run: u64,
    in_zeros: bool,
    block: Vec<u8>,
    at: usize,
}

impl Bytes {
    fn next_block(&mut self) {
        let zeros = match self.kind {
            Kind::Zeros => true,
            Kind::Sparse { content } => self.made >= content,
            Kind::Disk => {
                if self.run == 0 {
                    self.in_zeros = !self.in_zeros;
                    // Runs of zeros of up to 2 MiB; with the chunks that are all zeros, a third of the disk.
                    let zeros = 1 + self.random.below(32);
                    self.run = if self.in_zeros { zeros } else { zeros * 457 / 100 };
                }
                self.run -= 1;
                self.in_zeros
            }
        };
        if zeros {
            self.block.fill(0);
        } else if self.random.below(5) == 0 {
            self.random.fill(&mut self.block);
        } else {
            self.random.fill_with_repetitions(&mut self.block);
        }
        self.made += BLOCK;
        self.at = 0;
    }
}

impl Read for Bytes {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == BLOCK && self.left > 0 {
            self.next_block();
        }
        let n = to.len().min(BLOCK - self.at).min(self.left);
        to[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        self.left -= n;
        Ok(n)
    }
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn fill(&mut self, to: &mut [u8]) {
        for eight in to.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            eight.copy_from_slice(&bytes[..eight.len()]);
        }
    }

    /// Some literals, then something that was there before: the average lengths of what LZ4 finds in programs and text.
    fn fill_with_repetitions(&mut self, to: &mut [u8]) {
        let mut at = 128.min(to.len());
        self.fill(&mut to[..at]);
        while at < to.len() {
            let dice = self.next();
            let literals = (1 + (dice & 15) as usize).min(to.len() - at);
            self.fill(&mut to[at..at + literals]);
            at += literals;
            let length = (8 + ((dice >> 8) & 63) as usize).min(to.len() - at);
            let from = (dice >> 16) as usize % (at - length);
            to.copy_within(from..from + length, at);
            at += length;
        }
    }
}
