//! How threads and processes meet: parking, queues, rings over borrowed memory. std only; also built under loom.
