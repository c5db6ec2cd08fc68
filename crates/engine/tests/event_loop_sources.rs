//! Sources of the event loop: tokens, stale events, reused numbers, edges and levels, and who may watch what.
#![allow(missing_docs)]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use plait_engine::event_loop::{EventLoop, Readiness, Side, Wait, Watch};
use plait_engine::sys::socket;

/// What the items of these tests are: who, and for what it was found ready.
type Item = (char, Option<Readiness>);

const READ: Watch = Watch {
    read: true,
    write: false,
    edges: true,
};
const LEVEL: Watch = Watch {
    edges: false,
    ..READ
};
const BOTH: Watch = Watch {
    write: true,
    ..READ
};

/// Looks once; what has become ready, in order.
fn look(event_loop: &EventLoop<Item>) -> Vec<Item> {
    event_loop.wait(&Wait::Look).unwrap();
    let dropped = event_loop.gather(|item, readiness| (item.0, Some(readiness)), |_| false);
    assert!(dropped.is_empty());
    let mut ready = std::collections::VecDeque::new();
    event_loop.begin_turn(&mut ready);
    ready.into()
}

fn names(items: &[Item]) -> String {
    items.iter().map(|item| item.0).collect()
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (first, listener.accept().unwrap().0)
}

/// Bytes over loopback are there at once, but that is the kernel's habit and not its promise.
fn look_until(event_loop: &EventLoop<Item>, wanted: &str) -> Vec<Item> {
    let mut seen = Vec::new();
    while names(&seen) != wanted {
        assert!(wanted.starts_with(&names(&seen)), "{seen:?}, not {wanted}");
        seen.extend(look(event_loop));
    }
    seen
}

#[test]
fn an_edge_is_told_once_and_a_level_every_time() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (edge, mut edge_peer) = tcp_pair();
    let (level, mut level_peer) = tcp_pair();
    event_loop
        .register(edge.as_raw_fd(), READ, ('e', None))
        .unwrap();
    event_loop
        .register(level.as_raw_fd(), LEVEL, ('l', None))
        .unwrap();
    assert!(look(&event_loop).is_empty());
    edge_peer.write_all(b"x").unwrap();
    look_until(&event_loop, "e");
    level_peer.write_all(b"x").unwrap();
    look_until(&event_loop, "lll");
    edge_peer.write_all(b"y").unwrap();
    while !names(&look(&event_loop)).contains('e') {}
}

#[test]
fn an_end_is_told_beside_the_data() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (token, _) = event_loop
        .register(ours.as_raw_fd(), READ, ('a', None))
        .unwrap();
    theirs.write_all(b"data").unwrap();
    let found = look(&event_loop);
    let only_data = Readiness {
        read: true,
        write: false,
        more: false,
    };
    assert_eq!(found, [('a', Some(only_data))]);
    drop(theirs);
    let found = look(&event_loop);
    assert!(found[0].1.unwrap().more, "{found:?}");
    assert!(event_loop.unregister(token).is_some());
    assert!(event_loop.unregister(token).is_none());
}

#[test]
fn a_change_counts_as_an_edge() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (token, _) = event_loop
        .register(ours.as_raw_fd(), READ, ('a', None))
        .unwrap();
    assert!(look(&event_loop).is_empty());
    event_loop.change(token, BOTH).unwrap();
    assert!(look(&event_loop)[0].1.unwrap().write);
    assert!(look(&event_loop).is_empty());
    event_loop.change(token, BOTH).unwrap();
    assert!(look(&event_loop)[0].1.unwrap().write);
}

#[test]
fn what_was_found_before_it_was_unregistered_is_not_told() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let number = ours.as_raw_fd();
    let (token, _) = event_loop.register(number, READ, ('a', None)).unwrap();
    theirs.write_all(b"x").unwrap();
    event_loop.wait(&Wait::Look).unwrap();
    event_loop.unregister(token);
    drop(ours);
    // The number, and the place in the table, are somebody else's before what was found is looked at.
    let (other, _other_peer) = with_number(number);
    event_loop
        .register(other.as_raw_fd(), READ, ('b', None))
        .unwrap();
    let dropped = event_loop.gather(|item, readiness| (item.0, Some(readiness)), |_| false);
    assert!(dropped.is_empty());
    let mut ready = std::collections::VecDeque::new();
    event_loop.begin_turn(&mut ready);
    assert!(ready.is_empty(), "{ready:?}");
}

