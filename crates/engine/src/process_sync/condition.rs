//! Who waits for a condition between processes: a table of cells, guarded by the condition's own lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::board::SLOT;
use super::{Place, Progress, Wait};
use crate::sys::{futex, identity};

/// How many may wait at a time.
pub const MOST_WAITERS: usize = 1020;
/// How many slots of a board a table takes.
pub(super) const SLOTS: u32 = (size_of::<Waiters>() / SLOT) as u32;

const FREE: u32 = 0;
const WAITING: u32 = 1;
const NOTIFIED: u32 = 2;

/// One that waits. It sleeps on `state`.
#[repr(C)]
#[derive(Debug)]
struct Cell {
    state: AtomicU32,
    /// Lower came first, modulo 2³².
    ticket: AtomicU32,
    /// Which process it is in.
    process: AtomicU64,
}

/// The table. All zero bytes are one where nobody waits.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Waiters {
    tickets: AtomicU32,
    /// How many cells were ever used.
    used: AtomicU32,
    padding: [u64; 7],
    cells: [Cell; MOST_WAITERS],
}

impl Waiters {
    fn used(&self) -> &[Cell] {
        let used = self.used.load(Ordering::Relaxed) as usize;
        &self.cells[..used.min(MOST_WAITERS)]
    }

    /// Makes the table of a place that is used again one where nobody waits.
    pub(super) fn reset(&self) {
        for cell in self.used() {
            cell.state.store(FREE, Ordering::Relaxed);
        }
    }
}

/// A thread's cell, from [`Place::enroll`] to the end of its wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enrolled(u32);

impl From<Enrolled> for u32 {
    fn from(enrolled: Enrolled) -> Self {
        enrolled.0
    }
}

impl TryFrom<u32> for Enrolled {
    type Error = &'static str;

    fn try_from(index: u32) -> Result<Self, Self::Error> {
        if (index as usize) < MOST_WAITERS {
            Ok(Self(index))
        } else {
            Err("no waiter has this number")
        }
    }
}

impl Place {
    /// Takes a cell; `None` if [`MOST_WAITERS`] wait already. The caller holds the condition's lock.
    pub fn enroll(&self) -> Option<Enrolled> {
        let table = self.waiters()?;
        let is_free = |cell: &Cell| cell.state.load(Ordering::Relaxed) == FREE;
        let index = if let Some(index) = table.used().iter().position(is_free) {
            index
        } else {
            let index = table.used().len();
            table.cells.get(index)?;
            table.used.store(index as u32 + 1, Ordering::Relaxed);
            index
        };
        let cell = &table.cells[index];
        let ticket = table.tickets.fetch_add(1, Ordering::Relaxed);
        cell.ticket.store(ticket, Ordering::Relaxed);
        cell.process
            .store(identity::of_this_process(), Ordering::Relaxed);
        // After the lines above: who dies between them has not enrolled.
        cell.state.store(WAITING, Ordering::Release);
        Some(Enrolled(index as u32))
    }

    /// A step of waiting for a notification, without the lock. After [`Progress::Done`] and [`Progress::TimedOut`] the cell
    /// is free.
    pub fn notified_step(&self, enrolled: Enrolled, wait: &mut Wait) -> Progress {
        let Some(cell) = self
            .waiters()
            .map(|table| &table.cells[enrolled.0 as usize])
        else {
            return Progress::TimedOut;
        };
        if cell.state.load(Ordering::Acquire) == WAITING
            && !wait.spin(|| cell.state.load(Ordering::Acquire) != WAITING)
        {
            let Some(slice) = wait.slice() else {
                return self.leave(enrolled);
            };
            futex::wait(&cell.state, WAITING, Some(slice));
            if cell.state.load(Ordering::Acquire) == WAITING {
                return Progress::Look;
            }
        }
        cell.state.store(FREE, Ordering::Relaxed);
        Progress::Done
    }

    /// Gives the cell up: [`Progress::Done`] if a notification had come after all.
    pub fn leave(&self, enrolled: Enrolled) -> Progress {
        let cell = self
            .waiters()
            .map(|table| &table.cells[enrolled.0 as usize]);
        let left = cell.is_none_or(|cell| {
            cell.state
                .compare_exchange(WAITING, FREE, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        if left {
            return Progress::TimedOut;
        }
        if let Some(cell) = cell {
            cell.state.store(FREE, Ordering::Relaxed);
        }
        Progress::Done
    }

    /// Notifies up to `most` of those that wait, who came first first; the dead do not count. The caller holds the condition's
    /// lock.
    pub fn notify(&self, most: usize) {
        let Some(table) = self.waiters() else {
            return;
        };
        let now = table.tickets.load(Ordering::Relaxed);
        let mut waiting: Vec<_> = table
            .used()
            .iter()
            .filter(|cell| cell.state.load(Ordering::Acquire) == WAITING)
            .collect();
        waiting.sort_unstable_by_key(|cell| {
            // The oldest has the largest distance.
            std::cmp::Reverse(now.wrapping_sub(cell.ticket.load(Ordering::Relaxed)))
        });
        let mut left = most;
        for cell in waiting {
            if left == 0 {
                return;
            }
            let process = cell.process.load(Ordering::Relaxed);
            let notified = cell.state.compare_exchange(
                WAITING,
                NOTIFIED,
                Ordering::Release,
                Ordering::Relaxed,
            );
            if notified.is_err() {
                continue; // it has left
            }
            // Nobody was asleep there: either it looks before it sleeps, or it is dead.
            if futex::wake(&cell.state, 1) == 0 && !identity::is_alive(process) {
                cell.state.store(FREE, Ordering::Relaxed);
            } else {
                left -= 1;
            }
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiters().map_or(0, |table| {
            let is_waiting = |cell: &&Cell| cell.state.load(Ordering::Relaxed) == WAITING;
            table.used().iter().filter(is_waiting).count()
        })
    }
}
