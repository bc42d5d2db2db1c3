//! Probes: when they run, and what a row of results comes to.

pub mod exec;
mod schedule;
mod threshold;

pub use exec::ProbeKind;
pub use schedule::Probes;
pub use threshold::Threshold;

use std::collections::HashMap;

/// What the probes have come to, by container id. Absent means that nothing was decided yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    startup: HashMap<String, bool>,
    liveness: HashMap<String, bool>,
    readiness: HashMap<String, bool>,
}

impl Verdicts {
    /// Whether the startup probe passed, or gave up.
    pub fn started(&self, id: &str) -> Option<bool> {
        self.startup.get(id).copied()
    }

    pub fn alive(&self, id: &str) -> Option<bool> {
        self.liveness.get(id).copied()
    }

    pub fn ready(&self, id: &str) -> Option<bool> {
        self.readiness.get(id).copied()
    }

    /// Stores a verdict; says whether it is news.
    pub fn set(&mut self, kind: ProbeKind, id: &str, passed: bool) -> bool {
        let map = match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        };
        map.insert(id.to_string(), passed) != Some(passed)
    }

    /// Keeps only the containers that `living` names.
    pub fn retain(&mut self, living: impl Fn(&str) -> bool) {
        for map in [&mut self.startup, &mut self.liveness, &mut self.readiness] {
            map.retain(|id, _| living(id));
        }
    }

    #[cfg(test)]
    pub fn with_liveness(mut self, id: &str, passed: bool) -> Self {
        self.set(ProbeKind::Liveness, id, passed);
        self
    }

    #[cfg(test)]
    pub fn with_startup(mut self, id: &str, passed: bool) -> Self {
        self.set(ProbeKind::Startup, id, passed);
        self
    }

    #[cfg(test)]
    pub fn with_readiness(mut self, id: &str, passed: bool) -> Self {
        self.set(ProbeKind::Readiness, id, passed);
        self
    }
}
