//! One or several separators, and where in some bytes the first one ends.

use std::io::BufRead;

/// What a stream is read up to.
#[derive(Debug)]
pub struct Separators {
    /// The shortest first; never empty, and none of them is.
    all: Vec<Box<[u8]>>,
}

/// Why something cannot be looked for.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum WrongSeparators {
    /// There is none.
    None,
    /// One has no bytes.
    Empty,
}

impl Separators {
    /// Of several separators the one that ends first counts; of two that end at the same place the shorter.
    pub fn new(mut all: Vec<Box<[u8]>>) -> Result<Self, WrongSeparators> {
        all.sort_by_key(|separator| separator.len());
        match all.first() {
            None => Err(WrongSeparators::None),
            Some(shortest) if shortest.is_empty() => Err(WrongSeparators::Empty),
            Some(_) => Ok(Self { all }),
        }
    }

    /// Just a newline.
    pub fn newline() -> Self {
        Self {
            all: vec![Box::from(*b"\n")],
        }
    }

    /// How long the shortest is.
    pub fn shortest(&self) -> usize {
        self.all.first().map_or(1, |separator| separator.len())
    }

    /// How long the longest is.
    pub fn longest(&self) -> usize {
        self.all.last().map_or(1, |separator| separator.len())
    }

    /// Where the separator that ends first begins and ends, if one begins at `from` or behind it.
    pub fn find(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let bytes_from = |from: usize| bytes.get(from..);
        let mut best: Option<(usize, usize)> = None;
        for separator in &self.all {
            let Some(found) = bytes_from(from).and_then(|rest| position_of(separator, rest)) else {
                continue;
            };
            let (start, end) = (from + found, from + found + separator.len());
            if best.is_none_or(|(_, best_end)| end < best_end) {
                best = Some((start, end));
            }
        }
        best
    }
}

/// Where a separator begins in some bytes.
fn position_of(separator: &[u8], bytes: &[u8]) -> Option<usize> {
    let (first, others) = separator.split_first()?;
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        let found = from + position_of_byte(*first, rest)?;
        if bytes.get(found + 1..)?.starts_with(others) {
            return Some(found);
        }
        from = found + 1;
    }
}

/// Where a byte is. The standard library offers its fast search, the C library's `memchr`, only by this name.
fn position_of_byte(byte: u8, mut bytes: &[u8]) -> Option<usize> {
    let whole = bytes;
    // Reading from memory cannot fail.
    let skipped = bytes.skip_until(byte).ok()?;
    let last = skipped.checked_sub(1)?;
    (whole.get(last) == Some(&byte)).then_some(last)
}
