//! A row of probe results becomes a verdict when it is long enough.

use super::exec::ProbeKind;
use k8s_openapi::api::core::v1::Probe;
use std::time::Duration;

/// What holds until enough results came: alive, not ready, undecided.
pub fn initial(kind: ProbeKind) -> Option<bool> {
    match kind {
        ProbeKind::Startup => None,
        ProbeKind::Liveness => Some(true),
        ProbeKind::Readiness => Some(false),
    }
}

/// Counts equal results in a row.
#[derive(Clone, Debug)]
pub struct Threshold {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
}

impl Threshold {
    pub fn of(probe: &Probe) -> Self {
        let at_least_one = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        Self {
            success: at_least_one(probe.success_threshold, 1),
            failure: at_least_one(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// Takes a result; gives a verdict where the row is long enough.
    pub fn take(&mut self, passed: bool) -> Option<bool> {
        self.run = if self.last == Some(passed) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(passed);
        let needed = if passed { self.success } else { self.failure };
        (self.run >= needed).then_some(passed)
    }
}

/// The probe's times with the API's defaults.
pub fn initial_delay(probe: &Probe) -> Duration {
    seconds(probe.initial_delay_seconds, 0)
}

pub fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds, 10)
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_a_row_and_a_change_begins_anew() {
        let probe = Probe { failure_threshold: Some(3), success_threshold: Some(2), ..Probe::default() };
        let mut threshold = Threshold::of(&probe);
        let given = [false, false, true, true, false, false, false, false];
        let seen: Vec<_> = given.into_iter().map(|passed| threshold.take(passed)).collect();
        assert_eq!(seen, [None, None, None, Some(true), None, None, Some(false), Some(false)]);
    }

    #[test]
    fn defaults_are_the_apis() {
        let mut threshold = Threshold::of(&Probe::default());
        assert_eq!([threshold.take(false), threshold.take(false), threshold.take(false)], [None, None, Some(false)]);
        assert_eq!(threshold.take(true), Some(true));
        assert_eq!(period(&Probe::default()), Duration::from_secs(10));
    }
}
