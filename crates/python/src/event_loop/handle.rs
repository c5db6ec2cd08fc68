//! `asyncio.Handle`s made, run and cancelled without Python frames: their slots are read and written in place.
//!
//! A handle has to be an `asyncio.Handle` (programs and tests ask), and such an object is eight slots behind its header. Where
//! each lies is found out once, by looking where a marker goes that is put in by its name; nothing is assumed about the
//! interpreter's structures. Slots hold owned references or null. On a free-threaded build a slot is only touched in
//! the handle's critical section, as the interpreter's own member descriptors do.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyTuple, PyType};

use super::EventLoop;
use super::running::Call;

/// Where a slot lies, in bytes from the object's start.
type Offset = usize;

/// The slots of `asyncio.Handle`, and of `asyncio.TimerHandle` if it is one.
struct Slots {
    callback: Offset,
    args: Offset,
    cancelled: Offset,
    event_loop: Offset,
    source_traceback: Offset,
    repr: Offset,
    context: Offset,
}

struct TimerSlots {
    scheduled: Offset,
    when: Offset,
}

/// The classes, and what is known of them.
struct Kinds {
    handle: Py<PyType>,
    timer: Py<PyType>,
    /// That of `call_soon_threadsafe`, if this Python has one.
    threadsafe: Option<Py<PyType>>,
    /// The same for all: a timer's own slots come behind.
    slots: Slots,
    timer_slots: TimerSlots,
}

static KINDS: PyOnceLock<Kinds> = PyOnceLock::new();

/// Finds out where the slots of the classes lie, and gives them a `cancel` of ours. Called once, by `plait.event_loop`.
#[pyfunction]
pub fn prepare_handles(
    py: Python<'_>,
    handle: Bound<'_, PyType>,
    timer: Bound<'_, PyType>,
    threadsafe: Option<Bound<'_, PyType>>,
) -> PyResult<()> {
    let find = |class: &Bound<'_, PyType>, name: &str| offset_of(class, name);
    let slots = Slots {
        callback: find(&handle, "_callback")?,
        args: find(&handle, "_args")?,
        cancelled: find(&handle, "_cancelled")?,
        event_loop: find(&handle, "_loop")?,
        source_traceback: find(&handle, "_source_traceback")?,
        repr: find(&handle, "_repr")?,
        context: find(&handle, "_context")?,
    };
    let timer_slots = TimerSlots {
        scheduled: find(&timer, "_scheduled")?,
        when: find(&timer, "_when")?,
    };
    for (name, offset) in [
        ("_callback", slots.callback),
        ("_args", slots.args),
        ("_cancelled", slots.cancelled),
        ("_loop", slots.event_loop),
        ("_source_traceback", slots.source_traceback),
        ("_repr", slots.repr),
        ("_context", slots.context),
    ] {
        for class in [Some(&timer), threadsafe.as_ref()].into_iter().flatten() {
            if find(class, name)? != offset {
                return Err(unknown_layout(class, name));
            }
        }
    }
    for class in [Some(&handle), Some(&timer), threadsafe.as_ref()] {
        let Some(class) = class else { continue };
        add_method(class, "cancel", &CANCEL)?;
    }
    if let Some(class) = &threadsafe {
        add_method(class, "cancelled", &CANCELLED)?;
    }
    let kinds = Kinds {
        handle: handle.unbind(),
        timer: timer.unbind(),
        threadsafe: threadsafe.map(Bound::unbind),
        slots,
        timer_slots,
    };
    let _ = KINDS.set(py, kinds);
    Ok(())
}

fn add_method(
    class: &Bound<'_, PyType>,
    name: &str,
    definition: &'static Definition,
) -> PyResult<()> {
    // SAFETY: the definition lives for ever, its function has the signature that its flags say, and the class is a class;
    // the result is a new reference or null with an error set.
    let method = unsafe {
        Bound::from_owned_ptr_or_err(
            class.py(),
            ffi::PyDescr_NewMethod(class.as_type_ptr(), (&raw const definition.0).cast_mut()),
        )
    }?;
    class.setattr(name, method)
}

