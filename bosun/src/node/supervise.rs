//! What the supervisor does, as values: events in, actions out. Source of the idea of phases: none starts before
//! what it needs, and the stop goes the other way round.

use std::time::{Duration, Instant};

/// The first restart comes after this, each further one after twice the time before it.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A program that lived this long counts as sound: its next restart is a first one.
const SOUND: Duration = Duration::from_secs(10);
/// Programs have this long to end, then they are killed.
const GRACE: Duration = Duration::from_secs(10);

/// What a program is to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub name: &'static str,
    /// Runs once, until it succeeds, instead of for ever.
    pub once: bool,
    /// Does not start before this one, which runs once, has succeeded.
    pub after: Option<&'static str>,
    /// The stop ends those of the highest number first.
    pub phase: u8,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    Exited {
        program: usize,
        success: bool,
    },
    /// The node shall end.
    Stop,
}

/// What to do; numbers are positions in the list of programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start(usize),
    Terminate(usize),
    Kill(usize),
    /// Nothing runs any more.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Option<Instant> },
    Running { since: Instant },
    Done,
}

/// The supervisor's mind.
#[derive(Debug)]
pub struct Supervise {
    programs: Vec<(Spec, State, u32)>,
    stopping: Option<Stopping>,
}

#[derive(Debug, Clone, Copy)]
struct Stopping {
    phase: u8,
    kill_at: Instant,
    killed: bool,
}

impl Supervise {
    pub fn new(specs: &[Spec]) -> Self {
        let programs = specs.iter().map(|spec| (*spec, State::Waiting { until: None }, 0)).collect();
        Self { programs, stopping: None }
    }

    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Exited { program, success } => self.exited(program, success, now),
            Event::Stop if self.stopping.is_none() => {
                let phase = self.programs.iter().map(|(spec, ..)| spec.phase).max().unwrap_or(0);
                return self.end_phase(phase, now);
            }
            Event::Stop | Event::Tick => {}
        }
        match self.stopping {
            Some(stopping) => self.go_on_stopping(stopping, now),
            None => self.start_due(now),
        }
    }

    /// Whether time alone brings the next action.
    pub fn awaits_time(&self) -> bool {
        let waits = |state: &State| matches!(state, State::Waiting { until: Some(_) });
        self.stopping.is_some() || self.programs.iter().any(|(_, state, _)| waits(state))
    }

    fn exited(&mut self, program: usize, success: bool, now: Instant) {
        let Some((spec, state, short_lives)) = self.programs.get_mut(program) else { return };
        let State::Running { since } = *state else { return };
        if spec.once && success {
            *state = State::Done;
            return;
        }
        *short_lives = if now - since >= SOUND { 0 } else { *short_lives + 1 };
        let delay = FIRST_DELAY.saturating_mul(1 << (*short_lives).saturating_sub(1).min(10)).min(LONGEST_DELAY);
        *state = State::Waiting { until: Some(now + delay) };
    }

    fn start_due(&mut self, now: Instant) -> Vec<Action> {
        let done: Vec<&str> =
            self.programs.iter().filter(|(_, state, _)| *state == State::Done).map(|(spec, ..)| spec.name).collect();
        let mut actions = Vec::new();
        for (position, (spec, state, _)) in self.programs.iter_mut().enumerate() {
            let State::Waiting { until } = *state else { continue };
            if until.is_none_or(|until| until <= now) && spec.after.is_none_or(|first| done.contains(&first)) {
                *state = State::Running { since: now };
                actions.push(Action::Start(position));
            }
        }
        actions
    }

    fn running(&self, phase: u8) -> Vec<usize> {
        let programs = self.programs.iter().enumerate();
        let running =
            programs.filter(|(_, (spec, state, _))| spec.phase == phase && matches!(state, State::Running { .. }));
        running.map(|(position, _)| position).collect()
    }

    /// Asks the phase's programs to end; with none of them running, the phase below.
    fn end_phase(&mut self, phase: u8, now: Instant) -> Vec<Action> {
        for phase in (0..=phase).rev() {
            let running = self.running(phase);
            if !running.is_empty() {
                self.stopping = Some(Stopping { phase, kill_at: now + GRACE, killed: false });
                return running.into_iter().map(Action::Terminate).collect();
            }
        }
        vec![Action::End]
    }

    fn go_on_stopping(&mut self, stopping: Stopping, now: Instant) -> Vec<Action> {
        let running = self.running(stopping.phase);
        if running.is_empty() {
            return self.end_phase(stopping.phase, now);
        }
        if now < stopping.kill_at || stopping.killed {
            return Vec::new();
        }
        self.stopping = Some(Stopping { killed: true, ..stopping });
        running.into_iter().map(Action::Kill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::*;

    const SPECS: &[Spec] = &[
        Spec { name: "containerd", once: false, after: None, phase: 0 },
        Spec { name: "images", once: true, after: None, phase: 1 },
        Spec { name: "agent", once: false, after: Some("images"), phase: 1 },
    ];

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn what_waits_starts_after_what_it_needs_succeeded() {
        let (mut mind, start) = (Supervise::new(SPECS), Instant::now());
        assert_eq!(mind.on(Event::Tick, start), [Start(0), Start(1)]);
        assert_eq!(mind.on(Event::Exited { program: 1, success: false }, start), []);
        assert_eq!(mind.on(Event::Tick, after(start, 100)), [Start(1)]);
        assert_eq!(mind.on(Event::Exited { program: 1, success: true }, after(start, 200)), [Start(2)]);
        assert_eq!(mind.on(Event::Tick, after(start, 60_000)), [], "what ran once does not run again");
    }

    #[test]
    fn short_lives_back_off_and_a_long_one_forgives() {
        let (mut mind, mut now) = (Supervise::new(&SPECS[..1]), Instant::now());
        mind.on(Event::Tick, now);
        let mut delays = Vec::new();
        for lived in [0, 0, 0, 0, 0, 0, 0, 0, 60_000] {
            now = after(now, lived);
            assert_eq!(mind.on(Event::Exited { program: 0, success: false }, now), []);
            let died = now;
            while mind.on(Event::Tick, now).is_empty() {
                now = after(now, 100);
            }
            delays.push((now - died).as_millis());
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 100]);
    }

    #[test]
    fn stop_goes_phase_by_phase_and_kills_what_does_not_end() {
        let (mut mind, start) = (Supervise::new(SPECS), Instant::now());
        mind.on(Event::Tick, start);
        mind.on(Event::Exited { program: 1, success: true }, start);
        assert_eq!(mind.on(Event::Stop, start), [Terminate(2)]);
        assert_eq!(mind.on(Event::Stop, start), []);
        assert_eq!(mind.on(Event::Tick, after(start, 10_000)), [Kill(2)]);
        assert_eq!(mind.on(Event::Tick, after(start, 20_000)), []);
        assert_eq!(mind.on(Event::Exited { program: 2, success: false }, after(start, 20_000)), [Terminate(0)]);
        assert_eq!(mind.on(Event::Exited { program: 0, success: true }, after(start, 20_100)), [End]);
    }
}
