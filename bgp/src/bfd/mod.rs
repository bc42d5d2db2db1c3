//! Bidirectional Forwarding Detection in asynchronous mode, as a value: packets and timers go in, packets and timers come
//! out. No echo, no authentication.
//!
//! Source: RFC 5880 section 6.8, 5881 (one hop), 5882 (how BGP uses it).

mod packet;

use std::time::Duration;

pub use packet::{Diagnostic, Malformed, Packet, State};

/// Until a session is up, packets go at most this often (RFC 5880 section 6.8.3).
const SLOW: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What names the session here; never 0.
    pub discriminator: u32,
    /// How often this side would send.
    pub transmit: Duration,
    /// How often this side can receive.
    pub receive: Duration,
    /// How many packets may be missing.
    pub multiplier: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Send(Packet),
    /// Ask for the next packet then, less up to a quarter of it at random.
    Transmit(Duration),
    /// The peer sends none: no packet until it does.
    Pause,
    /// The peer is lost if nothing comes until then; replaces what was said before.
    Detect(Duration),
    Up,
    /// `independent`: the peer's BFD does not share the fate of its control plane.
    Down {
        diagnostic: Diagnostic,
        independent: bool,
    },
}

#[derive(Debug, Clone)]
pub struct Session {
    settings: Settings,
    state: State,
    diagnostic: Diagnostic,
    /// A changed interval is to be confirmed by the peer.
    polling: bool,
    remote: Remote,
}

/// What the peer last said.
#[derive(Debug, Clone, Copy)]
struct Remote {
    discriminator: u32,
    transmit: Duration,
    receive: Duration,
    multiplier: u8,
    independent: bool,
}

/// Before it said anything (RFC 5880 section 6.8.1).
const UNHEARD: Remote = Remote {
    discriminator: 0,
    transmit: Duration::ZERO,
    receive: Duration::from_micros(1),
    multiplier: 0,
    independent: false,
};

impl Session {
    pub fn new(settings: Settings) -> Self {
        Self { settings, state: State::Down, diagnostic: Diagnostic::None, polling: false, remote: UNHEARD }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Begins to send.
    pub fn start(&mut self) -> Vec<Output> {
        self.transmit()
    }

    /// The administrator ends it: the peer is told, and takes it for no failure.
    pub fn stop(&mut self) -> Vec<Output> {
        self.state = State::AdminDown;
        self.diagnostic = Diagnostic::AdministrativelyDown;
        self.polling = false;
        vec![Output::Send(self.packet(false))]
    }

    /// The time for the next packet has come.
    pub fn transmit(&mut self) -> Vec<Output> {
        if self.remote.receive.is_zero() || self.state == State::AdminDown {
            return vec![Output::Pause];
        }
        vec![Output::Send(self.packet(false)), Output::Transmit(self.interval())]
    }

    /// Nothing came for the time that [`Output::Detect`] gave.
    pub fn detect(&mut self) -> Vec<Output> {
        if !matches!(self.state, State::Init | State::Up) {
            return Vec::new();
        }
        let independent = self.remote.independent;
        let mut out = self.fall(Diagnostic::DetectionTimeExpired, independent);
        self.remote = UNHEARD;
        out.extend(self.transmit());
        out
    }

    /// Takes a packet that names this session, or names none.
    pub fn receive(&mut self, packet: &Packet) -> Vec<Output> {
        let named = packet.your_discriminator == self.settings.discriminator
            || packet.your_discriminator == 0 && matches!(packet.state, State::Down | State::AdminDown);
        if !named || self.state == State::AdminDown {
            return Vec::new();
        }
        let before = self.interval();
        let was_silent = self.remote.receive.is_zero();
        self.remote = Remote {
            discriminator: packet.my_discriminator,
            transmit: packet.desired_transmit,
            receive: packet.required_receive,
            multiplier: packet.multiplier,
            independent: packet.independent,
        };
        if packet.last {
            self.polling = false;
        }
        let mut out = self.step(packet);
        if packet.poll {
            out.push(Output::Send(self.packet(true)));
        }
        if self.interval() < before || was_silent && !self.remote.receive.is_zero() {
            out.extend(self.transmit());
        }
        if matches!(self.state, State::Init | State::Up) {
            out.push(Output::Detect(self.detection_time()));
        }
        out
    }

    /// The state machine of section 6.2.
    fn step(&mut self, packet: &Packet) -> Vec<Output> {
        match (self.state, packet.state) {
            (State::Up, State::Down) => self.fall(Diagnostic::NeighbourSignaled, packet.independent),
            // The administrator's word says nothing of the way there (RFC 5882 section 3.2).
            (State::Init | State::Up, State::AdminDown) => {
                self.fall(Diagnostic::NeighbourSignaled, packet.independent);
                Vec::new()
            }
            (State::Down, State::Down) => {
                self.state = State::Init;
                vec![Output::Send(self.packet(false))]
            }
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.state = State::Up;
                self.diagnostic = Diagnostic::None;
                // From slow to the interval that was asked for, which the peer is to confirm.
                self.polling = true;
                vec![Output::Up, Output::Send(self.packet(false))]
            }
            _ => Vec::new(),
        }
    }

    fn fall(&mut self, diagnostic: Diagnostic, independent: bool) -> Vec<Output> {
        let was_up = self.state == State::Up;
        self.state = State::Down;
        self.diagnostic = diagnostic;
        self.polling = false;
        if was_up { vec![Output::Down { diagnostic, independent }] } else { Vec::new() }
    }

    fn desired(&self) -> Duration {
        if self.state == State::Up { self.settings.transmit } else { self.settings.transmit.max(SLOW) }
    }

    fn interval(&self) -> Duration {
        self.desired().max(self.remote.receive)
    }

    /// Section 6.8.4: by the peer's multiplier and the slower of what it sends and this side takes.
    fn detection_time(&self) -> Duration {
        self.settings.receive.max(self.remote.transmit) * u32::from(self.remote.multiplier)
    }

    fn packet(&self, last: bool) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling && !last,
            last,
            // This process is the control plane: they go together (RFC 5882 section 4.3.2).
            independent: false,
            multiplier: self.settings.multiplier,
            my_discriminator: self.settings.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_transmit: self.desired(),
            required_receive: self.settings.receive,
        }
    }
}

#[cfg(test)]
mod tests;
