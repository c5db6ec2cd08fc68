//! Makes `cfg(Py_GIL_DISABLED)` and the like known to this crate, as they are to `PyO3`.
fn main() {
    pyo3_build_config::use_pyo3_cfgs();
}
