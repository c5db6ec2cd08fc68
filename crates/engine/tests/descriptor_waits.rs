//! Waiting once for a descriptor: those who come and go without the kernel's knowing are told of every readiness.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use plait_engine::event_loop::{EventLoop, Side, Wait};

type Loop = EventLoop<&'static str>;

/// Items of one turn that looks at descriptors; none if nothing is ready.
fn turn(event_loop: &Loop) -> Vec<&'static str> {
    event_loop.look_next();
    let wait = event_loop.prepare(true);
    assert!(matches!(wait, Wait::Look));
    event_loop.wait(&wait).unwrap();
    event_loop.gather(|item, _| item, |_| false);
    let mut items = VecDeque::new();
    event_loop.begin_turn(&mut items);
    items.into()
}

fn pair() -> (UnixStream, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    (here, there)
}

fn wait(event_loop: &Loop, fd: RawFd, name: &'static str, is_known: bool) {
    let side = if name.starts_with('w') {
        Side::Write
    } else {
        Side::Read
    };
    event_loop.watch_once(fd, side, name, is_known).unwrap();
}

fn leave(event_loop: &Loop, fd: RawFd, name: &'static str) {
    assert_eq!(event_loop.leave(fd, |item| *item == name), Some(name));
    assert_eq!(event_loop.leave(fd, |item| *item == name), None);
}

#[test]
fn every_arrival_is_told_to_whoever_waits_then() {
    let event_loop = Loop::new().unwrap();
    let (mut here, mut there) = pair();
    let fd = here.as_raw_fd();
    let mut byte = [0];
    for round in 0..3 {
        wait(&event_loop, fd, "reader", round > 0);
        assert!(turn(&event_loop).is_empty());
        there.write_all(b"x").unwrap();
        assert_eq!(turn(&event_loop), ["reader"]);
        leave(&event_loop, fd, "reader");
        here.read_exact(&mut byte).unwrap();
        // Nobody waits: what comes is told to nobody, and costs no turn again and again.
        there.write_all(b"y").unwrap();
        assert!(turn(&event_loop).is_empty());
        here.read_exact(&mut byte).unwrap();
    }
    assert!(event_loop.is_only_waited_for(fd));
}

#[test]
fn a_number_that_is_in_use_again_is_told_to_the_kernel_again() {
    let event_loop = Loop::new().unwrap();
    let (here, there) = pair();
    let fd = here.as_raw_fd();
    wait(&event_loop, fd, "old", false);
    leave(&event_loop, fd, "old");
    drop((here, there));
    let (here, mut there) = pair();
    assert_eq!(here.as_raw_fd(), fd);
    there.write_all(b"x").unwrap();
    wait(&event_loop, fd, "reader", false);
    assert_eq!(turn(&event_loop), ["reader"]);
}

#[test]
fn several_wait_for_one_descriptor_and_for_both_sides() {
    let event_loop = Loop::new().unwrap();
    let (here, mut there) = pair();
    let fd = here.as_raw_fd();
    wait(&event_loop, fd, "first reader", false);
    wait(&event_loop, fd, "second reader", true);
    // The new registration tells that it can be written to; nobody waits for that yet.
    assert!(turn(&event_loop).is_empty());
    wait(&event_loop, fd, "writer", false);
    assert_eq!(turn(&event_loop), ["writer"]);
    leave(&event_loop, fd, "writer");
    there.write_all(b"x").unwrap();
    assert_eq!(turn(&event_loop), ["first reader", "second reader"]);
}

#[test]
fn beside_those_who_watch_for_good() {
    let event_loop = Loop::new().unwrap();
    let (mut here, mut there) = pair();
    let fd = here.as_raw_fd();
    wait(&event_loop, fd, "reader", false);
    event_loop.watch(fd, Side::Write, "always").unwrap();
    assert!(!event_loop.is_only_waited_for(fd));
    assert_eq!(turn(&event_loop), ["always"]);
    there.write_all(b"x").unwrap();
    assert_eq!(turn(&event_loop), ["always", "reader"]);
    leave(&event_loop, fd, "reader");
    // There is something to read, but nobody who waits for it.
    assert_eq!(turn(&event_loop), ["always"]);
    wait(&event_loop, fd, "reader", true);
    assert_eq!(turn(&event_loop), ["always", "reader"]);
    assert_eq!(event_loop.unwatch(fd, Side::Write), Some("always"));
    assert!(event_loop.is_only_waited_for(fd));
    assert_eq!(turn(&event_loop), ["reader"]);
    let mut byte = [0];
    here.read_exact(&mut byte).unwrap();
    there.write_all(b"x").unwrap();
    assert_eq!(turn(&event_loop), ["reader"]);
    leave(&event_loop, fd, "reader");
    // The last to watch for good takes the registration along.
    event_loop.watch(fd, Side::Read, "always").unwrap();
    event_loop.unwatch(fd, Side::Read);
    assert!(!event_loop.is_only_waited_for(fd));
    wait(&event_loop, fd, "reader", true);
    assert_eq!(turn(&event_loop), ["reader"]);
}

#[test]
fn closed_descriptors_are_refused() {
    let event_loop = Loop::new().unwrap();
    assert!(
        event_loop
            .watch_once(-1, Side::Read, "reader", true)
            .is_err()
    );
    assert!(
        event_loop
            .watch_once(987_654, Side::Read, "reader", false)
            .is_err()
    );
    assert_eq!(event_loop.leave(987_654, |_| true), None);
}
