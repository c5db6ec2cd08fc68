//! Calling and raising with what the safe API cannot say: contexts, implicit exception chaining. The only raw FFI.
#![allow(unsafe_code)]

use pyo3::exceptions::PyBaseException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

/// The error that `raise exception` makes: chained to the exception that is being handled, if any.
pub fn raise(exception: Bound<'_, PyAny>) -> PyErr {
    if !exception.is_instance_of::<PyBaseException>() {
        return PyErr::from_value(exception);
    }
    // SAFETY: attached (there is a Bound), both are live objects, and the value is an instance of the type.
    unsafe { ffi::PyErr_SetObject(exception.get_type().as_ptr(), exception.as_ptr()) };
    PyErr::fetch(exception.py())
}

/// How a step of a coroutine ended.
pub enum Step<'py> {
    /// At an `await`.
    Yielded(Bound<'py, PyAny>),
    /// It was the last one.
    Returned(Bound<'py, PyAny>),
}

/// Runs a coroutine's next step.
pub fn send<'py>(coroutine: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = coroutine.py();
    let mut result = std::ptr::null_mut();
    // SAFETY: attached, both are live objects; `result` is a new reference, or null with an error set.
    let (sent, result) = unsafe {
        let sent = ffi::PyIter_Send(coroutine.as_ptr(), value.as_ptr(), &raw mut result);
        (sent, Bound::from_owned_ptr_or_err(py, result))
    };
    Ok(match sent {
        ffi::PySendResult::PYGEN_RETURN => Step::Returned(result?),
        ffi::PySendResult::PYGEN_NEXT => Step::Yielded(result?),
        ffi::PySendResult::PYGEN_ERROR => {
            return Err(result.err().unwrap_or_else(|| PyErr::fetch(py)));
        }
    })
}

/// The number of this thread, as `threading.get_ident` tells it.
pub fn thread_ident() -> u64 {
    // SAFETY: may be called by any thread, attached or not.
    unsafe { ffi::PyThread_get_thread_ident() }
}

/// A copy of the calling thread's context.
pub fn copy_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: attached; the function returns a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }
}

/// Calls a function with one argument, in a context.
pub fn call_in<'py>(
    context: &Bound<'py, PyAny>,
    function: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let _entered = Entered::new(context)?;
    function.call1((argument,))
}

/// Whether somebody may know an object beside those who hold `ours` references to it; without the GIL nobody can tell.
pub fn is_known_to_others(object: &Bound<'_, PyAny>, ours: isize) -> bool {
    // SAFETY: a live object; attached, so with the GIL nobody changes the count meanwhile.
    cfg!(Py_GIL_DISABLED) || unsafe { ffi::Py_REFCNT(object.as_ptr()) } > ours
}

/// A call to be made later: the function, its arguments and the context to make it in.
pub struct Callback {
    function: Py<PyAny>,
    args: Py<PyTuple>,
    /// None if there are no keywords.
    kwargs: Option<Py<PyDict>>,
    /// A copy of the context that the call was asked for in; None to use the calling thread's own.
    context: Option<Py<PyAny>>,
}

impl Callback {
    /// A call of `function`, in a copy of the current context if `carry_context`.
    pub fn new(
        function: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        kwargs: &Bound<'_, PyDict>,
        carry_context: bool,
    ) -> PyResult<Self> {
        let py = function.py();
        let context = carry_context.then(|| copy_context(py)).transpose()?;
        Ok(Self {
            function: function.unbind(),
            args: args.unbind(),
            kwargs: if kwargs.is_empty() {
                None
            } else {
                Some(kwargs.clone().unbind())
            },
            context: context.map(Bound::unbind),
        })
    }

    /// The same call again, in a copy of the context as it is now.
    pub fn copy(&self, py: Python<'_>) -> PyResult<Self> {
        let context = match &self.context {
            // SAFETY: attached; the argument is a live context; a new reference, or null with an error set.
            Some(context) => Some(
                unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_Copy(context.as_ptr())) }?
                    .unbind(),
            ),
            None => None,
        };
        Ok(Self {
            function: self.function.clone_ref(py),
            args: self.args.clone_ref(py),
            kwargs: self.kwargs.as_ref().map(|kwargs| kwargs.clone_ref(py)),
            context,
        })
    }

    /// What is to be called.
    pub fn function(&self) -> &Py<PyAny> {
        &self.function
    }

    /// Makes the call. If `run_coroutine` is given and the call returns a coroutine, the result is what that makes of it.
    pub fn call<'py>(
        &self,
        py: Python<'py>,
        run_coroutine: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _entered = match &self.context {
            Some(context) => Some(Entered::new(context.bind(py))?),
            None => None,
        };
        let result = self
            .function
            .bind(py)
            .call(self.args.bind(py), self.kwargs.as_ref().map(|k| k.bind(py)))?;
        match run_coroutine {
            Some(run_coroutine) if is_coroutine(&result) => run_coroutine.call1((result,)),
            _ => Ok(result),
        }
    }
}

/// A context that is current in this thread until this is dropped.
struct Entered<'a, 'py>(&'a Bound<'py, PyAny>);

impl<'a, 'py> Entered<'a, 'py> {
    fn new(context: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        // SAFETY: attached, and the argument is a live context.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } == 0 {
            Ok(Self(context))
        } else {
            Err(PyErr::fetch(context.py()))
        }
    }
}

impl Drop for Entered<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: attached, in the thread that entered this context.
        if unsafe { ffi::PyContext_Exit(self.0.as_ptr()) } != 0 {
            PyErr::fetch(self.0.py()).write_unraisable(self.0.py(), Some(self.0));
        }
    }
}

/// Whether `value` is a coroutine that can be run: one of `async def`, or one that says so (such as Cython's).
fn is_coroutine(value: &Bound<'_, PyAny>) -> bool {
    static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    // SAFETY: attached, and both are pointers of a live object's live type; `tp_as_async` may be null.
    let awaitable = unsafe {
        let slots = (*ffi::Py_TYPE(value.as_ptr())).tp_as_async;
        !slots.is_null() && (*slots).am_await.is_some()
    };
    awaitable
        && COROUTINE
            .import(value.py(), "collections.abc", "Coroutine")
            .and_then(|coroutine| value.is_instance(coroutine))
            .unwrap_or(false)
}
