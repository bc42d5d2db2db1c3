//! How long what failed waits before the next try: 10 s, doubled up to 5 min, forgotten after twice that in peace.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);

/// Back-off by name: of a container's restarts, or of an image's pulls.
#[derive(Clone, Debug)]
pub struct RestartBackOff {
    entries: HashMap<String, Entry>,
    most: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: SystemTime,
}

impl Default for RestartBackOff {
    fn default() -> Self {
        Self::up_to(MOST)
    }
}

impl RestartBackOff {
    /// With another longest delay.
    pub fn up_to(most: Duration) -> Self {
        Self { entries: HashMap::new(), most }
    }

    /// What is left to wait after a failure at `failed_at` (nanoseconds since the epoch); `None` where it may go on.
    pub fn remaining(&self, name: &str, failed_at: i64, now: SystemTime) -> Option<Duration> {
        let entry = self.entries.get(name).filter(|entry| !self.is_forgotten(entry, now))?;
        let failed_at = SystemTime::UNIX_EPOCH + Duration::from_nanos(failed_at.max(0).unsigned_abs());
        let until = failed_at + entry.delay;
        until.duration_since(now).ok().filter(|left| !left.is_zero())
    }

    /// What is left of the delay that began with the last try.
    pub fn remaining_since_try(&self, name: &str, now: SystemTime) -> Option<Duration> {
        let entry = self.entries.get(name)?;
        (entry.updated + entry.delay).duration_since(now).ok().filter(|left| !left.is_zero())
    }

    /// The delay that now stands for the name.
    pub fn delay(&self, name: &str) -> Duration {
        self.entries.get(name).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// Counts one more try.
    pub fn restarted(&mut self, name: &str, now: SystemTime) {
        let known = self.entries.get(name).filter(|entry| !self.is_forgotten(entry, now));
        let delay = known.map_or(FIRST, |entry| entry.delay * 2).min(self.most);
        self.entries.insert(name.to_string(), Entry { delay, updated: now });
    }

    /// Forgets names that have been in peace.
    pub fn forget_old(&mut self, now: SystemTime) {
        let most = self.most;
        self.entries.retain(|_, entry| !forgotten(entry, now, most));
    }

    fn is_forgotten(&self, entry: &Entry, now: SystemTime) -> bool {
        forgotten(entry, now, self.most)
    }
}

fn forgotten(entry: &Entry, now: SystemTime, most: Duration) -> bool {
    now.duration_since(entry.updated).is_ok_and(|idle| idle > most * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_forgets() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut back_off = RestartBackOff::default();
        let mut seen = Vec::new();
        for _ in 0..7 {
            back_off.restarted("a", start);
            seen.push(back_off.delay("a").as_secs());
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        let at = |seconds| start + Duration::from_secs(seconds);
        let failed = 1_000_100_000_000_000;
        assert_eq!(back_off.remaining("a", failed, at(110)), Some(Duration::from_secs(290)));
        assert_eq!(back_off.remaining("a", failed, at(400)), None);
        assert_eq!(back_off.remaining("b", failed, at(110)), None);
        back_off.restarted("a", at(601));
        assert_eq!(back_off.delay("a"), FIRST);
    }
}
