//! Medians and percentiles of what was measured.

use serde_json::{Value, json};
use std::time::Duration;

/// The value below which `share` (0 to 1) of the samples lie. `samples` is sorted by it.
pub fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort();
    if samples.is_empty() {
        return Duration::ZERO;
    }
    let rank = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len());
    samples[rank - 1]
}

/// p50 and p99 in milliseconds.
pub fn spread(samples: &mut [Duration]) -> Value {
    let ms = |d: Duration| (d.as_secs_f64() * 1e5).round() / 1e2;
    json!({"n": samples.len(), "p50_ms": ms(percentile(samples, 0.5)), "p99_ms": ms(percentile(samples, 0.99))})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let mut samples: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut samples, 0.5), Duration::from_millis(50));
        assert_eq!(percentile(&mut samples, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&mut [Duration::from_secs(1)], 0.5), Duration::from_secs(1));
    }
}
