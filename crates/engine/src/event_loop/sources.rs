//! Descriptors that have one owner, the source, which is told on every edge: by a token, never by the descriptor's number.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;

use crate::sys::poller::{Poller, Watch};

/// Stands for one registration of one descriptor, and never for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(u64);

/// The generations of a place are told apart by so many bits.
const GENERATIONS: u32 = (1 << 30) - 1;

impl Token {
    fn new(place: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(place))
    }

    /// What the poller gives back.
    pub fn number(self) -> u64 {
        self.0
    }

    fn place(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    source: Option<(RawFd, T)>,
}

/// The sources of one loop.
#[derive(Debug)]
pub struct Sources<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    by_fd: HashMap<RawFd, Token>,
}

impl<T> Default for Sources<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            by_fd: HashMap::new(),
        }
    }
}

impl<T> Sources<T> {
    /// Registers a source. The second is the source that had this number before: its descriptor must have been closed
    /// without its knowing.
    pub fn add(
        &mut self,
        poller: &Poller,
        fd: RawFd,
        watch: Watch,
        item: T,
    ) -> io::Result<(Token, Option<T>)> {
        let place = if let Some(place) = self.free.last() {
            *place
        } else {
            let place = u32::try_from(self.places.len()).map_err(io::Error::other)?;
            self.places.push(Place {
                generation: 0,
                source: None,
            });
            self.free.push(place);
            place
        };
        let token = Token::new(place, self.places[place as usize].generation);
        poller.add_source(fd, token.number(), watch)?;
        self.free.pop();
        let old = self.by_fd.insert(fd, token);
        let old = old.and_then(|old| self.take(old));
        self.places[place as usize].source = Some((fd, item));
        Ok((token, old.map(|(_, item)| item)))
    }

    /// Watches a source for something else.
    pub fn change(&self, poller: &Poller, token: Token, watch: Watch) -> io::Result<()> {
        match self.find(token) {
            Some((fd, _)) => poller.change_source(*fd, token.number(), watch),
            // It has lost its number to another one, or the loop is closed.
            None => Ok(()),
        }
    }

    /// Forgets a source; gives its item. `is_watched`: whether somebody else watches the number now, who must go on.
    pub fn remove(
        &mut self,
        poller: &Poller,
        token: Token,
        is_watched: impl Fn(RawFd) -> bool,
    ) -> Option<T> {
        let (fd, item) = self.take(token)?;
        self.by_fd.remove(&fd);
        if !is_watched(fd) {
            // One that is closed already is not watched any more, which is what is wanted.
            let _ = poller.remove(fd);
        }
        Some(item)
    }

    /// The item behind the poller's number, if it is still there.
    pub fn found(&self, number: u64) -> Option<&T> {
        self.find(Token(number)).map(|(_, item)| item)
    }

    /// The source that owns a descriptor.
    pub fn owner(&self, fd: RawFd) -> Option<&T> {
        self.found(self.by_fd.get(&fd)?.number())
    }

    fn find(&self, token: Token) -> Option<&(RawFd, T)> {
        let place = self.places.get(token.place())?;
        if place.generation != token.generation() {
            return None;
        }
        place.source.as_ref()
    }

    fn take(&mut self, token: Token) -> Option<(RawFd, T)> {
        let place = self.places.get_mut(token.place())?;
        if place.generation != token.generation() {
            return None;
        }
        let source = place.source.take()?;
        place.generation = (place.generation + 1) & GENERATIONS;
        self.free.push(token.place() as u32);
        Some(source)
    }

    /// Takes all items.
    pub fn clear(&mut self) -> Vec<T> {
        let tokens: Vec<Token> = self.by_fd.drain().map(|(_, token)| token).collect();
        tokens
            .into_iter()
            .filter_map(|token| self.take(token))
            .map(|(_, item)| item)
            .collect()
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places
            .iter()
            .filter_map(|place| place.source.as_ref().map(|(_, item)| item))
    }
}