fn kinds(py: Python<'_>) -> PyResult<&'static Kinds> {
    KINDS
        .get(py)
        .ok_or_else(|| PyRuntimeError::new_err("plait.event_loop has not been imported"))
}

fn unknown_layout(class: &Bound<'_, PyType>, name: &str) -> PyErr {
    PyRuntimeError::new_err(format!(
        "this Python keeps {name} of {class} where plait does not find it; use asyncio's own event loop"
    ))
}

/// Puts a marker into a slot by its name, and looks where it went.
fn offset_of(class: &Bound<'_, PyType>, name: &str) -> PyResult<Offset> {
    let py = class.py();
    let instance = class.call_method1("__new__", (class,))?;
    let marker = py.import("builtins")?.getattr("object")?.call0()?;
    instance.setattr(name, &marker)?;
    // SAFETY: a live class.
    let size = unsafe { (*class.as_type_ptr()).tp_basicsize };
    let size = usize::try_from(size).unwrap_or(0);
    let word = size_of::<*mut ffi::PyObject>();
    let found: Vec<Offset> = (size_of::<ffi::PyObject>()..size)
        .step_by(word)
        .filter(|offset| {
            // SAFETY: inside the instance, which is this large, and aligned as it is.
            unsafe { slot(instance.as_ptr(), *offset).read() == marker.as_ptr() }
        })
        .collect();
    match found[..] {
        [offset] => Ok(offset),
        _ => Err(unknown_layout(class, name)),
    }
}

/// A slot's address.
///
/// # Safety
/// `offset` is that of a slot of the object's class.
unsafe fn slot(object: *mut ffi::PyObject, offset: Offset) -> *mut *mut ffi::PyObject {
    // SAFETY: the slot lies inside the object, and is aligned for a pointer.
    unsafe { object.byte_add(offset).cast() }
}

/// A new reference to what a slot holds.
///
/// # Safety
/// As [`slot`], and inside the object's critical section.
unsafe fn read<'py>(object: &Bound<'py, PyAny>, offset: Offset) -> Option<Bound<'py, PyAny>> {
    // SAFETY: the slot holds an owned reference or null, and nobody changes it meanwhile.
    unsafe {
        let value = slot(object.as_ptr(), offset).read();
        Bound::from_borrowed_ptr_or_opt(object.py(), value)
    }
}

/// Puts a value into a slot; gives what was there.
///
/// # Safety
/// As [`read`].
unsafe fn replace<'py>(
    object: &Bound<'py, PyAny>,
    offset: Offset,
    value: Bound<'py, PyAny>,
) -> Option<Bound<'py, PyAny>> {
    // SAFETY: the slot holds an owned reference or null, and nobody else looks at it meanwhile.
    unsafe {
        let old = slot(object.as_ptr(), offset).replace(value.into_ptr());
        Bound::from_owned_ptr_or_opt(object.py(), old)
    }
}

