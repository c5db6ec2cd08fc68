//! The extension module `plait._rust`: its list of exports is the table of contents.
use pyo3::prelude::*;

mod callback;
mod future;

#[pymodule(gil_used = false)]
mod _rust {
    #[pymodule_export]
    use super::future::Future;
}
