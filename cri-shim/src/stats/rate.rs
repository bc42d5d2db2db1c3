//! CPU rates from cumulative times, between two moments at which somebody asked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time over which a rate is computed.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// How long a sample is kept when nobody asks.
const LIFE: Duration = Duration::from_secs(600);

/// CPU time at a moment, and the rate that was computed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Instant,
    cpu_nanos: u64,
    rate: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<String, Sample>>);

impl Rates {
    /// Notes the CPU time of a group and returns its rate, billionths of a CPU.
    pub fn note(&self, group: &str, cpu_nanos: u64) -> Option<u64> {
        let now = Instant::now();
        // Samples stand each for itself: one that was written is whole.
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next(samples.get(group), now, cpu_nanos);
        if samples.len() == samples.capacity() {
            samples.retain(|_, sample| now.duration_since(sample.at) < LIFE);
        }
        samples.insert(group.to_owned(), next);
        next.rate
    }
}

fn next(last: Option<&Sample>, at: Instant, cpu_nanos: u64) -> Sample {
    let Some(last) = last.filter(|last| last.cpu_nanos <= cpu_nanos) else {
        // The first, or a new group under an old name.
        return Sample { at, cpu_nanos, rate: None };
    };
    let window = at.duration_since(last.at);
    if window < MIN_WINDOW {
        return *last;
    }
    let used = u128::from(cpu_nanos - last.cpu_nanos);
    let rate = u64::try_from(used * 1_000_000_000 / window.as_nanos().max(1)).ok();
    Sample { at, cpu_nanos, rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_moments_a_second_apart() {
        let start = Instant::now();
        let first = next(None, start, 1_000);
        assert_eq!(first.rate, None);
        assert_eq!(next(Some(&first), start + Duration::from_millis(10), 9_000), first, "too soon to tell");
        let later = next(Some(&first), start + Duration::from_secs(2), 1_000_001_000);
        assert_eq!(later.rate, Some(500_000_000));
        let soon = next(Some(&later), start + Duration::from_millis(2_100), 1_000_002_000);
        assert_eq!(soon.rate, Some(500_000_000), "the last is told again");
        assert_eq!(next(Some(&later), start + Duration::from_secs(9), 5).rate, None, "another group of that name");
    }
}
