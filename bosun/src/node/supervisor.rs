//! The supervisor's hands: it starts programs, buries the dead, and passes signals on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use kernel::process::{Signal, Signals, kill, reap, unblocked};

use super::log;
use super::shims::Shims;
use super::supervise::{Action, Event, Spec, Supervise};

/// How often it looks whether a restart is due.
const TICK: Duration = Duration::from_millis(100);
/// How often it looks for shims that are lost.
const SWEEP: Duration = Duration::from_secs(20);

/// A program to supervise. `command` is asked for anew for each start.
pub struct Program {
    pub spec: Spec,
    pub command: Box<dyn Fn() -> io::Result<Command>>,
}

pub struct Supervisor {
    programs: Vec<Program>,
    /// The number of each program that runs.
    running: Vec<Option<u32>>,
    mind: Supervise,
    logs: PathBuf,
    shims: Shims,
}

impl Supervisor {
    /// `logs` is the folder in which each program has its log.
    ///
    /// # Errors
    /// Where the folder cannot be made.
    pub fn new(programs: Vec<Program>, logs: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("create {}", logs.display()))?;
        let specs: Vec<Spec> = programs.iter().map(|program| program.spec).collect();
        let running = vec![None; programs.len()];
        Ok(Self { programs, running, mind: Supervise::new(&specs), logs: logs.to_owned(), shims: Shims::default() })
    }

    /// Runs until SIGTERM or SIGINT has ended every program. One that cannot be started is tried again.
    pub fn run(&mut self, signals: &Signals) {
        let (mut events, mut swept) = (vec![Event::Tick], Instant::now());
        loop {
            while let Some(event) = events.pop() {
                for action in self.mind.on(event, Instant::now()) {
                    match action {
                        Action::Start(program) => events.extend(self.start(program)),
                        Action::Terminate(program) => self.signal(program, Signal::SIGTERM),
                        Action::Kill(program) => self.signal(program, Signal::SIGKILL),
                        Action::End => return,
                    }
                }
            }
            let pause = if self.mind.awaits_time() { TICK } else { SWEEP };
            match signals.next(pause) {
                Some(Signal::SIGCHLD) => events.extend(self.bury()),
                Some(_) => events.push(Event::Stop),
                None => events.push(Event::Tick),
            }
            // By the clock: on a busy node some child ends every moment.
            if swept.elapsed() >= SWEEP {
                self.shims.sweep();
                swept = Instant::now();
            }
        }
    }

    /// Returns the end of a program that could not be started.
    fn start(&mut self, position: usize) -> Option<Event> {
        let program = &self.programs[position];
        match spawn(program, &self.logs) {
            Ok(pid) => {
                self.running[position] = Some(pid);
                eprintln!("{} started as process {pid}", program.spec.name);
                None
            }
            Err(error) => {
                eprintln!("{} cannot be started: {error:#}", program.spec.name);
                Some(Event::Exited { program: position, success: false })
            }
        }
    }

    fn bury(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((pid, ended)) = reap() {
            // Others are orphans of containers and of shims: buried, and nothing more.
            let Some(program) = self.running.iter().position(|running| *running == Some(pid)) else { continue };
            self.running[program] = None;
            eprintln!("{} (process {pid}) ended with {ended}", self.programs[program].spec.name);
            events.push(Event::Exited { program, success: ended.is_success() });
        }
        events
    }

    fn signal(&self, program: usize, signal: Signal) {
        if let Some(pid) = self.running[program]
            && let Err(error) = kill(pid, signal)
        {
            eprintln!("cannot send {signal} to {}: {error}", self.programs[program].spec.name);
        }
    }
}

fn spawn(program: &Program, logs: &Path) -> anyhow::Result<u32> {
    let (reader, writer) = io::pipe()?;
    log::keep(reader, &logs.join(program.spec.name).with_added_extension("log"))?;
    let mut command = (program.command)()?;
    command.current_dir("/").stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    unblocked(&mut command);
    let child = command.spawn().with_context(|| format!("run {}", command.get_program().display()))?;
    Ok(child.id())
}
