//! An echo server that does no more than it must on epoll, and the client of `benches/event_loop.py` for it and all others.
//!
//!     epoll_echo serve                            prints its port, serves until its standard input ends
//!     epoll_echo drive PORT CONNECTIONS SIZE      prints "connected"; then each line of standard input that is a
//!                                                 number sends so many requests of SIZE bytes over the connections,
//!                                                 one at a time on each, and prints "done"

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// How many descriptors one wait can report.
const MOST_EVENTS: usize = 256;
/// What one read can take.
const BUFFER: usize = 256 * 1024;
/// What stands in the place of a connection's number for the listener and for standard input.
const LISTENER: u64 = u64::MAX;
const INPUT: u64 = u64::MAX - 1;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["serve"] => serve(),
        ["drive", port, connections, size] => {
            match (port.parse(), connections.parse(), size.parse()) {
                (Ok(port), Ok(connections), Ok(size)) => drive(port, connections, size),
                _ => Err(io::Error::other("PORT, CONNECTIONS and SIZE are numbers")),
            }
        }
        _ => Err(io::Error::other(
            "usage: epoll_echo serve | epoll_echo drive PORT CONNECTIONS SIZE",
        )),
    };
    if let Err(error) = done {
        eprintln!("epoll_echo: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The descriptors that one thread waits for.
struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(MOST_EVENTS),
        })
    }

    fn add(&self, source: impl AsFd, number: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            source,
            EventData::new_u64(number),
            flags,
        )?)
    }

    fn change(&self, source: impl AsFd, number: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            source,
            EventData::new_u64(number),
            flags,
        )?)
    }

    /// The numbers of those that are ready.
    fn wait(&mut self) -> io::Result<impl Iterator<Item = (u64, EventFlags)> + '_> {
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut self.events), None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        Ok(self
            .events
            .drain(..)
            .map(|event| (event.data.u64(), event.flags)))
    }
}

/// A connection of the server, and what the peer was not yet ready to take.
struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
}

impl Connection {
    /// Echoes what has come; false when the connection is over.
    fn echo(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            let sent = send(&mut self.stream, &self.unsent)?;
            self.unsent.drain(..sent);
            return Ok(true);
        }
        let count = match self.stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        let sent = send(&mut self.stream, &buffer[..count])?;
        self.unsent.extend_from_slice(&buffer[sent..count]);
        Ok(true)
    }
}

/// How much of it the kernel takes now.
fn send(stream: &mut TcpStream, data: &[u8]) -> io::Result<usize> {
    match stream.write(data) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    println!("{}", listener.local_addr()?.port());
    let mut poll = Poll::new()?;
    poll.add(&listener, LISTENER, EventFlags::IN)?;
    poll.add(io::stdin(), INPUT, EventFlags::IN)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut ready = Vec::with_capacity(MOST_EVENTS);
    loop {
        ready.extend(poll.wait()?);
        for (number, _) in ready.drain(..) {
            match number {
                INPUT => return Ok(()),
                LISTENER => {
                    let Ok((stream, _)) = listener.accept() else {
                        continue;
                    };
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let free = connections
                        .iter()
                        .position(Option::is_none)
                        .unwrap_or(connections.len());
                    poll.add(&stream, free as u64, EventFlags::IN)?;
                    let unsent = Vec::new();
                    if free == connections.len() {
                        connections.push(None);
                    }
                    connections[free] = Some(Connection { stream, unsent });
                }
                _ => {
                    let place = &mut connections[number as usize];
                    let Some(connection) = place else { continue };
                    let waited = !connection.unsent.is_empty();
                    if !connection.echo(&mut buffer).unwrap_or(false) {
                        *place = None; // which closes it, and so takes it from epoll
                        continue;
                    }
                    let waits = !connection.unsent.is_empty();
                    if waits != waited {
                        let flags = if waits {
                            EventFlags::OUT
                        } else {
                            EventFlags::IN
                        };
                        poll.change(&connection.stream, number, flags)?;
                    }
                }
            }
        }
    }
}

/// A connection of the client, with one request on its way at most.
struct Caller {
    stream: TcpStream,
    payload: Vec<u8>,
    /// How much of the request has left, and of the answer has come.
    sent: usize,
    received: usize,
}

impl Caller {
    fn connect(port: u16, number: usize, size: usize) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // Every connection's bytes are its own.
        let payload = (0..size)
            .map(|place| (place ^ (number * 31)) as u8)
            .collect();
        Ok(Self {
            stream,
            payload,
            sent: size,
            received: size,
        })
    }

    fn request(&mut self) -> io::Result<()> {
        (self.sent, self.received) = (0, 0);
        self.go_on()
    }

    fn go_on(&mut self) -> io::Result<()> {
        if self.sent < self.payload.len() {
            self.sent += send(&mut self.stream, &self.payload[self.sent..])?;
        }
        Ok(())
    }

    /// Takes what has come; true when the answer is there.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        self.go_on()?;
        let count = match self.stream.read(buffer) {
            Ok(0) => return Err(io::Error::other("the server has closed a connection")),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if self.payload.get(self.received..self.received + count) != Some(&buffer[..count]) {
            return Err(io::Error::other("an answer that is not the request"));
        }
        self.received += count;
        Ok(count > 0 && self.received == self.payload.len())
    }
}

fn drive(port: u16, connections: usize, size: usize) -> io::Result<()> {
    let mut callers = (0..connections)
        .map(|number| Caller::connect(port, number, size))
        .collect::<io::Result<Vec<_>>>()?;
    let mut poll = Poll::new()?;
    for (number, caller) in callers.iter().enumerate() {
        // Readable once for each answer; writable again when a long request has stopped half-way.
        poll.add(
            &caller.stream,
            number as u64,
            EventFlags::IN | EventFlags::OUT | EventFlags::ET,
        )?;
    }
    println!("connected");
    let mut buffer = vec![0; BUFFER];
    for line in io::stdin().lock().lines() {
        let Ok(requests) = line?.trim().parse() else {
            continue;
        };
        run(&mut poll, &mut callers, requests, &mut buffer)?;
        println!("done");
    }
    Ok(())
}

/// Sends so many requests and waits for all of the answers.
fn run(
    poll: &mut Poll,
    callers: &mut [Caller],
    requests: usize,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut begun = requests.min(callers.len());
    let mut answered = 0;
    for caller in &mut callers[..begun] {
        caller.request()?;
    }
    while answered < requests {
        for (number, _) in poll.wait()? {
            let caller = &mut callers[number as usize];
            loop {
                let before = caller.received;
                if caller.receive(buffer)? {
                    answered += 1;
                    if begun == requests {
                        break;
                    }
                    begun += 1;
                    caller.request()?;
                    break;
                }
                // A part of a long answer: the rest may have come already.
                if caller.received == before {
                    break;
                }
            }
        }
    }
    Ok(())
}
