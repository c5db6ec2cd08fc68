//! The frames between a pool and its workers, as types. Decoding trusts nothing: every length and count is checked.
//!
//! All numbers are little-endian. A [`Piece`] is a length and a place: `INLINE` (the bytes follow) or an offset into
//! shared memory. Frames live on one machine and one build, so there is no version in them.
#![allow(missing_docs, reason = "each variant's own comment names its fields")]

use super::account::Spent;

/// A place that says: the bytes follow here.
const INLINE: u64 = u64::MAX;

/// Bytes in a frame or in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The bytes themselves.
    Inline(&'a [u8]),
    /// Where they lie.
    Shared { offset: u64, length: u64 },
}

/// What a pool tells a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Run the function in `slot`, after putting there what `definition` defines, if there is one.
    Call {
        job: u64,
        slot: u64,
        definition: Option<Piece<'a>>,
        arguments: Piece<'a>,
        buffers: Vec<Piece<'a>>,
    },
    /// Leave.
    Stop,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The payload is the value.
    Value = 0,
    /// The value is `None`; there is no payload.
    Nothing = 1,
    /// The payload is the exception and the text of its traceback.
    Raised = 2,
    /// The value or the exception could not be pickled; the payload is a text about it.
    Unpicklable = 3,
}

/// What a worker tells its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// It has started.
    Ready,
    /// It cannot be used: the text of the traceback of its initializer.
    Unusable { text: Piece<'a> },
    /// A job has ended.
    Answer {
        job: u64,
        status: Status,
        run_ns: u64,
        spent: Spent,
        payload: Piece<'a>,
        buffers: Vec<Piece<'a>>,
        released: Vec<u64>,
    },
    /// It does not use these pieces of the arguments' memory any more.
    Released { released: Vec<u64> },
    /// What it says besides answers (a log record, say), for those who know the kind.
    Note { kind: u8, payload: Piece<'a> },
    /// It uses more memory than it may, so much of its own, and wants to be replaced.
    Retire { resident_bytes: u64 },
}

/// A frame that no correct peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

const CALL: u8 = 1;
const STOP: u8 = 2;
const READY: u8 = 3;
const UNUSABLE: u8 = 4;
const ANSWER: u8 = 5;
const RELEASED: u8 = 6;
const NOTE: u8 = 7;
const RETIRE: u8 = 8;

impl<'a> Request<'a> {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Call {
                job,
                slot,
                definition,
                arguments,
                buffers,
            } => {
                out.push(CALL);
                put(out, *job);
                put(out, *slot);
                out.push(u8::from(definition.is_some()));
                if let Some(piece) = definition {
                    put_piece(out, piece);
                }
                put_piece(out, arguments);
                put_pieces(out, buffers);
            }
            Self::Stop => out.push(STOP),
        }
    }

    /// Reads a frame.
    pub fn decode(frame: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = frame;
        match byte(&mut rest)? {
            CALL => {
                let (job, slot) = (number(&mut rest)?, number(&mut rest)?);
                let definition = (byte(&mut rest)? == 1)
                    .then(|| piece(&mut rest))
                    .transpose()?;
                Ok(Self::Call {
                    job,
                    slot,
                    definition,
                    arguments: piece(&mut rest)?,
                    buffers: pieces(&mut rest)?,
                })
            }
            STOP => Ok(Self::Stop),
            _ => Err(Malformed),
        }
    }
}

