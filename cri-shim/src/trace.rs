//! Where the time of a pod's start goes: the steps of each of its calls, for those who wait for them, for the log at debug
//! level, and for whoever looks at a sandbox.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Instrument;

/// A pod start that takes longer is told in the log.
const SLOW: Duration = Duration::from_secs(1);
/// So many steps of a slow one are named.
const NAMED: usize = 3;

/// What a call has done and does. Clones share it.
#[derive(Debug, Clone)]
pub struct Stages {
    call: &'static str,
    of: Arc<str>,
    begun: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

#[derive(Debug)]
struct Span {
    name: &'static str,
    from: Duration,
    to: Option<Duration>,
}

impl Stages {
    /// `call` is the CRI's name of it, `of` what it is about.
    pub fn new(call: &'static str, of: &str) -> Self {
        Self { call, of: of.into(), begun: Instant::now(), spans: Arc::default() }
    }

    /// Does `work` as the stage `name`, in a tracing span. Stages may overlap.
    pub async fn run<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let from = self.begun.elapsed();
        let at = self.with(|spans| {
            spans.push(Span { name, from, to: None });
            spans.len() - 1
        });
        let span = tracing::debug_span!("step", call = self.call, of = &*self.of, name);
        let done = work.instrument(span.clone()).await;
        let to = self.begun.elapsed();
        self.with(|spans| spans[at].to = Some(to));
        span.in_scope(|| tracing::debug!(took_ms = millis(to.saturating_sub(from)), "done"));
        done
    }

    /// What is being done and since when: `network (for 12.0 s)`.
    pub fn doing(&self) -> String {
        let now = self.begun.elapsed();
        let open = |span: &Span| match span.to {
            None => Some(format!("{} (for {:.1} s)", span.name, now.saturating_sub(span.from).as_secs_f64())),
            Some(_) => None,
        };
        let open: Vec<String> = self.with(|spans| spans.iter().filter_map(open).collect());
        if open.is_empty() { "between stages".to_owned() } else { open.join(", ") }
    }

    /// All until now; a step that is not done counts as if it were.
    pub fn trace(&self) -> Trace {
        let now = self.begun.elapsed();
        let step = |span: &Span| Step {
            name: span.name,
            from: span.from,
            took: span.to.unwrap_or(now).saturating_sub(span.from),
        };
        Trace { call: self.call, took: now, steps: self.with(|spans| spans.iter().map(step).collect()) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Span>) -> T) -> T {
        work(&mut self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A call that is over, and its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub call: &'static str,
    pub took: Duration,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    /// Since the call began.
    pub from: Duration,
    pub took: Duration,
}

/// All steps with when they began and how long they took, milliseconds: `network +1.2 40.5 ms, ...`.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Step { name, from, took }) in self.steps.iter().enumerate() {
            let gap = if at == 0 { "" } else { ", " };
            write!(f, "{gap}{name} +{:.1} {:.1} ms", from.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

/// A trace that waits to be told with others.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Option<Trace>>);

impl Kept {
    pub fn keep(&self, trace: Trace) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(trace);
    }

    pub fn take(&self) -> Option<Trace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What there is to say of a pod start that was slow: how long its calls took, and its slowest steps.
pub fn slow_start(calls: &[Trace]) -> Option<String> {
    let took: Duration = calls.iter().map(|call| call.took).sum();
    if took <= SLOW {
        return None;
    }
    let mut steps: Vec<(&str, Step)> =
        calls.iter().flat_map(|call| call.steps.iter().map(|step| (call.call, *step))).collect();
    steps.sort_by_key(|(_, step)| std::cmp::Reverse(step.took));
    let named = steps.iter().take(NAMED).map(|(call, step)| format!("{call}: {} {}", step.name, seconds(step.took)));
    Some(format!("{} in all; {}", seconds(took), named.collect::<Vec<_>>().join(", ")))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(call: &'static str, took: u64, steps: &[(&'static str, u64, u64)]) -> Trace {
        let step = |&(name, from, took): &(&'static str, u64, u64)| Step {
            name,
            from: Duration::from_millis(from),
            took: Duration::from_millis(took),
        };
        Trace { call, took: Duration::from_millis(took), steps: steps.iter().map(step).collect() }
    }

    #[test]
    fn a_slow_start_names_its_slowest_steps() {
        let run = call("RunPodSandbox", 700, &[("record", 0, 20), ("namespaces", 1, 5), ("network", 6, 690)]);
        let start = call("StartContainer", 310, &[("task", 3, 250), ("start", 253, 50)]);
        assert_eq!(slow_start(std::slice::from_ref(&run)), None);
        let expected =
            "1.01 s in all; RunPodSandbox: network 0.69 s, StartContainer: task 0.25 s, StartContainer: start 0.05 s";
        assert_eq!(slow_start(&[run.clone(), start]).as_deref(), Some(expected));
        assert_eq!(run.to_string(), "record +0.0 20.0 ms, namespaces +1.0 5.0 ms, network +6.0 690.0 ms");
    }

    #[tokio::test]
    async fn steps_are_counted_while_they_run_and_afterwards() {
        let stages = Stages::new("RunPodSandbox", "a pod");
        assert_eq!(stages.doing(), "between stages");
        let inner = stages.clone();
        let open = stages.run("network", async move { (inner.doing(), inner.trace().steps.len()) }).await;
        assert_eq!(open, ("network (for 0.0 s)".to_owned(), 1));
        let trace = stages.trace();
        assert_eq!((trace.call, trace.steps[0].name), ("RunPodSandbox", "network"));
        assert!(trace.steps[0].from + trace.steps[0].took <= trace.took);
    }
}
