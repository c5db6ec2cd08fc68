//! The table of what is chosen for what, and properties that hold for any numbers.
use super::{Crossing, Decision, Evidence, Model, Reason, choose};
use proptest::prelude::*;

const MS: f64 = 1e-3;

/// Ten milliseconds of Python on four CPUs, cheap to send.
const PYTHON: Evidence = Evidence {
    jobs: 5,
    wall: 10.0 * MS,
    cpu: 10.0 * MS,
    second_thread: Some(1.0),
    coroutine: false,
    crossing: Crossing::Costs(0.05 * MS),
    cpus: 4,
    workers: None,
    jobs_left: None,
};

fn chosen(evidence: &Evidence) -> (Model, Reason) {
    let Decision { model, reason, .. } = choose(evidence);
    (model, reason)
}

#[test]
#[allow(clippy::too_many_lines)] // A table has as many lines as cases.
fn what_is_chosen_for_what() {
    let table = [
        ("python", PYTHON, Model::Processes, Reason::GilHeld),
        (
            "nothing",
            Evidence { jobs: 0, ..PYTHON },
            Model::Threads,
            Reason::NoWork,
        ),
        (
            "no-op",
            Evidence {
                wall: 2e-6,
                cpu: 2e-6,
                ..PYTHON
            },
            Model::Threads,
            Reason::TooShort,
        ),
        (
            "releases the GIL",
            Evidence {
                second_thread: Some(1.95),
                ..PYTHON
            },
            Model::Threads,
            Reason::ThreadsScale,
        ),
        (
            "half of it releases the GIL, many CPUs",
            Evidence {
                second_thread: Some(1.5),
                cpus: 16,
                ..PYTHON
            },
            Model::Processes,
            Reason::GilHeld,
        ),
        (
            "waits",
            Evidence {
                cpu: 0.2 * MS,
                second_thread: Some(1.98),
                ..PYTHON
            },
            Model::Threads,
            Reason::Waits,
        ),
        (
            "waits, seen once",
            Evidence {
                jobs: 1,
                cpu: 0.2 * MS,
                second_thread: None,
                ..PYTHON
            },
            Model::Threads,
            Reason::Waits,
        ),
        (
            "waits, cannot cross",
            Evidence {
                cpu: 0.2 * MS,
                crossing: Crossing::Refused,
                ..PYTHON
            },
            Model::Threads,
            Reason::Waits,
        ),
        (
            "waits half, computes half",
            Evidence {
                cpu: 6.0 * MS,
                second_thread: Some(1.66),
                ..PYTHON
            },
            Model::Processes,
            Reason::GilHeld,
        ),
        (
            "cannot cross",
            Evidence {
                crossing: Crossing::Refused,
                ..PYTHON
            },
            Model::Threads,
            Reason::CannotCross,
        ),
        (
            "mutates",
            Evidence {
                crossing: Crossing::Mutates,
                ..PYTHON
            },
            Model::Threads,
            Reason::Mutates,
        ),
        (
            "no result yet",
            Evidence {
                crossing: Crossing::Unknown,
                ..PYTHON
            },
            Model::Threads,
            Reason::TooLittleSeen,
        ),
        (
            "second thread not tried",
            Evidence {
                second_thread: None,
                ..PYTHON
            },
            Model::Threads,
            Reason::TooLittleSeen,
        ),
        (
            "dear to send",
            Evidence {
                crossing: Crossing::Costs(20.0 * MS),
                ..PYTHON
            },
            Model::Threads,
            Reason::CrossingDear,
        ),
        (
            "one CPU",
            Evidence { cpus: 1, ..PYTHON },
            Model::Threads,
            Reason::OneCpu,
        ),
        (
            "few are left",
            Evidence {
                jobs_left: Some(4),
                ..PYTHON
            },
            Model::Threads,
            Reason::SoonOver,
        ),
        (
            "many are left",
            Evidence {
                jobs_left: Some(5000),
                ..PYTHON
            },
            Model::Processes,
            Reason::GilHeld,
        ),
        (
            "coroutine that waits",
            Evidence {
                coroutine: true,
                cpu: 0.2 * MS,
                second_thread: None,
                ..PYTHON
            },
            Model::Tasks,
            Reason::Waits,
        ),
        (
            "coroutine that computes",
            Evidence {
                coroutine: true,
                cpu: 9.0 * MS,
                second_thread: None,
                ..PYTHON
            },
            Model::Processes,
            Reason::GilHeld,
        ),
        (
            "coroutine that computes and cannot cross",
            Evidence {
                coroutine: true,
                second_thread: None,
                crossing: Crossing::Refused,
                ..PYTHON
            },
            Model::Tasks,
            Reason::CannotCross,
        ),
    ];
    for (what, evidence, model, reason) in table {
        assert_eq!(chosen(&evidence), (model, reason), "{what}");
    }
}

