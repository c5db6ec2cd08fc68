//! Items and when they are due: a heap whose cancelled entries cost nothing later.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Fewer timers than this are never swept: it would not be worth it.
const FEWEST_SWEPT: usize = 64;

/// Timers of items, earliest first; those of the same time in the order they were added.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Timer<T>>,
    next: u64,
    cancelled: usize,
}

#[derive(Debug)]
struct Timer<T> {
    when: f64,
    number: u64,
    item: T,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            next: 0,
            cancelled: 0,
        }
    }
}

impl<T> Timers<T> {
    /// Adds an item that is due at `when`.
    pub fn add(&mut self, when: f64, item: T) {
        let number = self.next;
        self.next += 1;
        self.heap.push(Timer { when, number, item });
    }

    /// One of the items that are here was cancelled. True if it is time to [`Self::sweep`].
    pub fn note_cancelled(&mut self) -> bool {
        self.cancelled += 1;
        self.heap.len() >= FEWEST_SWEPT && self.cancelled * 2 > self.heap.len()
    }

    /// Takes out all items that are cancelled; they are the caller's to drop, outside of any lock.
    pub fn sweep(&mut self, is_cancelled: impl Fn(&T) -> bool) -> Vec<T> {
        self.cancelled = 0;
        let (swept, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.heap)
            .into_iter()
            .partition(|timer| is_cancelled(&timer.item));
        self.heap = kept.into();
        swept.into_iter().map(|timer| timer.item).collect()
    }

    /// When the earliest is due.
    pub fn next_due(&self) -> Option<f64> {
        self.heap.peek().map(|timer| timer.when)
    }

    /// Takes the earliest, if it is due before `end`.
    pub fn take_due(&mut self, end: f64) -> Option<T> {
        if self.next_due()? >= end {
            return None;
        }
        self.heap.pop().map(|timer| timer.item)
    }

    /// A cancelled item was taken: it is not counted any more.
    pub fn forget_cancelled(&mut self) {
        self.cancelled = self.cancelled.saturating_sub(1);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// How many there are that are not cancelled.
    pub fn len(&self) -> usize {
        self.heap.len().saturating_sub(self.cancelled)
    }

    /// Takes all items.
    pub fn clear(&mut self) -> Vec<T> {
        self.cancelled = 0;
        let heap = std::mem::take(&mut self.heap);
        heap.into_iter().map(|timer| timer.item).collect()
    }

    /// All items, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.heap.iter().map(|timer| &timer.item)
    }
}

impl<T> Ord for Timer<T> {
    /// The greatest is the earliest: the heap gives the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.when.total_cmp(&self.when)).then(other.number.cmp(&self.number))
    }
}

impl<T> PartialOrd for Timer<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Timer<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Timer<T> {}

#[cfg(test)]
mod tests {
    use super::Timers;

    #[test]
    fn earliest_first_and_in_order_of_arrival() {
        let mut timers = Timers::default();
        for (when, item) in [(2.0, 'c'), (1.0, 'a'), (2.0, 'd'), (1.0, 'b'), (3.0, 'e')] {
            timers.add(when, item);
        }
        assert_eq!(timers.next_due(), Some(1.0));
        let due: String = std::iter::from_fn(|| timers.take_due(2.5)).collect();
        assert_eq!(due, "abcd");
        assert_eq!(timers.iter().count(), 1);
    }

    #[test]
    fn a_heap_of_cancelled_timers_is_swept() {
        let mut timers = Timers::default();
        (0..100).for_each(|item| timers.add(1.0, item));
        let swept = (0..100).find(|_| timers.note_cancelled()).unwrap();
        assert_eq!(swept, 50);
        assert_eq!(timers.sweep(|&item| item <= swept).len(), 51);
        assert_eq!(timers.take_due(2.0), Some(51));
    }
}
