//! A ledger without jobs: what is kept, what is summed up, who may read meanwhile.

use std::sync::Barrier;

use super::*;

fn record(number: u64) -> Record {
    let mut record = Record::new(Model::Threads, Ending::Returned, number, number + 10);
    record.started_ns = number + 4;
    record.run_ns = 5;
    record.cpu_ns = 3;
    record.children_ns = 0;
    record.gil_ns = 1;
    record
}

#[test]
fn a_record_says_what_is_left() {
    let mut one = record(7);
    assert_eq!((one.latency_ns(), one.queued_ns()), (10, Some(4)));
    assert_eq!(one.waiting_ns(), Some(1));
    one.gil_ns = UNKNOWN;
    assert_eq!(one.waiting_ns(), Some(2));
    one.children_ns = 100;
    assert_eq!(one.waiting_ns(), Some(0));
    one.cpu_ns = UNKNOWN;
    assert_eq!(one.waiting_ns(), None);
    let never = Record::new(Model::Tasks, Ending::Cancelled, 9, 3);
    assert_eq!((never.latency_ns(), never.queued_ns()), (0, None));
}

#[test]
fn the_newest_are_kept_and_none_is_forgotten() {
    let ledger = Ledger::new(4 * BLOCK);
    let shard = ledger.shard().expect("this is no fork");
    let all = 10_000_u64;
    for number in 1..=all {
        shard.push(record(number));
    }
    let snapshot = ledger.snapshot();
    let kept = snapshot.records.len() as u64;
    assert!((4 * BLOCK..=6 * BLOCK).contains(&(kept as usize)), "{kept}");
    assert_eq!(snapshot.fallen.jobs + kept, all);
    assert_eq!(snapshot.records[0].submitted_ns, all - kept + 1);
    let sums = snapshot.totals()[&(Model::Threads, 0)];
    assert_eq!((sums.jobs, sums.measured), (all, all));
    assert_eq!(
        (sums.run_ns, sums.cpu_ns, sums.gil_ns),
        (5 * all, 3 * all, all)
    );
    assert_eq!((sums.first_ns, sums.last_ns), (1, all + 10));
    assert_eq!(
        snapshot.sums(|record| record.submitted_ns > all - 5).jobs,
        5
    );
    let latency = snapshot.quantiles(Quantity::Latency, None, &[0.5]);
    assert_eq!(latency, [10]);
    assert!(
        snapshot
            .quantiles(Quantity::Run, Some(Model::Tasks), &[0.5])
            .is_empty()
    );
}

#[test]
fn quantiles_are_exact_while_all_is_kept() {
    let ledger = Ledger::new(KEPT);
    let shard = ledger.shard().expect("this is no fork");
    for run_ns in 1..=100 {
        let mut one = record(1);
        one.run_ns = run_ns * 1_000_001;
        shard.push(one);
    }
    let found = ledger
        .snapshot()
        .quantiles(Quantity::Run, None, &[0.0, 0.5, 0.9, 0.99, 1.0]);
    assert_eq!(found, [1, 50, 90, 99, 100].map(|rank| rank * 1_000_001));
}

#[test]
fn what_a_writer_leaves_behind_stays() {
    let ledger = Ledger::new(KEPT);
    let shard = ledger.shard().expect("this is no fork");
    let place = shard.push(record(1));
    drop(shard);
    ledger.amend(place, |record| record.result_ns = 77);
    let snapshot = ledger.snapshot();
    assert_eq!(snapshot.records.len(), 1);
    assert_eq!(snapshot.records[0].result_ns, 77);
}

#[test]
fn a_record_is_amended_wherever_it_is() {
    let ledger = Ledger::new(KEPT);
    let shard = ledger.shard().expect("this is no fork");
    let places: Vec<_> = (0..3 * BLOCK as u64)
        .map(|number| shard.push(record(number)))
        .collect();
    for place in &places {
        ledger.amend(*place, |record| record.result_bytes += 1);
    }
    assert_eq!(
        ledger.snapshot().sums(|_| true).result_bytes,
        3 * BLOCK as u64
    );
}

#[test]
fn names_and_workers_are_bounded() {
    let ledger = Ledger::new(KEPT);
    assert_eq!(ledger.name("f"), ledger.name("f"));
    let numbers: Vec<_> = (0..2 * MOST_NAMES)
        .map(|number| ledger.name(&number.to_string()))
        .collect();
    assert_eq!(numbers.last(), Some(&0));
    for _ in 0..2 * MOST_LEFT {
        let number = ledger.worker_came(Model::Processes, "one", 1);
        ledger.worker_left(number);
        ledger.worker_left(number);
    }
    let stays = ledger.worker_came(Model::Threads, "two", 0);
    let snapshot = ledger.snapshot();
    assert_eq!(snapshot.names.len(), MOST_NAMES);
    assert_eq!(snapshot.workers.len(), MOST_LEFT + 1);
    assert_eq!(snapshot.workers[&stays].until_ns, 0);
}

#[test]
fn many_write_while_one_reads() {
    let (ledger, writers, each) = (Ledger::new(8 * BLOCK), 4_u64, 20_000_u64);
    let start = Barrier::new(writers as usize + 1);
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (ledger, start) = (&ledger, &start);
            scope.spawn(move || {
                let shard = ledger.shard().expect("this is no fork");
                start.wait();
                for number in 0..each {
                    shard.push(record(writer * each + number));
                }
            });
        }
        start.wait();
        let mut seen = 0;
        while seen < writers * each {
            let snapshot = ledger.snapshot();
            let now = snapshot.fallen.jobs + snapshot.records.len() as u64;
            assert!(now >= seen, "{now} after {seen}");
            seen = now;
        }
    });
    let snapshot = ledger.snapshot();
    let sums = snapshot.totals()[&(Model::Threads, 0)];
    assert_eq!(sums.jobs, writers * each);
    assert_eq!(sums.run_ns, 5 * writers * each);
}
