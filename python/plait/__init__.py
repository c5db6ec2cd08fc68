"""plait: coroutines, threads and processes on one Rust core."""