impl<'a> Reply<'a> {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ready => out.push(READY),
            Self::Unusable { text } => {
                out.push(UNUSABLE);
                put_piece(out, text);
            }
            Self::Answer {
                job,
                status,
                run_ns,
                spent,
                payload,
                buffers,
                released,
            } => {
                out.push(ANSWER);
                put(out, *job);
                out.push(*status as u8);
                put(out, *run_ns);
                for number in spent.to_numbers() {
                    put(out, number);
                }
                put_piece(out, payload);
                put_pieces(out, buffers);
                put_numbers(out, released);
            }
            Self::Released { released } => {
                out.push(RELEASED);
                put_numbers(out, released);
            }
            Self::Note { kind, payload } => {
                out.extend([NOTE, *kind]);
                put_piece(out, payload);
            }
            Self::Retire { resident_bytes } => {
                out.push(RETIRE);
                put(out, *resident_bytes);
            }
        }
    }

    /// Reads a frame.
    pub fn decode(frame: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = frame;
        match byte(&mut rest)? {
            READY => Ok(Self::Ready),
            UNUSABLE => Ok(Self::Unusable {
                text: piece(&mut rest)?,
            }),
            ANSWER => Ok(Self::Answer {
                job: number(&mut rest)?,
                status: match byte(&mut rest)? {
                    0 => Status::Value,
                    1 => Status::Nothing,
                    2 => Status::Raised,
                    3 => Status::Unpicklable,
                    _ => return Err(Malformed),
                },
                run_ns: number(&mut rest)?,
                spent: Spent::from_numbers(|| number(&mut rest))?,
                payload: piece(&mut rest)?,
                buffers: pieces(&mut rest)?,
                released: numbers(&mut rest)?,
            }),
            RELEASED => Ok(Self::Released {
                released: numbers(&mut rest)?,
            }),
            NOTE => Ok(Self::Note {
                kind: byte(&mut rest)?,
                payload: piece(&mut rest)?,
            }),
            RETIRE => Ok(Self::Retire {
                resident_bytes: number(&mut rest)?,
            }),
            _ => Err(Malformed),
        }
    }
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_piece(out: &mut Vec<u8>, piece: &Piece<'_>) {
    match *piece {
        Piece::Inline(bytes) => {
            put(out, bytes.len() as u64);
            put(out, INLINE);
            out.extend_from_slice(bytes);
        }
        Piece::Shared { offset, length } => {
            put(out, length);
            put(out, offset);
        }
    }
}

fn put_pieces(out: &mut Vec<u8>, pieces: &[Piece<'_>]) {
    put(out, pieces.len() as u64);
    for piece in pieces {
        put_piece(out, piece);
    }
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    put(out, numbers.len() as u64);
    for &number in numbers {
        put(out, number);
    }
}

fn byte(rest: &mut &[u8]) -> Result<u8, Malformed> {
    let (&first, tail) = rest.split_first().ok_or(Malformed)?;
    *rest = tail;
    Ok(first)
}

fn number(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let (first, tail) = rest.split_first_chunk().ok_or(Malformed)?;
    *rest = tail;
    Ok(u64::from_le_bytes(*first))
}

fn piece<'a>(rest: &mut &'a [u8]) -> Result<Piece<'a>, Malformed> {
    let (length, offset) = (number(rest)?, number(rest)?);
    if offset != INLINE {
        return Ok(Piece::Shared { offset, length });
    }
    let (bytes, tail) = usize::try_from(length)
        .ok()
        .and_then(|at| rest.split_at_checked(at))
        .ok_or(Malformed)?;
    *rest = tail;
    Ok(Piece::Inline(bytes))
}

/// Reads a count and so many items; a count that the rest of the frame cannot hold is refused before it is believed.
fn list<'a, T>(
    rest: &mut &'a [u8],
    shortest: usize,
    item: impl Fn(&mut &'a [u8]) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = usize::try_from(number(rest)?).map_err(|_| Malformed)?;
    if count
        .checked_mul(shortest)
        .is_none_or(|bytes| bytes > rest.len())
    {
        return Err(Malformed);
    }
    (0..count).map(|_| item(rest)).collect()
}

fn pieces<'a>(rest: &mut &'a [u8]) -> Result<Vec<Piece<'a>>, Malformed> {
    list(rest, 16, piece)
}

fn numbers(rest: &mut &[u8]) -> Result<Vec<u64>, Malformed> {
    list(rest, 8, number)
}
