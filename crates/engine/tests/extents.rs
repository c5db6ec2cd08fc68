//! The books of free and used pieces against a naive model: pages that are marked one by one.
#![allow(missing_docs)]

use plait_engine::shared_memory::Extents;
use proptest::prelude::*;

const PAGE: u64 = 4096;
const PAGES: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many bytes.
    Allocate(u64),
    /// One of the pieces in use.
    Release(usize),
    /// Something that is not the start of a piece in use.
    ReleaseRubbish(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..12 * PAGE).prop_map(Step::Allocate),
        1 => prop_oneof![Just(u64::MAX), Just(u64::MAX - PAGE), Just(PAGES as u64 * PAGE + 1)].prop_map(Step::Allocate),
        6 => any::<usize>().prop_map(Step::Release),
        1 => any::<u64>().prop_map(Step::ReleaseRubbish),
        1 => (0..PAGES as u64).prop_map(|page| Step::ReleaseRubbish(page * PAGE + 8)),
    ];
    prop::collection::vec(step, 0..300)
}

/// The longest run of free pages.
fn longest_gap(pages: &[bool]) -> usize {
    pages
        .split(|&used| used)
        .map(<[bool]>::len)
        .max()
        .unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_never_overlap_and_free_neighbours_join(steps in steps()) {
        let mut extents = Extents::new(PAGES as u64 * PAGE);
        let mut pages = vec![false; PAGES];
        let mut used: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate(length) => {
                    let needed = length.max(1).div_ceil(PAGE);
                    match extents.allocate(length) {
                        Some(start) => {
                            prop_assert!(start.is_multiple_of(PAGE));
                            let first = (start / PAGE) as usize;
                            let taken = &mut pages[first..first + needed as usize];
                            prop_assert!(taken.iter().all(|&used| !used), "handed out twice");
                            taken.fill(true);
                            used.push((start, needed * PAGE));
                        }
                        None => prop_assert!(longest_gap(&pages) < needed as usize, "there is room"),
                    }
                }
                Step::Release(which) if !used.is_empty() => {
                    let (start, length) = used.swap_remove(which % used.len());
                    prop_assert_eq!(extents.release(start), Some(length));
                    prop_assert_eq!(extents.release(start), None);
                    pages[(start / PAGE) as usize..((start + length) / PAGE) as usize].fill(false);
                }
                Step::ReleaseRubbish(start) if used.iter().all(|&(begin, _)| begin != start) => {
                    prop_assert_eq!(extents.release(start), None);
                }
                Step::Release(_) | Step::ReleaseRubbish(_) => {}
            }
            prop_assert_eq!(extents.in_use(), used.len());
            let in_use: u64 = used.iter().map(|&(_, length)| length).sum();
            prop_assert!(extents.free_bytes() + in_use <= PAGES as u64 * PAGE);
        }
        for (start, length) in used.drain(..) {
            prop_assert_eq!(extents.release(start), Some(length));
        }
        // Nothing leaked, and all is one piece again.
        prop_assert_eq!(extents.allocate(PAGES as u64 * PAGE), Some(0));
    }
}

#[test]
fn a_piece_that_fits_exactly_is_preferred_to_a_larger_and_to_a_fresh_one() {
    let mut extents = Extents::new(100 * PAGE);
    let starts: Vec<_> = [4, 1, 2, 1, 3, 1]
        .iter()
        .map(|pages| extents.allocate(pages * PAGE).unwrap())
        .collect();
    for at in [0, 2, 4] {
        extents.release(starts[at]);
    }
    assert_eq!(extents.free_bytes(), 9 * PAGE);
    assert_eq!(extents.allocate(2 * PAGE), Some(starts[2]));
    assert_eq!(extents.allocate(3 * PAGE), Some(starts[4]));
    assert_eq!(extents.allocate(PAGE), Some(starts[0]));
    assert_eq!(extents.allocate(5 * PAGE), Some(12 * PAGE));
}