/// A new handle; a timer's, if `when` is given; for other threads, if `threadsafe` (and this Python makes a difference).
pub(super) fn new<'py>(
    event_loop: &Bound<'py, EventLoop>,
    callback: Bound<'py, PyAny>,
    args: Bound<'py, PyTuple>,
    context: Option<Bound<'py, PyAny>>,
    when: Option<Bound<'py, PyAny>>,
    threadsafe: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let kinds = kinds(py)?;
    let threadsafe = kinds.threadsafe.as_ref().filter(|_| threadsafe);
    let context = match context {
        Some(context) => context,
        // SAFETY: attached; a new reference, or null with an error set.
        None => unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }?,
    };
    let slots = &kinds.slots;
    if when.is_none()
        && threadsafe.is_none()
        && let Some(handle) = event_loop.get().spare()
    {
        let handle = handle.into_bound(py);
        for (offset, value) in [
            (slots.callback, callback),
            (slots.args, args.into_any()),
            (slots.context, context),
        ] {
            // SAFETY: an offset of its class, and an object that nobody else knows; the slot is null.
            unsafe { slot(handle.as_ptr(), offset).write(value.into_ptr()) };
        }
        return Ok(handle);
    }
    let class = if when.is_some() {
        &kinds.timer
    } else {
        threadsafe.unwrap_or(&kinds.handle)
    };
    let class = class.bind(py).as_type_ptr();
    // SAFETY: a class without instances of variable size; a new object with null in all its slots, or null with an error
    // set.
    let handle = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_GenericAlloc(class, 0)) }?;
    let put = |offset, value: Bound<'py, PyAny>| {
        // SAFETY: an offset of this class, and an object that nobody else knows yet; the slot is null, so nothing is lost.
        unsafe { slot(handle.as_ptr(), offset).write(value.into_ptr()) };
    };
    let none = || py.None().into_bound(py);
    let no = || PyBool::new(py, false).to_owned().into_any();
    put(slots.callback, callback);
    put(slots.args, args.into_any());
    put(slots.cancelled, no());
    put(slots.event_loop, event_loop.clone().into_any());
    put(slots.source_traceback, none());
    put(slots.repr, none());
    put(slots.context, context);
    if let Some(when) = when {
        put(kinds.timer_slots.when, when);
        let yes = PyBool::new(py, true).to_owned().into_any();
        put(kinds.timer_slots.scheduled, yes);
    }
    Ok(handle)
}

/// Makes a handle that has run ready for another call, if nobody else knows it; false if somebody does.
#[cfg(not(Py_GIL_DISABLED))]
pub(super) fn recycle(handle: &Bound<'_, PyAny>) -> bool {
    let Ok(kinds) = kinds(handle.py()) else {
        return false;
    };
    let object = handle.as_ptr();
    // SAFETY: a live object; attached, so nobody changes the count meanwhile.
    let unknown = unsafe { ffi::Py_REFCNT(object) } == 1;
    if !unknown || !handle.get_type().is(&kinds.handle) {
        return false;
    }
    let class = kinds.handle.bind(handle.py()).as_type_ptr();
    // SAFETY: a live class.
    let weak = unsafe { (*class).tp_weaklistoffset };
    let Ok(weak) = Offset::try_from(weak) else {
        return false;
    };
    let slots = &kinds.slots;
    // SAFETY: offsets of its class; nobody else knows the object, so its slots are ours.
    unsafe {
        let is_weakly_known = weak != 0 && !slot(object, weak).read().is_null();
        let cancelled = read(handle, slots.cancelled);
        let is_fresh =
            cancelled.is_some_and(|cancelled| cancelled.is(PyBool::new(handle.py(), false)));
        if is_weakly_known || !is_fresh {
            return false;
        }
        for offset in [slots.callback, slots.args, slots.context] {
            let old = slot(object, offset).replace(ptr::null_mut());
            drop(Bound::from_owned_ptr_or_opt(handle.py(), old));
        }
        // What was dropped may have run anything, and may have found the handle through the collector.
        ffi::Py_REFCNT(object) == 1
    }
}

/// Without the GIL nobody can tell that nobody else knows an object.
#[cfg(Py_GIL_DISABLED)]
pub(super) fn recycle(_handle: &Bound<'_, PyAny>) -> bool {
    false
}

/// Whether a handle of ours has been cancelled; one of another class is asked by its attribute.
pub(super) fn is_cancelled(handle: &Bound<'_, PyAny>) -> bool {
    let Ok(kinds) = kinds(handle.py()) else {
        return false;
    };
    if !is_ours(kinds, handle) {
        let cancelled = handle.getattr("_cancelled");
        return cancelled.is_ok_and(|cancelled| cancelled.is_truthy().unwrap_or(false));
    }
    with_critical_section(handle, || {
        // SAFETY: an offset of its class, in its critical section.
        let cancelled = unsafe { read(handle, kinds.slots.cancelled) };
        cancelled.is_none_or(|cancelled| cancelled.is(PyBool::new(handle.py(), true)))
    })
}

