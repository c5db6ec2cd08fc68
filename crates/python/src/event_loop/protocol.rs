//! Protocols that are written in Rust: a transport calls them without a Python call, and without making `bytes`.

use std::sync::{Mutex, PoisonError};

use pyo3::PyTypeInfo;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// What a transport calls often. The rest (`connection_made`, `connection_lost`, `pause_writing`, `resume_writing`) it calls
/// as it calls every protocol's.
pub trait NativeProtocol: PyTypeInfo {
    /// Bytes have come; never none. They are the caller's: what is to be kept is to be copied.
    fn data_received(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()>;

    /// The peer sends no more. Whether the transport is to stay open.
    fn eof_received(slf: &Bound<'_, Self>) -> PyResult<bool>;
}

/// The functions of a native protocol, of objects whose type is to be looked at.
pub struct NativeCalls {
    /// See [`NativeProtocol::data_received`].
    pub data_received: fn(&Bound<'_, PyAny>, &[u8]) -> PyResult<()>,
    /// See [`NativeProtocol::eof_received`].
    pub eof_received: fn(&Bound<'_, PyAny>) -> PyResult<bool>,
}

impl NativeCalls {
    const fn of<P: NativeProtocol>() -> Self {
        Self {
            data_received: |protocol, data| P::data_received(protocol.cast()?, data),
            eof_received: |protocol| P::eof_received(protocol.cast()?),
        }
    }
}

struct Holder<P>(std::marker::PhantomData<P>);

impl<P: NativeProtocol> Holder<P> {
    const CALLS: NativeCalls = NativeCalls::of::<P>();
}

/// The classes that are known, by identity: a few, looked at when a transport gets its protocol.
static KNOWN: Mutex<Vec<(Py<PyType>, &'static NativeCalls)>> = Mutex::new(Vec::new());

/// From now on, instances of exactly this class are called natively: `P`, or a Python class under it that overrides neither
/// `data_received` nor `eof_received`. A class under that one may override them, and is called the usual way.
pub fn register_native_protocol<P: NativeProtocol>(class: &Bound<'_, PyType>) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.push((class.clone().unbind(), &Holder::<P>::CALLS));
}

/// How to call this protocol natively, if it is of a class that was registered.
pub fn native_calls(protocol: &Bound<'_, PyAny>) -> Option<&'static NativeCalls> {
    let class = protocol.get_type();
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known.iter().find(|(known, _)| class.is(known))?;
    Some(found.1)
}
