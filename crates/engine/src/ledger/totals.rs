//! Sums and distributions over jobs whose records are not kept any more, or over any others.

use std::collections::HashMap;

use super::record::{Ending, Model, Record, UNKNOWN};

/// What the jobs of one function under one model cost together. Durations in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// How many there were.
    pub jobs: u64,
    /// How many of them ended how, in the order of [`Ending`].
    pub endings: [u64; Ending::COUNT],
    /// How many were run again.
    pub retries: u64,
    /// How many of them it is known of what they cost.
    pub measured: u64,
    /// From submission to end, of all that began.
    pub latency_ns: u64,
    /// In the queue, of all that began.
    pub queued_ns: u64,
    /// Pickling and unpickling arguments.
    pub arguments_ns: u64,
    /// Pickling and unpickling results.
    pub result_ns: u64,
    /// Arguments, pickled.
    pub arguments_bytes: u64,
    /// Results, pickled.
    pub result_bytes: u64,
    /// Copied on the way.
    pub copied_bytes: u64,
    /// Shared instead.
    pub shared_bytes: u64,
    /// In functions.
    pub run_ns: u64,
    /// Of these on a CPU.
    pub cpu_ns: u64,
    /// CPU time of child processes.
    pub children_ns: u64,
    /// Waiting for the interpreter, by estimate.
    pub gil_ns: u64,
    /// Ready, while the CPUs were others'.
    pub delayed_ns: u64,
    /// Waiting for anything else.
    pub waiting_ns: u64,
    /// The most memory that a worker had.
    pub peak_bytes: u64,
    /// When the first of them was submitted; 0 if there is none.
    pub first_ns: u64,
    /// When the last of them ended.
    pub last_ns: u64,
}

impl Sums {
    /// Counts one more job.
    pub fn add(&mut self, record: &Record) {
        let known = |ns: u64| if ns == UNKNOWN { 0 } else { ns };
        self.jobs += 1;
        self.endings[record.ending as usize] += 1;
        self.retries += u64::from(record.retries);
        if let Some(queued_ns) = record.queued_ns() {
            self.latency_ns += record.latency_ns();
            self.queued_ns += queued_ns;
        }
        self.arguments_ns += record.arguments_ns;
        self.result_ns += record.result_ns;
        self.arguments_bytes += record.arguments_bytes;
        self.result_bytes += record.result_bytes;
        self.copied_bytes += record.copied_bytes;
        self.shared_bytes += record.shared_bytes;
        self.run_ns += known(record.run_ns);
        self.cpu_ns += known(record.cpu_ns);
        self.children_ns += known(record.children_ns);
        self.gil_ns += known(record.gil_ns);
        self.delayed_ns += known(record.delayed_ns);
        if let Some(waiting_ns) = record.waiting_ns() {
            self.measured += 1;
            self.waiting_ns += waiting_ns;
        }
        self.peak_bytes = self.peak_bytes.max(record.peak_bytes);
        if self.first_ns == 0 || record.submitted_ns < self.first_ns {
            self.first_ns = record.submitted_ns;
        }
        self.last_ns = self.last_ns.max(record.finished_ns);
    }

    /// Counts the jobs of `other`, too.
    pub fn merge(&mut self, other: &Self) {
        self.jobs += other.jobs;
        for (mine, theirs) in self.endings.iter_mut().zip(other.endings) {
            *mine += theirs;
        }
        self.retries += other.retries;
        self.measured += other.measured;
        self.latency_ns += other.latency_ns;
        self.queued_ns += other.queued_ns;
        self.arguments_ns += other.arguments_ns;
        self.result_ns += other.result_ns;
        self.arguments_bytes += other.arguments_bytes;
        self.result_bytes += other.result_bytes;
        self.copied_bytes += other.copied_bytes;
        self.shared_bytes += other.shared_bytes;
        self.run_ns += other.run_ns;
        self.cpu_ns += other.cpu_ns;
        self.children_ns += other.children_ns;
        self.gil_ns += other.gil_ns;
        self.delayed_ns += other.delayed_ns;
        self.waiting_ns += other.waiting_ns;
        self.peak_bytes = self.peak_bytes.max(other.peak_bytes);
        if self.first_ns == 0 || (other.first_ns > 0 && other.first_ns < self.first_ns) {
            self.first_ns = other.first_ns;
        }
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

/// What is distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// From submission to end.
    Latency,
    /// In the queue.
    Queued,
    /// In the function.
    Run,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Latency, Self::Queued, Self::Run];

    /// Of one job that began, if it is known.
    pub fn of(self, record: &Record) -> Option<u64> {
        let queued_ns = record.queued_ns()?;
        match self {
            Self::Latency => Some(record.latency_ns()),
            Self::Queued => Some(queued_ns),
            Self::Run => (record.run_ns != UNKNOWN).then_some(record.run_ns),
        }
    }
}

/// Eight buckets to an octave: a bucket's middle is no more than 7 % from anything in it.
const PER_OCTAVE: u32 = 8;
const BUCKETS: usize = (64 * PER_OCTAVE) as usize;

/// How many values there were of which size.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS].into_boxed_slice(),
        }
    }
}

fn bucket(value: u64) -> usize {
    if value < u64::from(PER_OCTAVE) {
        return value as usize;
    }
    let octave = value.ilog2();
    let step = (value >> (octave - 3)) & 7;
    ((octave - 2) * PER_OCTAVE + step as u32) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let per_octave = u64::from(PER_OCTAVE);
    if bucket < per_octave {
        return bucket;
    }
    let octave = bucket / per_octave + 2;
    let width = 1_u64 << (octave - 3);
    (per_octave + bucket % per_octave) * width + width / 2
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
    }

    /// Counts the values of `other`, too.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// The value below or at which so large a share (from 0 to 1) of all values are, to 7 %; `None` if there are none.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rank, of counts far below 2^52, between 1 and their sum"
    )]
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let all: u64 = self.counts.iter().sum();
        let rank = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(middle(bucket));
            }
        }
        None
    }
}

/// The jobs whose records have fallen out.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// By model and function.
    pub sums: HashMap<(Model, u32), Sums>,
    /// By model; one for each [`Quantity`].
    pub histograms: HashMap<Model, [Histogram; Quantity::ALL.len()]>,
    /// How many jobs there were.
    pub jobs: u64,
}

impl Totals {
    /// Counts one more job.
    pub fn add(&mut self, record: &Record) {
        self.jobs += 1;
        self.sums
            .entry((record.model, record.name))
            .or_default()
            .add(record);
        let histograms = self.histograms.entry(record.model).or_default();
        for (histogram, quantity) in histograms.iter_mut().zip(Quantity::ALL) {
            if let Some(value) = quantity.of(record) {
                histogram.add(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_near_all_that_is_in_it() {
        let mut value = 1_u64;
        while value < u64::MAX / 5 {
            for value in [value, value + value / 3, value - value / 7] {
                let near = middle(bucket(value));
                assert!(near.abs_diff(value) <= value / 14 + 1, "{value} in {near}");
            }
            value = value * 5 / 4 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=100).for_each(|value| histogram.add(value * 1000));
        let median = histogram.quantile(0.5).unwrap_or_default();
        assert!(median.abs_diff(50_000) < 4000, "{median}");
        let last = histogram.quantile(1.0).unwrap_or_default();
        assert!(last.abs_diff(100_000) < 8000, "{last}");
        assert!(histogram.quantile(0.0).unwrap_or_default() <= 1100);
    }
}