/// A timer's handle is not scheduled any more.
pub(super) fn unschedule(handle: &Bound<'_, PyAny>) {
    let Ok(kinds) = kinds(handle.py()) else {
        return;
    };
    if handle.get_type().is(&kinds.timer) {
        let no = PyBool::new(handle.py(), false).to_owned();
        let old = with_critical_section(handle, || {
            // SAFETY: an offset of its class, in its critical section.
            unsafe { replace(handle, kinds.timer_slots.scheduled, no.into_any()) }
        });
        drop(old);
    }
}

fn is_ours(kinds: &Kinds, handle: &Bound<'_, PyAny>) -> bool {
    let class = handle.get_type();
    class.is(&kinds.handle) || class.is(&kinds.timer) || is_threadsafe(kinds, handle)
}

fn is_threadsafe(kinds: &Kinds, handle: &Bound<'_, PyAny>) -> bool {
    let class = handle.get_type();
    kinds
        .threadsafe
        .as_ref()
        .is_some_and(|threadsafe| class.is(threadsafe))
}

/// Runs a handle, as `Handle._run` does but for what becomes of an exception: that is the caller's. Nothing happens if it was
/// cancelled.
pub(super) fn run(event_loop: &EventLoop, handle: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = handle.py();
    let kinds = kinds(py)?;
    if !is_ours(kinds, handle) {
        // Somebody's own: it knows what to do with exceptions.
        return if is_cancelled(handle) {
            Ok(())
        } else {
            handle.call_method0("_run").map(drop)
        };
    }
    let slots = &kinds.slots;
    let parts = with_critical_section(handle, || {
        // SAFETY: offsets of its class, in its critical section.
        let (cancelled, callback, args, context) = unsafe {
            (
                read(handle, slots.cancelled)?,
                read(handle, slots.callback)?,
                read(handle, slots.args)?,
                read(handle, slots.context)?,
            )
        };
        let is_cancelled = cancelled.is(PyBool::new(py, true));
        let begin =
            || is_threadsafe(kinds, handle).then(|| event_loop.running.begin(handle.as_ptr()));
        (!is_cancelled).then(|| (callback, args, context, begin()))
    });
    let Some((callback, args, context, call)) = parts else {
        return Ok(());
    };
    let _over_at_the_end: Option<Call<'_>> = call;
    let args = args.cast_into::<PyTuple>()?;
    // SAFETY: attached, and the argument is a live object; what is no context is an error.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    let first = if args.is_empty() {
        ptr::null()
    } else {
        // SAFETY: a tuple holds its items in a row, and keeps them as long as it lives, which is longer than the call.
        unsafe {
            (*args.as_ptr().cast::<ffi::PyTupleObject>())
                .ob_item
                .as_ptr()
        }
    };
    // SAFETY: attached; a live callable and as many live arguments as said; a new reference, or null with an error set.
    let result = unsafe {
        Bound::from_owned_ptr_or_err(
            py,
            ffi::PyObject_Vectorcall(callback.as_ptr(), first, args.len(), ptr::null_mut()),
        )
    };
    // SAFETY: attached, in the thread that entered this context.
    if unsafe { ffi::PyContext_Exit(context.as_ptr()) } != 0 {
        let error = PyErr::fetch(py);
        result?;
        return Err(error);
    }
    result.map(drop)
}

/// The definition of `cancel`. The interpreter only reads it.
struct Definition(ffi::PyMethodDef);

// SAFETY: never changed.
unsafe impl Sync for Definition {}

static CANCEL: Definition = Definition(ffi::PyMethodDef {
    ml_name: c"cancel".as_ptr(),
    ml_meth: ffi::PyMethodDefPointer {
        PyCFunction: cancel,
    },
    ml_flags: ffi::METH_NOARGS,
    ml_doc: c"Cancel the call.".as_ptr(),
});

static CANCELLED: Definition = Definition(ffi::PyMethodDef {
    ml_name: c"cancelled".as_ptr(),
    ml_meth: ffi::PyMethodDefPointer {
        PyCFunction: cancelled,
    },
    ml_flags: ffi::METH_NOARGS,
    ml_doc: c"Whether the call was cancelled; if it is being made, that is known when it is over."
        .as_ptr(),
});

