//! The plainest pickles, written and read without the pickle module: numbers, short texts, and tuples of those.
//!
//! Most calls and results of short jobs are such, and pickle takes longer to set itself up than to write them. What is
//! written here is pickle protocol 5 like any other, which `pickle.loads` understands; what is read here is that and nothing
//! else: [`read`] gives up at the first opcode it does not know, and the caller lets pickle read it.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyNone, PyString, PyTuple};

const PROTO: [u8; 2] = [0x80, 5];
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const INT1: u8 = b'K';
const INT2: u8 = b'M';
const INT4: u8 = b'J';
const LONG: u8 = 0x8a;
const FLOAT: u8 = b'G';
const TEXT: u8 = 0x8c;
const BYTES: u8 = b'C';
const EMPTY_TUPLE: u8 = b')';
const TUPLE1: u8 = 0x85;
const TUPLE3: u8 = 0x87;

/// Texts and bytes up to this length are plain.
const LONGEST: usize = u8::MAX as usize;
/// Tuples up to this length are plain.
const MOST_PARTS: usize = 3;

/// Appends the pickle of `value` if it is plain; false (and nothing appended) if it is not.
pub fn write(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.extend_from_slice(&PROTO);
    let plain = match value.cast_exact::<PyTuple>() {
        Ok(tuple) => write_tuple(tuple, out),
        Err(_) => write_one(value, out),
    };
    if plain {
        out.push(STOP);
    } else {
        out.truncate(start);
    }
    plain
}

fn write_tuple(tuple: &Bound<'_, PyTuple>, out: &mut Vec<u8>) -> bool {
    let length = tuple.len();
    if length > MOST_PARTS || !tuple.iter_borrowed().all(|part| write_one(&part, out)) {
        return false;
    }
    out.push(match length {
        0 => EMPTY_TUPLE,
        // TUPLE1, TUPLE2, TUPLE3
        _ => TUPLE1 + (length as u8 - 1),
    });
    true
}

fn write_one(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    if value.is_exact_instance_of::<PyInt>() {
        return write_int(value, out);
    }
    if let Ok(text) = value.cast_exact::<PyString>() {
        // Lone surrogates have no UTF-8: pickle knows what to do.
        return text
            .to_str()
            .is_ok_and(|text| write_bytes(TEXT, text.as_bytes(), out));
    }
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend_from_slice(&float.value().to_be_bytes());
        return true;
    }
    if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        return write_bytes(BYTES, bytes.as_bytes(), out);
    }
    if let Ok(truth) = value.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { TRUE } else { FALSE });
        return true;
    }
    if value.is_none() {
        out.push(NONE);
        return true;
    }
    false
}

fn write_int(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let Ok(number) = value.extract::<i64>() else {
        return false;
    };
    if let Ok(small) = u8::try_from(number) {
        out.extend_from_slice(&[INT1, small]);
    } else if let Ok(small) = u16::try_from(number) {
        out.push(INT2);
        out.extend_from_slice(&small.to_le_bytes());
    } else if let Ok(small) = i32::try_from(number) {
        out.push(INT4);
        out.extend_from_slice(&small.to_le_bytes());
    } else {
        out.extend_from_slice(&[LONG, size_of::<i64>() as u8]);
        out.extend_from_slice(&number.to_le_bytes());
    }
    true
}

fn write_bytes(opcode: u8, bytes: &[u8], out: &mut Vec<u8>) -> bool {
    if bytes.len() > LONGEST {
        return false;
    }
    out.extend_from_slice(&[opcode, bytes.len() as u8]);
    out.extend_from_slice(bytes);
    true
}

/// The value of a plain pickle; `None` if it is anything else.
pub fn read<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let mut rest = pickle.strip_prefix(&PROTO)?;
    let mut parts: [Option<Bound<'py, PyAny>>; MOST_PARTS] = [const { None }; MOST_PARTS];
    let mut count = 0;
    loop {
        let opcode = *rest.split_off_first()?;
        let value = match opcode {
            STOP => {
                // One value is left and nothing comes behind it.
                return parts[0].take().filter(|_| count == 1 && rest.is_empty());
            }
            EMPTY_TUPLE if count == 0 => PyTuple::empty(py).into_any(),
            TUPLE1..=TUPLE3 if count == usize::from(opcode - TUPLE1) + 1 => {
                let tuple = PyTuple::new(py, parts[..count].iter_mut().map(Option::take));
                count = 0;
                tuple.ok()?.into_any()
            }
            _ => read_one(py, opcode, &mut rest)?,
        };
        *parts.get_mut(count)? = Some(value);
        count += 1;
    }
}

fn read_one<'py>(py: Python<'py>, opcode: u8, rest: &mut &[u8]) -> Option<Bound<'py, PyAny>> {
    Some(match opcode {
        NONE => PyNone::get(py).to_owned().into_any(),
        TRUE => PyBool::new(py, true).to_owned().into_any(),
        FALSE => PyBool::new(py, false).to_owned().into_any(),
        INT1 => int(py, i64::from(u8::from_le_bytes(chunk(rest)?))),
        INT2 => int(py, i64::from(u16::from_le_bytes(chunk(rest)?))),
        INT4 => int(py, i64::from(i32::from_le_bytes(chunk(rest)?))),
        LONG if usize::from(rest.split_off_first().copied()?) == size_of::<i64>() => {
            int(py, i64::from_le_bytes(chunk(rest)?))
        }
        FLOAT => PyFloat::new(py, f64::from_be_bytes(chunk(rest)?)).into_any(),
        TEXT => {
            let text = std::str::from_utf8(counted(rest)?).ok()?;
            PyString::new(py, text).into_any()
        }
        BYTES => PyBytes::new(py, counted(rest)?).into_any(),
        _ => return None,
    })
}

fn int(py: Python<'_>, number: i64) -> Bound<'_, PyAny> {
    let Ok(number) = number.into_pyobject(py);
    number.into_any()
}

fn chunk<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*first)
}

fn counted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(*rest.split_off_first()?);
    rest.split_off(..length)
}