#[test]
fn threads_are_as_many_as_keep_one_core_busy_while_the_others_wait() {
    let waiting = |cpu| {
        choose(&Evidence {
            cpu,
            wall: 50.0 * MS,
            ..PYTHON
        })
        .workers
    };
    assert_eq!(waiting(2.0 * MS), 25);
    assert_eq!(waiting(0.0), 64);
    assert_eq!(
        choose(&Evidence {
            second_thread: Some(2.0),
            ..PYTHON
        })
        .workers,
        4
    );
}

#[test]
fn the_workers_asked_for_are_the_workers_given() {
    assert_eq!(
        choose(&Evidence {
            workers: Some(3),
            ..PYTHON
        })
        .workers,
        3
    );
    assert_eq!(
        choose(&Evidence {
            workers: Some(7),
            cpu: 0.0,
            ..PYTHON
        })
        .workers,
        7
    );
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 1e-7..10.0,
        1 => Just(0.0),
        1 => Just(-1.0),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => any::<f64>(),
    ]
}

prop_compose! {
    fn any_evidence()(
        jobs in 0u32..10,
        wall in any_number(),
        cpu in any_number(),
        second_thread in prop::option::of(any_number()),
        coroutine: bool,
        crossing in prop_oneof![
            Just(Crossing::Unknown),
            Just(Crossing::Refused),
            Just(Crossing::Mutates),
            any_number().prop_map(Crossing::Costs),
        ],
        cpus in 0u32..256,
        workers in prop::option::of(0u32..5000),
        jobs_left in prop::option::of(any::<u64>()),
    ) -> Evidence {
        Evidence { jobs, wall, cpu, second_thread, coroutine, crossing, cpus, workers, jobs_left }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_evidence_gives_workers_and_finite_rates(evidence in any_evidence()) {
        let decision = choose(&evidence);
        prop_assert!(decision.workers >= 1);
        let rates = decision.rates;
        for rate in [rates.tasks, rates.threads, rates.processes, rates.processes_free] {
            prop_assert!(rate.is_finite() && rate >= 0.0, "{rates:?}");
        }
    }

    #[test]
    fn processes_only_for_what_was_seen_to_cross_whole(evidence in any_evidence()) {
        if choose(&evidence).model == Model::Processes {
            prop_assert!(matches!(evidence.crossing, Crossing::Costs(_)));
            prop_assert!(evidence.jobs > 0 && evidence.cpus > 1);
        }
    }

    #[test]
    fn tasks_for_coroutine_functions_alone_and_threads_for_the_others(evidence in any_evidence()) {
        match choose(&evidence).model {
            Model::Tasks => prop_assert!(evidence.coroutine),
            Model::Threads => prop_assert!(!evidence.coroutine),
            Model::Processes => {}
        }
    }

    #[test]
    fn dearer_crossing_never_brings_processes_in(evidence in any_evidence(), cost in 0.0..1.0, more in 0.0..1.0) {
        let at = |cost| choose(&Evidence { crossing: Crossing::Costs(cost), ..evidence }).model;
        if at(cost + more) == Model::Processes {
            prop_assert_eq!(at(cost), Model::Processes);
        }
    }
}