/// `cancelled` of the handles of `call_soon_threadsafe`.
///
/// # Safety
/// Called by the interpreter, attached, with an instance of their class.
unsafe extern "C" fn cancelled(
    handle: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let body = |py: Python<'_>| {
        // SAFETY: a live object.
        let handle = unsafe { Bound::from_borrowed_ptr(py, handle) };
        match wait_while_running(&handle) {
            Ok(()) => PyBool::new(py, is_cancelled(&handle))
                .to_owned()
                .into_any()
                .into_ptr(),
            Err(error) => {
                error.restore(py);
                ptr::null_mut()
            }
        }
    };
    // SAFETY: as in `cancel`.
    unsafe { Python::attach_unchecked(body) }
}

/// Waits until another thread has made the call of this handle, if that has begun and the handle is of the kind.
fn wait_while_running(handle: &Bound<'_, PyAny>) -> PyResult<()> {
    let kinds = kinds(handle.py())?;
    if !is_threadsafe(kinds, handle) {
        return Ok(());
    }
    let event_loop = with_critical_section(handle, || {
        // SAFETY: an offset of its class, in its critical section.
        unsafe { read(handle, kinds.slots.event_loop) }
    });
    match event_loop.and_then(|event_loop| event_loop.cast_into::<EventLoop>().ok()) {
        Some(event_loop) => event_loop.get().running.wait(handle),
        None => Ok(()),
    }
}

/// `cancel` of all of them.
///
/// # Safety
/// Called by the interpreter, attached, with an instance of one of the classes.
unsafe extern "C" fn cancel(
    handle: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let body = |py: Python<'_>| {
        // SAFETY: a live object.
        let handle = unsafe { Bound::from_borrowed_ptr(py, handle) };
        match cancel_handle(&handle) {
            Ok(()) => py.None().into_ptr(),
            Err(error) => {
                error.restore(py);
                ptr::null_mut()
            }
        }
    };
    // SAFETY: the interpreter calls this attached, if only to finish; this tells PyO3, which would put off the drop of
    // references otherwise.
    unsafe { Python::attach_unchecked(body) }
}

fn cancel_handle(handle: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = handle.py();
    let kinds = kinds(py)?;
    if is_cancelled(handle) {
        return Ok(());
    }
    let slots = &kinds.slots;
    let event_loop = with_critical_section(handle, || {
        // SAFETY: an offset of its class, in its critical section.
        unsafe { read(handle, slots.event_loop) }
    });
    let event_loop = event_loop.and_then(|event_loop| event_loop.cast_into::<EventLoop>().ok());
    let repr = match &event_loop {
        // In debug mode a cancelled handle still tells what it was for.
        Some(event_loop) if event_loop.get().is_debug() => Some(handle.repr()?.into_any()),
        _ => None,
    };
    let yes = PyBool::new(py, true).to_owned().into_any();
    let none = || py.None().into_bound(py);
    let (scheduled, old) = with_critical_section(handle, || {
        // SAFETY: offsets of its class, in its critical section.
        unsafe {
            let is_timer = handle.get_type().is_subclass(kinds.timer.bind(py));
            let scheduled = is_timer
                .unwrap_or(false)
                .then(|| read(handle, kinds.timer_slots.scheduled))
                .flatten();
            let old = (
                replace(handle, slots.cancelled, yes.clone()),
                replace(handle, slots.callback, none()),
                replace(handle, slots.args, none()),
                repr.and_then(|repr| replace(handle, slots.repr, repr)),
            );
            (scheduled, old)
        }
    });
    if let Some(event_loop) = event_loop
        && scheduled.is_some_and(|scheduled| scheduled.is(&yes))
    {
        event_loop.get().note_cancelled(py);
    }
    // What the callback held goes last: that may run anything.
    drop(old);
    wait_while_running(handle)
}