/// A socket of this number, which was just closed; other tests run meanwhile, so it may take some tries.
fn with_number(number: RawFd) -> (UnixStream, UnixStream) {
    let mut others = Vec::new();
    for _ in 0..1000 {
        let (one, two) = UnixStream::pair().unwrap();
        if one.as_raw_fd() == number {
            return (one, two);
        }
        if two.as_raw_fd() == number {
            return (two, one);
        }
        others.push((one, two));
    }
    // Somebody else has it. Any other shows what is to be shown of the place in the table.
    others.remove(0)
}

#[test]
fn a_descriptor_that_was_closed_behind_its_back_costs_its_successor_nothing() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (mut listening, peer) = UnixStream::pair().unwrap();
    let number = listening.as_raw_fd();
    let (old, _) = event_loop.register(number, READ, ('a', None)).unwrap();
    // Another file gets the number, and nobody has said so. The old one lives on elsewhere: the kernel still tells of it.
    let (other, mut other_peer) = UnixStream::pair().unwrap();
    rustix::io::dup2(&other, &mut own(&mut listening)).unwrap();
    drop(peer);
    let (new, dropped) = event_loop.register(number, READ, ('b', None)).unwrap();
    assert_eq!(names(&dropped), "a");
    assert!(event_loop.unregister(old).is_none());
    event_loop.change(old, BOTH).unwrap();
    other_peer.write_all(b"x").unwrap();
    look_until(&event_loop, "b");
    assert_eq!(event_loop.owner(number, |item| item.0), Some('b'));
    assert_eq!(event_loop.unregister(new).map(|item| item.0), Some('b'));
    assert_eq!(event_loop.owner(number, |item| item.0), None);
}

/// The stream's own descriptor, to be replaced.
fn own(stream: &mut UnixStream) -> std::mem::ManuallyDrop<std::os::fd::OwnedFd> {
    let copy = stream.try_clone().unwrap();
    let original = std::mem::replace(stream, copy);
    std::mem::ManuallyDrop::new(original.into())
}

#[test]
fn one_owner_or_many_watchers() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let number = ours.as_raw_fd();
    event_loop.watch(number, Side::Read, ('w', None)).unwrap();
    let (token, dropped) = event_loop.register(number, READ, ('s', None)).unwrap();
    assert_eq!(names(&dropped), "w");
    assert!(event_loop.unwatch(number, Side::Read).is_none());
    let refused = event_loop
        .watch(number, Side::Read, ('x', None))
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    theirs.write_all(b"x").unwrap();
    assert_eq!(names(&look(&event_loop)), "s");
    event_loop.unregister(token);
    event_loop.watch(number, Side::Read, ('y', None)).unwrap();
    assert_eq!(names(&look(&event_loop)), "y");
}

#[test]
fn tokens_are_never_given_out_twice() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut seen = Vec::new();
    for _ in 0..1000 {
        let (token, _) = event_loop
            .register(ours.as_raw_fd(), READ, ('a', None))
            .unwrap();
        assert!(!seen.contains(&token));
        seen.push(token);
        event_loop.unregister(token).unwrap();
    }
    assert!(event_loop.clear().is_empty());
}

#[test]
fn a_cleared_loop_gives_its_sources_back() {
    let event_loop = EventLoop::<Item>::new().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (token, _) = event_loop
        .register(ours.as_raw_fd(), READ, ('a', None))
        .unwrap();
    event_loop
        .register(theirs.as_raw_fd(), READ, ('b', None))
        .unwrap();
    let mut found = names(&event_loop.clear()).into_bytes();
    found.sort_unstable();
    assert_eq!(found, b"ab");
    event_loop.change(token, BOTH).unwrap();
    assert!(event_loop.unregister(token).is_none());
}

#[test]
fn sockets_never_block() {
    let (ours, mut theirs) = tcp_pair();
    let number = ours.as_raw_fd();
    assert!(socket::is_tcp(number).unwrap());
    let mut buffer = [0; 16];
    let nothing = socket::receive(number, &mut buffer).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    assert_eq!(socket::send_some(number, b"hello").unwrap(), 5);
    theirs.read_exact(&mut buffer[..5]).unwrap();
    assert_eq!(&buffer[..5], b"hello");
    let large = vec![7; 1 << 20];
    let mut sent = 0;
    let full = loop {
        match socket::send_some(number, &large) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    assert!(sent > 0);
    socket::end_sending(number).unwrap();
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), sent);
    for act in [socket::end_sending, socket::set_nodelay] {
        assert!(act(-1).is_err());
    }
}
