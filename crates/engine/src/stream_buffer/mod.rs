//! What a stream has received and nobody has read yet; how a separator is found in it.

mod separators;
#[cfg(test)]
mod tests;

pub use separators::{Separators, WrongSeparators};

/// An empty buffer keeps no more memory than this many bytes, so that ten thousand idle connections are cheap.
const MOST_KEPT: usize = 4 * 1024;

/// Received bytes in order, always in one piece.
///
/// What arrives while nothing is there is kept as the chunk that it came as (`C`, an object that others may know, too: a
/// `bytes` of Python's), and handed on as that very chunk if somebody wants all of it, so the most frequent case copies nothing.
/// Dropping or copying a chunk must not call back.
#[derive(Debug)]
pub struct StreamBuffer<C> {
    /// The only content if there is one, from `start` on.
    chunk: Option<C>,
    /// The content otherwise, from `start` on.
    bytes: Vec<u8>,
    start: usize,
}

impl<C> Default for StreamBuffer<C> {
    fn default() -> Self {
        Self {
            chunk: None,
            bytes: Vec::new(),
            start: 0,
        }
    }
}

/// What a search for a separator has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// What is to be read is so long, its separator included.
    At(usize),
    /// There is a separator, but behind this many bytes, which is more than the limit.
    BeyondLimit(usize),
    /// There is none in these first bytes, which are more than the limit.
    NotWithinLimit(usize),
    /// There is none yet; the next search may begin here.
    NotYet(usize),
}

impl<C: AsRef<[u8]>> StreamBuffer<C> {
    /// All of it.
    pub fn as_slice(&self) -> &[u8] {
        let all = self.chunk.as_ref().map_or(self.bytes.as_slice(), C::as_ref);
        all.get(self.start..).unwrap_or_default()
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a copy of some bytes behind the rest.
    pub fn feed(&mut self, data: &[u8]) {
        if let Some(chunk) = self.chunk.take() {
            let rest = chunk.as_ref().get(self.start..).unwrap_or_default();
            self.bytes.reserve(rest.len() + data.len());
            self.bytes.extend_from_slice(rest);
            self.start = 0;
        } else if self.start > 0 && self.start >= self.bytes.len() - self.start {
            // Moving what is left costs no more than what was read before.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(data);
    }

    /// Adds a chunk: as it is if there is nothing yet, a copy of it otherwise.
    pub fn feed_chunk(&mut self, chunk: C) {
        if chunk.as_ref().is_empty() {
            return;
        }
        if self.is_empty() {
            self.clear();
            self.chunk = Some(chunk);
        } else {
            self.feed(chunk.as_ref());
        }
    }

    /// Puts bytes that were taken back in front.
    pub fn put_back(&mut self, data: &[u8]) {
        let bytes = [data, self.as_slice()].concat();
        self.clear();
        self.bytes = bytes;
    }

    /// The first `size` bytes are the only ones and are a chunk that nobody has read from: the chunk. None otherwise.
    pub fn take_chunk(&mut self, size: usize) -> Option<C> {
        if self.start == 0 && self.chunk.as_ref()?.as_ref().len() == size {
            self.chunk.take()
        } else {
            None
        }
    }

    /// Forgets the first `size` bytes, or all if there are fewer.
    pub fn consume(&mut self, size: usize) {
        if size >= self.len() {
            self.clear();
        } else {
            self.start += size;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.chunk = None;
        self.start = 0;
        if self.bytes.capacity() > MOST_KEPT {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
    }

    /// Looks for the separator whose end comes first, where the first `from` bytes have been searched before.
    pub fn find(&self, separators: &Separators, limit: usize, from: usize) -> Found {
        let all = self.as_slice();
        match separators.find(all, from) {
            Some((start, _)) if start > limit => Found::BeyondLimit(start),
            Some((_, end)) => Found::At(end),
            None => {
                // The last bytes may be the beginning of a separator.
                let unknown = separators.longest() - 1;
                if all.len().saturating_sub(from) < separators.shortest() {
                    return Found::NotYet(from);
                }
                let searched = all.len().saturating_sub(unknown);
                if searched > limit {
                    Found::NotWithinLimit(searched)
                } else {
                    Found::NotYet(searched)
                }
            }
        }
    }
}
